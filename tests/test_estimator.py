"""The scikit-learn estimators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from convex_heads import ConvexHeadClassifier, ConvexHeadRegressor
from convex_heads.decode import probabilities


@pytest.fixture(scope="module")
def xor():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 6)).astype(np.float32)
    return X, np.where(X[:, 0] * X[:, 1] > 0, "same", "other")


def test_a_problem_no_linear_head_can_solve(xor):
    X, y = xor
    head = ConvexHeadClassifier().fit(X[:400], y[:400])
    assert head.score(X[400:], y[400:]) > 0.85
    assert head.certificate_.relative_gap <= head.tolerance_
    assert head.certificate_.active_gates > 1
    assert head.beta_ in [point.fraction for point in head.path_]
    assert len(head.coef_path_) == len(head.path_)
    assert head.passes_ >= sum(point.passes for point in head.path_)
    linear = ConvexHeadClassifier(n_gates=1, beta=0.01).fit(X[:400], y[:400])
    assert linear.score(X[400:], y[400:]) < 0.65


def test_many_weights_mean_few_gates(xor, monkeypatch):
    X, y = xor
    options = {"beta": 0.1, "penalty": "group"}
    assert len(ConvexHeadClassifier(**options).fit(X, y).gates_) == 64
    monkeypatch.setattr("convex_heads.head._WEIGHTS", 5 * (X.shape[1] + 1))
    assert len(ConvexHeadClassifier(**options).fit(X, y).gates_) == 5
    assert len(ConvexHeadClassifier(**options, n_gates=16).fit(X, y).gates_) == 16


def test_same_seed_same_bits_whatever_the_order_of_the_rows(xor):
    X, y = xor
    order = np.random.default_rng(1).permutation(len(X))
    first = ConvexHeadClassifier(beta=0.05).fit(X, y)
    second = ConvexHeadClassifier(beta=0.05).fit(X[order], y[order])
    np.testing.assert_array_equal(first.network_.weights, second.network_.weights)
    other = ConvexHeadClassifier(beta=0.05, random_state=1).fit(X, y)
    assert not np.array_equal(other.network_.gates, first.network_.gates)


def test_validation_rows_choose_but_are_never_trained_on(xor):
    X, y = xor
    head = ConvexHeadClassifier().fit(X[:400], y[:400], X_val=X[400:], y_val=y[400:])
    fixed = ConvexHeadClassifier(beta=head.beta_).fit(
        X[:400], y[:400], X_val=X[400:], y_val=y[400:]
    )
    assert head.network_.weights.shape[1] == 7
    assert fixed.beta_ == head.beta_
    lowest = min(point.loss for point in head.path_)
    assert head.path_[[p.fraction for p in head.path_].index(head.beta_)].loss == lowest
    # Wrong validation labels must not move the fit at a fixed beta.
    wrong = ConvexHeadClassifier(beta=head.beta_).fit(
        X[:400], y[:400], X_val=X[400:], y_val=y[400:][::-1]
    )
    np.testing.assert_array_equal(wrong.network_.weights, fixed.network_.weights)


def test_three_classes_and_every_loss():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(300, 4)).astype(np.float32)
    y = np.digitize(X[:, 0] + 0.1 * rng.normal(size=300), [-0.5, 0.5])
    for loss in ("softmax", "squared", "logistic"):
        head = ConvexHeadClassifier(loss=loss, beta=0.02).fit(X, y)
        p = head.predict_proba(X)
        assert p.shape == (300, 3)
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
        assert head.score(X, y) > 0.85


def test_logistic_and_two_column_softmax_agree_on_what_is_likely(xor):
    X, y = xor
    logistic = ConvexHeadClassifier(loss="logistic", beta=0.02).fit(X, y)
    softmax = ConvexHeadClassifier(loss="softmax", beta=0.02).fit(X, y)
    assert logistic.loss_ == "logistic"
    assert np.mean(logistic.predict(X) == softmax.predict(X)) > 0.97
    margin = logistic.decision_function(X)
    assert ((margin > 0) == (logistic.predict(X) == logistic.classes_[1])).all()


def test_class_weight_moves_the_balance():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(400, 3)).astype(np.float32)
    y = (X[:, 0] + rng.normal(size=400) > 1.5).astype(int)
    plain = ConvexHeadClassifier(beta=0.05).fit(X, y)
    balanced = ConvexHeadClassifier(beta=0.05, class_weight="balanced").fit(X, y)
    assert balanced.predict(X).mean() > 1.5 * plain.predict(X).mean()


def test_not_converged_warns_with_the_gap(xor):
    X, y = xor
    head = ConvexHeadClassifier(beta=0.001, tolerance=1e-6, max_passes=5)
    with pytest.warns(ConvergenceWarning, match=r"relative gap .* raise max_passes"):
        head.fit(X, y)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n_gates": 0}, "at least 1"),
        ({"n_gates": 2.5}, "whole number"),
        ({"beta": -1}, "fraction"),
        ({"beta": "best"}, "auto"),
        ({"tolerance": 0}, "tolerance"),
        ({"loss": "hinge"}, "auto, .*softmax"),
        ({"min_spread": 2}, "below 1"),
        ({"min_spread": None}, "below 1"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(xor, options, word):
    X, y = xor
    with pytest.raises(ValueError, match=word) as caught:
        ConvexHeadClassifier(**options).fit(X, y)
    assert "\n" not in str(caught.value)


def test_unusable_rows_are_refused(xor):
    X, y = xor
    bad = X.copy()
    bad[3, 2] = np.nan
    for features, labels, word in [
        (bad, y, "NaN"),
        (X, np.full(len(X), "one"), "1 class"),
        (X[:10], y[:9], "inconsistent"),
        (X[:4], np.array(["a", 1, 2.0, "b"], object), r"several types \(number, str\)"),
        (X[:4], np.array(["a", None, "b", "b"], object), "is None: leave out rows"),
    ]:
        with pytest.raises(ValueError, match=word):
            ConvexHeadClassifier().fit(features, labels)
    with pytest.raises(ValueError, match="classes that y does not"):
        ConvexHeadClassifier().fit(X, y, X_val=X[:2], y_val=["new", "same"])
    with pytest.raises(ValueError, match="features"):
        ConvexHeadClassifier().fit(X, y, X_val=X[:2, :3], y_val=y[:2])


def test_regressor_fits_what_a_line_cannot():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(500, 3))
    y = 1e3 * np.abs(X[:, 0]) + 50
    head = ConvexHeadRegressor().fit(X[:400], y[:400])
    assert head.score(X[400:], y[400:]) > 0.9
    assert head.certificate_.relative_gap <= head.tolerance_
    both = ConvexHeadRegressor(beta=0.01, tolerance=1e-3).fit(X, np.c_[y, -y])
    np.testing.assert_allclose(both.predict(X)[:, 0], -both.predict(X)[:, 1], rtol=1e-2, atol=5)


def test_probabilities_with_temperature():
    z = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    hot = probabilities(z, "softmax", 10.0)
    cold = probabilities(z, "softmax", 0.1)
    assert (hot.max(axis=1) < cold.max(axis=1)).all()
    np.testing.assert_allclose(probabilities(z[:, :1], "logistic").sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(probabilities(z - 5, "squared").sum(axis=1), 1, rtol=1e-6)

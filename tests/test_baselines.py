"""The linear probe is converged, well chosen, and as good as scikit-learn's own search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tasks import baselines
from tasks.baselines import linear_probe


def blobs(n: int, d: int, C: int, *, seed: int = 0, spread: float = 2.0):
    """n rows of C overlapping Gaussian classes in d dimensions, float32."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    y[:C] = np.arange(C)
    centres = np.random.default_rng(99).normal(size=(C, d))
    return (centres[y] + spread * rng.normal(size=(n, d))).astype(np.float32), y


@pytest.mark.parametrize("C", [2, 4])
def test_probe_equals_a_cold_tight_fit_at_the_chosen_c(C: int) -> None:
    X, y = blobs(600, 12, C)
    X_val, y_val = blobs(300, 12, C, seed=1)
    probe = linear_probe(X, y, X_val, y_val)
    scaler = StandardScaler().fit(X.astype(np.float64))
    cold = LogisticRegression(C=probe.C, tol=1e-10, max_iter=10_000)
    cold.fit(scaler.transform(X), y)
    expected = cold.predict_proba(scaler.transform(X_val))
    found = probe.predict_proba(X_val)
    assert found.shape == (300, C)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert probe.validation_accuracy == np.mean(found.argmax(axis=1) == y_val)


def test_probe_is_as_good_as_scikit_learns_own_search_on_digits() -> None:
    X, y = load_digits(return_X_y=True)  # has constant columns
    X = X.astype(np.float32)
    train, val, test = slice(0, 1000), slice(1000, 1400), slice(1400, None)
    probe = linear_probe(X[train], y[train], X[val], y[val])
    scaler = StandardScaler().fit(X[train])
    # The rival: a dense cold-started search over C on the same validation rows.
    best = (-1.0, 0.0)
    for c in np.geomspace(1e-4, 1e2, 13):
        model = LogisticRegression(C=c, max_iter=5000).fit(scaler.transform(X[train]), y[train])
        score = model.score(scaler.transform(X[val]), y[val])
        if score > best[0]:
            best = (score, model.score(scaler.transform(X[test]), y[test]))
    assert probe.validation_accuracy >= best[0] - 0.0026  # one row of 400
    accuracy = np.mean(probe.predict_proba(X[test]).argmax(axis=1) == y[test])
    assert accuracy >= best[1] - 0.0076  # three rows of 397


def test_path_is_wide_and_every_setting_is_counted() -> None:
    X, y = blobs(120, 5, 3)
    calls: list[int] = []
    probe = linear_probe(X[:80], y[:80], X[80:], y[80:], progress=calls.append)
    assert probe.settings_tried == len(calls) == sum(calls)
    assert 8 <= probe.settings_tried <= baselines.SETTINGS == 12
    assert probe.seconds > 0
    path = baselines._C_TIMES_D / 5
    assert path.max() / path.min() == pytest.approx(1e4)
    assert any(np.isclose(probe.C, path))


def test_of_equal_validation_accuracies_the_smaller_c_wins() -> None:
    # Far apart: every C is right on every row.
    X, y = blobs(200, 4, 2, spread=0.01)
    probe = linear_probe(X[:150], y[:150], X[150:], y[150:])
    assert probe.validation_accuracy == 1.0
    assert pytest.approx(baselines._C_TIMES_D[0] / 4) == probe.C


def test_weak_regularisation_is_chosen_where_it_is_right() -> None:
    # Signal in one direction only, no noise: the larger the weights, the better the boundary.
    rng = np.random.default_rng(3)
    X = rng.normal(size=(4000, 10)).astype(np.float32)
    y = (X @ rng.normal(size=10) > 0.3).astype(int)
    probe = linear_probe(X[:300], y[:300], X[300:], y[300:])
    assert probe.C * 10 > 10
    assert probe.validation_accuracy > 0.96


def test_constant_and_nearly_constant_columns_change_nothing() -> None:
    X, y = blobs(400, 6, 3)
    noise = np.random.default_rng(7).normal(size=(400, 2)).astype(np.float32)
    dead = np.column_stack([np.zeros(400), np.full(400, 0.3), 0.3 + 1e-8 * noise, X]).astype(
        np.float32
    )
    a = linear_probe(X[:300], y[:300], X[300:], y[300:])
    b = linear_probe(dead[:300], y[:300], dead[300:], y[300:])
    assert np.isfinite(b.weights).all() and not b.weights[:4].any()
    # The path of C depends on the number of columns, so the two choices can differ a little.
    assert b.validation_accuracy == pytest.approx(a.validation_accuracy, abs=0.05)


def test_units_of_the_features_do_not_matter() -> None:
    X, y = blobs(300, 5, 3)
    units = np.array([1e-2, 1.0, 50.0, 1e2, 0.2], dtype=np.float32)
    a = linear_probe(X[:200], y[:200], X[200:], y[200:])
    b = linear_probe(units * X[:200] + 3, y[:200], units * X[200:] + 3, y[200:])
    np.testing.assert_allclose(
        a.predict_proba(X[200:]), b.predict_proba(units * X[200:] + 3), atol=2e-2
    )
    assert a.C == b.C


def test_a_class_without_training_rows_gets_probability_zero() -> None:
    X, y = blobs(200, 4, 3)
    y = np.where(y == 2, 3, y)  # class 2 never occurs
    probe = linear_probe(X[:150], y[:150], X[150:], y[150:], n_classes=5)
    p = probe.predict_proba(X)
    assert p.shape == (200, 5)
    assert not p[:, [2, 4]].any()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    assert np.mean(p.argmax(axis=1) == y) > 0.6


def test_test_rows_and_validation_rows_are_never_fitted() -> None:
    X, y = blobs(300, 4, 2)
    probe = linear_probe(X[:200], y[:200], X[200:], y[200:])
    other = linear_probe(X[:200], y[:200], X[200:], 1 - y[200:])  # nonsense labels to choose by
    again = LogisticRegression(C=other.C, tol=1e-9, max_iter=5000)
    Z = StandardScaler().fit_transform(X[:200])
    again.fit(Z, y[:200])
    np.testing.assert_allclose(other.weights[:, 1] - other.weights[:, 0], again.coef_[0], atol=2e-2)
    assert probe.validation_accuracy > other.validation_accuracy


def test_an_unconverged_choice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(300, 30, 4)
    init = LogisticRegression.__init__

    def impatient(self, *, max_iter: int = 100, **kwargs) -> None:
        init(self, max_iter=1, **kwargs)

    monkeypatch.setattr(LogisticRegression, "__init__", impatient)
    with pytest.warns(ConvergenceWarning, match="may be understated"):
        linear_probe(X[:200], y[:200], X[200:], y[200:])


@pytest.mark.parametrize(
    ("X", "y", "words"),
    [
        (np.zeros((4, 2)), np.zeros(4, dtype=int), "class"),
        (np.array([[np.nan], [1.0]]), np.array([0, 1]), "NaN"),
    ],
)
def test_unusable_rows_are_refused(X: np.ndarray, y: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        linear_probe(X, y, np.zeros((2, X.shape[1])), np.array([0, 1]))


def test_a_calibrated_probe_has_the_same_answers_and_a_lower_loss():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 5)).astype(np.float32)
    y = (X[:, 0] + rng.logistic(size=900) > 0).astype(int)
    probe = linear_probe(X[:40], y[:40], X[40:140], y[40:140])
    sharp = replace(probe, weights=200 * probe.weights, intercept=200 * probe.intercept)
    found = sharp.calibrated(X[40:140], y[40:140])
    assert found.temperature is not None and found.temperature > 2
    before, after = (each.predict_proba(X[140:]) for each in (sharp, found))
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))

    def nll(p):
        return -np.log(p[np.arange(len(p)), y[140:]]).mean()

    assert nll(after) < nll(before)


def test_a_class_that_the_probe_never_saw_stays_impossible_when_it_is_calibrated():
    X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = 2 * (X[:, 0] > 0).astype(int)
    probe = linear_probe(X, y, X, y, n_classes=3).calibrated(X, y)
    p = probe.predict_proba(X)
    assert (p[:, 1] == 0).all() and np.isfinite(p).all()

"""The linear probe from a stream is the one in memory: scikit-learn's program, path and choice."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from test_baselines import blobs

from convex_heads.limits import Limits
from convex_heads.sources import Shards
from tasks import streamed_probe as module
from tasks.baselines import LinearProbe, linear_probe
from tasks.streamed_probe import streamed_probe


def parts(C: int) -> tuple[Shards, np.ndarray, Shards, np.ndarray]:
    """Rows of overlapping classes, the last one rare; features far from zero."""
    X, y = blobs(700, 8, C, spread=3)
    few = (y < C - 1) | (np.arange(700) % 8 == 0)
    X, y = (100 + 5 * X[few]).astype("f"), y[few]
    cut = len(y) * 2 // 3
    return Shards([X[:50], X[50:cut]]), y[:cut], Shards([X[cut:]]), y[cut:]


def objective(probe: LinearProbe, X: np.ndarray, y: np.ndarray) -> float:
    """Scikit-learn's, over n C, in double precision."""
    p = probe.predict_proba(X.astype(np.float64))
    # Of two classes the weights of the second alone count.
    square = float((probe.weights.astype(np.float64) ** 2).sum())
    return -float(np.log(p[np.arange(len(y)), y]).mean()) + square / (2 * len(y) * probe.C)


@pytest.mark.parametrize("C", [2, 4])
def test_it_is_the_optimum_of_scikit_learns_objective_at_the_chosen_c(C: int) -> None:
    X, y, X_val, y_val = parts(C)
    probe = streamed_probe(X, y, X_val, y_val)
    Z = probe.scaling.transform(X[:].astype(np.float64))[:, :-1]
    tight = LogisticRegression(C=probe.C, tol=1e-10, max_iter=10_000).fit(Z, y)
    expected = -float(np.log(tight.predict_proba(Z)[np.arange(len(y)), y]).mean())
    expected += float((tight.coef_**2).sum()) / (2 * len(y) * probe.C)
    found = objective(probe, X[:], y)
    assert expected * (1 - 1e-6) <= found <= expected * (1 + 2e-4)
    # The intercept too, though the classes' shares are far apart.
    wanted = tight.predict_proba(probe.scaling.transform(X_val[:].astype(np.float64))[:, :-1])
    found_p = probe.predict_proba(X_val)
    assert found_p.shape == (len(y_val), C)
    np.testing.assert_allclose(found_p, wanted, atol=1e-2)
    assert probe.validation_accuracy == np.mean(found_p.argmax(axis=1) == y_val)


@pytest.mark.parametrize("C", [2, 4])
def test_balanced_classes_are_scikit_learns(C: int) -> None:
    X, y, X_val, y_val = parts(C)
    probe = streamed_probe(X, y, X_val, y_val, class_weight="balanced")
    Z = probe.scaling.transform(X[:].astype(np.float64))[:, :-1]
    model = LogisticRegression(C=probe.C, tol=1e-10, max_iter=10_000, class_weight="balanced")
    wanted = model.fit(Z, y).predict_proba(Z)
    np.testing.assert_allclose(probe.predict_proba(X), wanted, atol=1e-2)
    assert np.abs(streamed_probe(X, y, X_val, y_val).predict_proba(X) - wanted).max() > 0.1


@pytest.mark.parametrize("C", [2, 4])
def test_it_goes_the_way_of_the_probe_in_memory(C: int) -> None:
    X, y, X_val, y_val = parts(C)
    calls: list[int] = []
    probe = streamed_probe(X, y, X_val, y_val, progress=calls.append)
    wanted = linear_probe(X[:], y, X_val[:], y_val)
    assert probe.settings_tried == len(calls) >= 8
    assert abs(probe.validation_accuracy - wanted.validation_accuracy) <= 1.5 / len(y_val)
    np.testing.assert_array_equal(probe.scaling.mean, wanted.scaling.mean)
    if probe.C == wanted.C:
        assert objective(probe, X[:], y) == pytest.approx(objective(wanted, X[:], y), rel=2e-4)
    # Rows of the same kind are told apart as well.
    X_test, y_test = blobs(2000, 8, C, spread=3, seed=5)
    X_test = (100 + 5 * X_test).astype("f")
    right = [np.mean(each.predict_proba(X_test).argmax(1) == y_test) for each in (probe, wanted)]
    assert right[0] == pytest.approx(right[1], abs=0.02)


def test_a_class_without_training_rows_gets_probability_zero() -> None:
    X, y, X_val, y_val = parts(3)
    y, y_val = np.where(y == 2, 4, y), np.where(y_val == 2, 4, y_val)
    p = streamed_probe(X, y, X_val, y_val, n_classes=6).predict_proba(X_val)
    assert p.shape == (len(y_val), 6) and not p[:, [2, 3, 5]].any()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"at least two classes; got \[0\]"):
        streamed_probe(X, 0 * y, X_val, y_val)


def test_an_unconverged_choice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIMITS", Limits(tolerance=1e-9, max_passes=2))
    with pytest.warns(ConvergenceWarning, match="stopped at a relative gap of .* understated"):
        streamed_probe(*parts(4))

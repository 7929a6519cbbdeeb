"""What fits and solves refuse before they compute; how they end where figures are no numbers."""

from __future__ import annotations

import jax
import numpy as np
import pandas as pd
import pytest

from convex_heads import (
    ConvexHeadClassifier,
    ConvexHeadRegressor,
    Limits,
    Options,
    Shards,
    Status,
    solve,
)

RNG = np.random.default_rng(0)
X = np.c_[RNG.normal(size=(80, 3)), np.ones(80)].astype(np.float32)
LABEL = (X[:, 0] * X[:, 1] > 0).astype(int)
Y = np.eye(2, dtype=np.float32)[LABEL]
KEY = jax.random.key(0)


class Endless(Exception):
    """Records without end."""


def solved(features, targets, **options):
    """A solve of at most 50 passes, which may not tell of itself more than 100 times."""
    seen = []

    def on_record(record) -> None:
        seen.append(record)
        if len(seen) > 100:
            raise Endless

    asked = Options(beta=0.1, n_gates=8, limits=Limits(max_passes=50), **options)
    return solve(features, targets, asked, KEY, on_record=on_record)


def with_entry(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[3, 0] = value
    return changed


@pytest.mark.parametrize(
    ("features", "targets", "options", "words"),
    [
        (with_entry(X, np.nan), Y, {}, "X must hold finite features"),
        (with_entry(X, np.inf), Y, {}, "X must hold finite features"),
        (Shards([with_entry(X, np.nan)]), Y, {}, "first in row 3"),
        (X.astype(str), Y, {}, "real numbers"),
        (X, with_entry(Y, np.nan), {}, "Y must hold finite targets"),
        (X, with_entry(Y, np.nan), {"loss": "squared"}, "Y must hold finite targets"),
        (X, RNG.dirichlet(np.ones(2), size=80), {}, "0 or 1"),
        (X, np.ones((80, 2)), {}, "one-hot"),
        (X, RNG.integers(0, 3, size=(80, 1)), {"loss": "logistic"}, "0 or 1"),
    ],
)
def test_solve_refuses_what_it_has_no_bound_for(features, targets, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        solved(features, targets, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("penalty", ["group", "ridge"])
@pytest.mark.parametrize("solver", ["auto", "fista"])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_solve_whose_figures_are_no_numbers_ends_and_says_so(penalty, solver):
    features = X * np.array([1e25, 1, 1, 1], np.float32)
    assert solved(features, Y, penalty=penalty, solver=solver).status is Status.BROKEN
    huge = Y * np.float32(1e25)
    solution = solved(X, huge, loss="squared", penalty=penalty, solver=solver)
    assert solution.status is Status.BROKEN
    assert "check X and Y" in solution.status.value


def test_a_traced_solve_whose_figures_are_no_numbers_says_so():
    from convex_heads.traced import status_of

    asked = Options(beta=0.1, n_gates=4, loss="squared")
    solution = jax.jit(lambda targets: solve(X, targets, asked, KEY))(Y * np.float32(1e25))
    assert status_of(solution.status) is Status.BROKEN


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_solve_takes_features_and_targets_of_any_kind_of_number(dtype):
    features = np.c_[RNG.integers(-3, 4, size=(80, 3)), np.ones(80)]
    expected = solved(features.astype(np.float32), Y)
    found = solved(features.astype(dtype), Y.astype(int))
    assert found.value.dtype == expected.value.dtype
    np.testing.assert_array_equal(found.value, expected.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_seconds": float("nan")},
        {"max_seconds": "5"},
        {"max_passes": float("nan")},
        {"max_passes": "5"},
        {"max_passes": None},
        {"tolerance": None},
        {"tolerance": float("nan")},
        {"beta": float("nan")},
        {"beta": None},
        {"n_gates": None},
        {"n_gates": float("nan")},
        {"penalty": None},
        {"solver": 3},
    ],
)
def test_options_that_are_no_numbers_are_refused_in_one_sentence(wrong):
    name = next(iter(wrong))
    options = Limits if name in ("max_seconds", "max_passes", "tolerance") else Options
    with pytest.raises(ValueError, match=name) as caught:
        options(**wrong)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=name):
        ConvexHeadClassifier(**{"beta": 0.1, "n_gates": 4} | wrong).fit(X, LABEL)


def test_validation_columns_are_matched_by_name():
    rows = RNG.normal(size=(300, 3))
    label = (rows[:, 0] + rows[:, 1] ** 2 > 1).astype(int)
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    train, val = frame[:200], frame[200:]
    head = ConvexHeadClassifier(n_gates=4, beta=[0.1, 0.01])
    head.fit(train, label[:200], X_val=val, y_val=label[200:])
    with pytest.raises(ValueError, match="same order"):
        head.fit(train, label[:200], X_val=val[["c", "b", "a"]], y_val=label[200:])
    with pytest.raises(ValueError, match="X_val has 2 features"):
        head.fit(train, label[:200], X_val=val[["a", "b"]], y_val=label[200:])


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_class_weights_that_are_no_weights_are_refused(weight):
    head = ConvexHeadClassifier(n_gates=4, beta=0.1, class_weight={0: weight, 1: 1.0})
    with pytest.raises(ValueError, match="class_weight must"):
        head.fit(X, LABEL)


def test_a_class_that_weighs_nothing_is_no_class():
    for weights, words in (({0: 0.0, 1: 1.0}, "1 class, "), ({0: 0.0, 1: 0.0}, "0 classes")):
        head = ConvexHeadClassifier(n_gates=4, beta=0.1, class_weight=weights)
        with pytest.raises(ValueError, match=f"at least 2 classes.*{words}"):
            head.fit(X, LABEL)


def test_validation_targets_of_another_width_are_refused_before_the_solve():
    def on_record(record) -> None:
        raise AssertionError("solved first")

    head = ConvexHeadRegressor(n_gates=4, beta=[0.1, 0.01])
    with pytest.raises(ValueError, match="y_val must hold finite targets, 2 for each row"):
        head.fit(X, X[:, :2], X_val=X, y_val=X[:, 0], on_record=on_record)


def test_a_refit_that_fails_leaves_the_head_that_was_there():
    class Stop(Exception):
        pass

    def on_record(record) -> None:
        raise Stop

    head = ConvexHeadClassifier(n_gates=4, beta=0.1).fit(X, np.array(["no", "yes"])[LABEL])
    before = head.predict(X)
    with pytest.raises(Stop):
        head.fit(X[:, :2], LABEL + 5, on_record=on_record)
    np.testing.assert_array_equal(head.predict(X), before)
    with pytest.raises(ValueError, match="at least 2 classes"):
        head.fit(X, np.zeros(80))
    assert head.classes_.tolist() == ["no", "yes"]

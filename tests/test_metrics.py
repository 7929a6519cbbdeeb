"""Metrics against formulas written out by hand, and their limits."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import top_k_accuracy_score

from tasks.metrics import evaluate, mcnemar, reliability


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Distributions over 2 to 6 classes and labels, of 1 to 40 rows; not every class occurs."""
    n, C = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    raw = draw(arrays(np.float64, (n, C), elements=st.floats(0.0, 1.0)))
    p = (raw + 1e-3) / (raw + 1e-3).sum(axis=1, keepdims=True)
    return p, draw(arrays(np.int64, n, elements=st.integers(0, C - 1)))


@given(predictions())
def test_metrics_are_what_their_definitions_say(case: tuple[np.ndarray, np.ndarray]) -> None:
    p, y = case
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = evaluate(p, y)
    said = p.argmax(axis=1)
    n = len(y)
    assert m.n == n
    assert m.accuracy == np.mean(said == y)
    assert math.isclose(m.nll, -np.mean(np.log(p[np.arange(n), y])), rel_tol=1e-9)

    def f1(c: int) -> float:
        return 2 * np.sum((said == c) & (y == c)) / (np.sum(said == c) + np.sum(y == c))

    assert math.isclose(m.macro_f1, np.mean([f1(c) for c in np.union1d(said, y)]))
    recalls = [np.mean(said[y == c] == c) for c in np.unique(y)]
    assert math.isclose(m.balanced_accuracy, np.mean(recalls))
    low, high = m.accuracy_interval
    assert 0 <= low <= m.accuracy <= high <= 1


@given(predictions(), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(case: tuple[np.ndarray, np.ndarray], random) -> None:
    p, y = case
    order = list(range(len(y)))
    random.shuffle(order)
    a, b = evaluate(p, y), evaluate(p[order], y[order])
    assert a.accuracy_interval == b.accuracy_interval
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece"):
        assert math.isclose(getattr(a, name), getattr(b, name), abs_tol=1e-12)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (7, 10), (952, 1000)])
def test_interval_is_wilsons(right: int, n: int) -> None:
    y = np.zeros(n, dtype=int)
    p = np.tile([0.1, 0.9], (n, 1))
    p[:right] = [0.9, 0.1]
    z, share = 1.959963984540054, right / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert evaluate(p, y).accuracy_interval == pytest.approx((centre - half, centre + half))


@given(predictions(), st.integers(1, 20))
def test_ece_is_the_weighted_distance_of_the_bins(
    case: tuple[np.ndarray, np.ndarray], n_bins: int
) -> None:
    p, y = case
    p = p / p.sum(axis=1, keepdims=True)  # as the product does: a bin's edge forgives no rounding
    top, right = p.max(axis=1), p.argmax(axis=1) == y
    r = reliability(case[0], y, n_bins=n_bins)
    assert r.counts.sum() == len(y)
    expected = 0.0
    for k in range(n_bins):
        here = (top > r.edges[k]) & (top <= r.edges[k + 1])
        assert r.counts[k] == here.sum()
        if here.any():
            assert math.isclose(r.confidence[k], top[here].mean())
            assert math.isclose(r.accuracy[k], right[here].mean())
            expected += here.mean() * abs(top[here].mean() - right[here].mean())
        else:
            assert np.isnan(r.accuracy[k])
    assert math.isclose(r.ece, expected, abs_tol=1e-12)


def test_ece_of_a_calibrated_forecast_is_small_and_of_a_boast_is_not() -> None:
    rng = np.random.default_rng(0)
    top = rng.uniform(0.5, 1.0, 50_000)
    y = (rng.uniform(size=top.size) > top).astype(int)
    assert evaluate(np.column_stack([top, 1 - top]), y).ece < 0.01
    boast = np.where(top > 0.5, 0.999, top)
    assert evaluate(np.column_stack([boast, 1 - boast]), y).ece > 0.2


def test_certain_and_wrong_has_a_finite_nll() -> None:
    m = evaluate([[1.0, 0.0], [1.0, 0.0]], [0, 1])
    assert m.accuracy == 0.5 and math.isfinite(m.nll) and m.nll > 10


def test_float32_softmax_over_many_classes_is_accepted() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32) * 10
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert evaluate(p, np.zeros(50, dtype=np.int8)).n == 50


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        ([[0.5, 0.5]], [0, 1], "one label per row"),
        ([0.5, 0.5], [0, 1], r"\(n, C\)"),
        ([[1.0], [1.0]], [0, 0], "C >= 2"),
        (np.empty((0, 2)), np.empty(0, dtype=int), "no rows"),
        ([[0.5, 0.5]], [0.0], "integers"),
        ([[0.5, 0.5]], [2], "0 to 1"),
        ([[0.5, 0.5]], [-1], "0 to 1"),
        ([[0.5, 0.6]], [0], "sum to 1"),
        ([[1.5, -0.5]], [0], "non-negative"),
        ([[np.nan, 1.0]], [0], "finite"),
    ],
)
def test_what_is_no_prediction_is_refused(probabilities, labels, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(probabilities, labels)


def test_reliability_needs_a_bin() -> None:
    with pytest.raises(ValueError, match="at least 1 bin"):
        reliability([[0.5, 0.5]], [0], n_bins=0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_is_the_two_sided_sign_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    t = mcnemar(first, second)
    assert t.only_first == sum(a and not b for a, b in pairs)
    assert t.only_second == sum(b and not a for a, b in pairs)
    n, k = t.only_first + t.only_second, min(t.only_first, t.only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert math.isclose(t.p_value, min(1.0, 2 * tail))
    assert mcnemar(second, first).p_value == t.p_value


def test_mcnemar_ignores_rows_on_which_both_agree() -> None:
    first, second = np.array([True] * 9 + [False]), np.array([False] * 9 + [True])
    agreed = np.ones(500, dtype=bool)
    longer = mcnemar(np.append(first, agreed), np.append(second, agreed))
    assert longer == mcnemar(first, second)
    with pytest.raises(ValueError, match="shape"):
        mcnemar(first, second[:-1])


def test_top_5_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(20), 200), rng.integers(20, size=200)
    expected = top_k_accuracy_score(y, p, k=5, labels=np.arange(20))
    assert evaluate(p, y).top5_accuracy == pytest.approx(expected)
    # Classes that a head cannot tell apart are as probable, and argmax takes the first of them.
    ties = np.repeat(p[:, :4], 5, axis=1)
    measured = evaluate(ties / ties.sum(axis=1, keepdims=True), y)
    assert measured.top5_accuracy == pytest.approx(np.mean(p[:, :4].argmax(axis=1) == y // 5))
    assert measured.accuracy <= measured.top5_accuracy
    few = p[:, :6] / p[:, :6].sum(axis=1, keepdims=True)
    assert evaluate(few, y % 6).top5_accuracy is None

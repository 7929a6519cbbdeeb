"""Paired tests of methods are right, and the words of the verdict follow from them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tasks.comparison.paired import compare_right, holm
from tasks.comparison.verdict import verdict
from tasks.metrics import mcnemar


def right(rates: dict[str, float], n: int = 3000, K: int = 3, noise: float = 0.02) -> dict:
    """Methods that agree on which rows are hard, but for some noise."""
    rng = np.random.default_rng(1)
    hard = rng.random(n)
    return {m: hard + noise * rng.normal(size=(K, n)) < rate for m, rate in rates.items()}


def test_holm_is_that_of_its_definition() -> None:
    p = [0.001, 0.2, 0.012, 0.04]
    assert holm(p) == pytest.approx([0.004, 0.2, 0.036, 0.08])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_real_difference_is_found_and_none_is_not() -> None:
    found = compare_right(right({"linear": 0.8, "convex": 0.83, "ridge": 0.8}))
    better = found.pair("convex", "linear")
    assert better.better == "convex"
    assert better.interval[0] < better.difference < better.interval[1]
    assert found.pair("linear", "convex").difference == -better.difference
    assert found.pair("ridge", "linear").better is None
    assert better.permutation_p == pytest.approx(0.25)  # 2 / 2^3: three seeds can show no more
    assert compare_right(right({"linear": 0.8, "convex": 0.8}, K=1)).pairs[0].permutation_p is None


def test_the_test_over_rows_is_mcnemars_with_one_seed_and_exact_with_more() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 1, 200)) < 0.8
    (pair,) = compare_right({"a": a, "b": b}).pairs
    assert pair.rows_p == pytest.approx(mcnemar(a[0], b[0]).p_value) == pair.mcnemar_p
    # Every sign of twelve rows, counted one by one.
    a, b = rng.random((2, 3, 12)) < 0.6
    d = a.sum(axis=0) - b.sum(axis=0).astype(int)
    signs = np.array(list(itertools.product([-1, 1], repeat=12)))
    share = np.mean(np.abs(signs @ d) >= abs(d.sum()))
    assert compare_right({"a": a, "b": b}).pairs[0].rows_p == pytest.approx(share)


def test_intervals_cover_what_they_should() -> None:
    # 60 experiments with a true difference of zero, seeds and rows random in each.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        hard, shift = rng.random(300), 0.02 * rng.normal(size=(2, 4, 1))
        a, b = (hard + 0.1 * rng.normal(size=(4, 300)) + s < 0.8 for s in shift)
        low, high = compare_right({"a": a, "b": b}).pairs[0].interval
        covered += low <= 0 <= high
    assert covered >= 53  # 57 are expected; fewer than 53 would happen once in 40 times


def test_what_no_row_has_shown_is_not_excluded() -> None:
    # 24 rows that both get right: the share of rows that tell them apart may be 11.7 points.
    same = compare_right({"linear": np.ones((5, 24), bool), "convex": np.ones((5, 24), bool)})
    unseen = 1 - 0.05 ** (1 / 24)
    assert same.pairs[0].interval == pytest.approx((-unseen, unseen))
    assert same.means["convex"].interval == pytest.approx((0.862, 1), abs=1e-3)  # Wilson's
    text = " ".join(verdict(same, {"linear": 2.0, "convex": 1.0}))
    assert "-0.0" not in text
    assert "is enough" not in text
    assert "cannot exclude a gain of up to 11.7 points" in text
    # One row lost says as little about rows that might be gained.
    lost = np.ones((1, 24), bool)
    lost[0, 3] = False
    pair = compare_right({"linear": np.ones((1, 24), bool), "convex": lost}).pair(
        "convex", "linear"
    )
    assert pair.interval[1] == pytest.approx(unseen - 1 / 24)
    # So many rows are enough to exclude a gain of one point.
    many = {name: np.ones((1, 400), bool) for name in ("linear", "convex")}
    assert "is enough" in " ".join(verdict(compare_right(many), {"linear": 2.0, "convex": 1.0}))


def test_verdict_follows_the_tests_and_not_the_order_of_two_numbers() -> None:
    seconds = {"linear": 2.0, "convex": 6.0, "mlp": 30.0, "tfidf": 1.0}
    said = verdict(compare_right(right({"linear": 0.80, "convex": 0.84})), seconds)
    assert said[0].startswith("The convex head beats the linear probe by 4.")
    assert said[0].endswith("at 3 times its time without compiling.")
    close = compare_right(right({"linear": 0.8, "convex": 0.805}, n=300, noise=0.1))
    assert close.pairs[0].difference != 0
    text = " ".join(verdict(close, seconds))
    assert "No difference in accuracy between the convex head and the linear probe" in text
    assert "beats" not in text
    assert "cannot exclude a gain of up to" in text  # 300 rows are too few for "is enough"
    many = compare_right(right({"linear": 0.8, "convex": 0.8}, n=20_000, noise=0.001))
    assert "The linear probe is enough" in " ".join(verdict(many, seconds))
    lost = verdict(compare_right(right({"linear": 0.84, "convex": 0.8})), seconds)
    assert lost[0].startswith("The convex head loses to the linear probe by 4.")


def test_verdict_says_when_words_alone_are_better() -> None:
    found = compare_right(right({"linear": 0.75, "convex": 0.76, "tfidf": 0.9}))
    seconds = dict.fromkeys(found.means, 1.0)
    text = " ".join(verdict(found, seconds, {"lora": "it is not there"}))
    assert "Words alone are better than these features" in text
    assert "Not compared: LoRA (it is not there)." in text
    # On another backbone it could not run; here it did.
    assert "Not compared" not in " ".join(verdict(found, seconds, {"tfidf": "it is not there"}))

"""Standardisation and the canonical training set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convex_heads.scaling import Scaling, canonical


def test_columns_get_mean_zero_and_spread_one_under_the_weights():
    rng = np.random.default_rng(0)
    X = rng.normal(5, 3, size=(200, 4)).astype(np.float32)
    omega = rng.uniform(0, 2, 200)
    Z = Scaling.fit(X, omega).transform(X).astype(np.float64)
    np.testing.assert_allclose(np.average(Z[:, :-1], axis=0, weights=omega), 0, atol=1e-5)
    np.testing.assert_allclose(np.average(Z[:, :-1] ** 2, axis=0, weights=omega), 1, rtol=1e-4)
    assert (Z[:, -1] == 1).all()


def test_constant_columns_become_zero_and_round_off_counts_as_constant():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(100, 4)).astype(np.float32) * 0.05
    X[:, 1] = 4.4e-34
    X[:, 2] = np.float32(0.3) + np.spacing(np.float32(0.3)) * rng.integers(-2, 3, 100)
    X[:, 3] = 0
    scaling = Scaling.fit(X, np.ones(100))
    assert scaling.keep.tolist() == [True, False, False, False]
    Z = scaling.transform(X)
    assert not Z[:, 1:4].any()
    assert Z[:, 0].std() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-33, 1e-8, 1e-6, 1e6, 1e30])
def test_a_column_is_judged_by_itself_and_not_by_the_others(scale):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(100, 3)).astype(np.float32)
    X[:, 1] = scale * (X[:, 1] - 5)
    Z = Scaling.fit(X, np.ones(100)).transform(X)
    np.testing.assert_allclose(Z[:, :3].std(axis=0), 1, rtol=1e-3)


def test_of_columns_of_one_unit_those_that_are_all_but_zero_are_left_out():
    sizes = np.array([1e-33, 1e-8, 1e-4, 1, 1, 1, 1e4], np.float32)
    X = sizes * np.random.default_rng(2).normal(size=(200, 7)).astype(np.float32)
    # Constant columns say nothing about the unit, however many they are.
    X = np.concatenate([X, np.full((200, 20), 3, np.float32)], axis=1)
    scaling = Scaling.fit(X, np.ones(200), 2**-16)
    assert np.flatnonzero(scaling.keep).tolist() == [2, 3, 4, 5, 6]
    assert (scaling.scale[~scaling.keep] == 1).all()
    Z = scaling.transform(X)
    assert not Z[:, :-1][:, ~scaling.keep].any()
    np.testing.assert_allclose(Z[:, 2:7].std(axis=0), 1, rtol=1e-3)


def test_a_large_mean_does_not_swallow_the_spread():
    X = (1e4 + np.random.default_rng(2).normal(size=(1000, 1))).astype(np.float32)
    assert Scaling.fit(X, np.ones(1000)).scale[0] == pytest.approx(
        X.std(dtype=np.float64), rel=1e-3
    )


@given(seed=st.integers(0, 1000))
def test_weights_repeats_and_order_give_the_same_problem(seed):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 3, size=(12, 2)).astype(np.float32)
    y = rng.integers(0, 2, size=(12, 1)).astype(np.float32)
    times = rng.integers(0, 4, size=12)
    order = rng.permutation(12)
    weighted = canonical(X[order], y[order], times[order])
    repeated = canonical(X.repeat(times, 0), y.repeat(times, 0), np.ones(times.sum()))
    for first, second in zip(weighted, repeated, strict=True):
        np.testing.assert_array_equal(first, second)
    assert weighted.weight.sum() == times.sum()


def test_the_held_out_share_depends_on_the_features_alone():
    X = np.random.default_rng(3).normal(size=(2000, 2)).astype(np.float32)
    first = canonical(X, np.zeros((2000, 1)), np.ones(2000))
    second = canonical(X, np.ones((2000, 1)), np.ones(2000))
    assert sorted(first.uniform) == sorted(second.uniform)
    assert np.mean(first.uniform < 0.15) == pytest.approx(0.15, abs=0.03)


def test_minus_zero_is_zero():
    X = np.array([[0.0], [-0.0]], np.float32)
    assert len(canonical(X, np.ones((2, 1)), np.ones(2)).X) == 1

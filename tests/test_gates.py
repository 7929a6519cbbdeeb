"""Gates and patterns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convex_heads import ConvexHeadClassifier, Options, solve
from convex_heads.gated import prepare
from convex_heads.gates import (
    SAMPLERS,
    WeightedRows,
    activation_patterns,
    distinct_patterns,
    sample_gates,
)
from convex_heads.losses import SQUARED


def _features(seed=0, n=60, d=5):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32) * np.linspace(0.5, 2, d, dtype=np.float32)
    X[:, -1] = 1
    return X


def _draw(sampler, X, P=8, seed=0, omega=None):
    omega = np.ones(len(X)) if omega is None else omega
    moment = jnp.asarray((X.T * (omega / omega.sum())) @ X, X.dtype)
    rows = WeightedRows(X, omega)
    return np.asarray(sample_gates(jax.random.key(seed), moment, P, sampler=sampler, rows=rows))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_starts_with_the_always_on_gate_and_cuts_the_data(sampler):
    X = _features(n=2000)
    gates = _draw(sampler, X, P=20)
    D = np.asarray(activation_patterns(jnp.asarray(X), jnp.asarray(gates)))
    assert gates.shape == (20, 5)
    assert gates.dtype == np.float32
    assert np.isfinite(gates).all()
    assert D[:, 0].all()
    cut = D[:, 1:].mean(axis=0)
    assert ((cut > 0) & (cut < 1)).all()
    assert (np.unique(gates, axis=0, return_counts=True)[1] == 1).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_draws_the_same_gates_and_another_seed_others(sampler):
    X = _features()
    np.testing.assert_array_equal(_draw(sampler, X), _draw(sampler, X))
    assert (_draw(sampler, X)[1:] != _draw(sampler, X, seed=1)[1:]).any(axis=1).all()


@pytest.mark.parametrize("sampler", ["aligned", "gaussian", "geometric"])
def test_hyperplanes_without_threshold_pass_through_the_mean(sampler):
    assert not _draw(sampler, _features())[1:, -1].any()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_head_depends_neither_on_the_order_of_rows_nor_on_how_a_row_is_repeated(sampler):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 4)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    order = rng.permutation(len(X))
    head = ConvexHeadClassifier(gates=sampler, n_gates=8, beta=0.1)
    once = head.fit(X, y, 1 + (np.arange(150) < 20)).decision_function(X)
    repeated = np.r_[order, np.arange(20)]
    again = head.fit(X[repeated], y[repeated]).decision_function(X)
    np.testing.assert_array_equal(once, again)


def test_prepared_patterns_are_distinct_and_the_first_is_always_on():
    X = _features(n=6, d=3)  # so few rows that patterns must coincide
    for sampler in SAMPLERS:
        prepared = prepare(X, X[:, :1], np.ones(6), SQUARED, 200, jax.random.key(0), sampler)
        D = X @ prepared.gates.T >= 0
        assert D[:, 0].all()
        assert len(np.unique(D, axis=1).T) == D.shape[1] < 200


@pytest.mark.parametrize(
    ("sampler", "expected"), [("aligned", [9.0, 1.0]), ("gaussian", [1.0, 1.0])]
)
def test_covariance_of_the_draw(sampler, expected):
    moment = jnp.diag(jnp.asarray([9.0, 1.0, 1.0], jnp.float32))
    gates = np.asarray(sample_gates(jax.random.key(1), moment, 20_001, sampler=sampler))[1:, :2]
    np.testing.assert_allclose(np.cov(gates.T), np.diag(expected), atol=0.3)


def test_geometric_gates_are_distributed_like_cross_products_of_sketched_rows():
    X = _features(n=40, d=4)
    Z = X[:, :3].astype(np.float64)
    rng = np.random.default_rng(0)
    # The definition: two rows of a Gaussian sketch and the vector orthogonal to both.
    pairs = rng.normal(size=(20_000, 2, 40)) @ Z
    crossed = np.cross(pairs[:, 0], pairs[:, 1])
    drawn = _draw("geometric", X, P=20_001)[1:, :3]

    def second_moment(g):
        g = g / np.linalg.norm(g, axis=1, keepdims=True)
        return g.T @ g / len(g)

    np.testing.assert_allclose(second_moment(drawn), second_moment(crossed), atol=0.015)
    # and it is no other sampler's distribution
    aligned = _draw("aligned", X, P=20_001)[1:, :3]
    assert np.abs(second_moment(aligned) - second_moment(crossed)).max() > 0.1


def test_geometric_gates_stay_in_the_span_of_the_data():
    X = _features(n=40, d=6)
    X[:, 3] = X[:, 0] + X[:, 1]  # the span is orthogonal to (1, 1, 0, -1, 0)
    gates = _draw("geometric", X, P=50)[1:, :-1]
    outside = gates @ np.array([1, 1, 0, -1, 0]) / np.sqrt(3)
    assert np.abs(outside).max() < 1e-3 * np.linalg.norm(gates, axis=1).min()


def test_pairs_are_half_way_between_two_rows_drawn_by_weight():
    X = _features(n=12)
    omega = np.ones(12)
    omega[[2, 7]] = 0
    gates = _draw("pairs", X, P=400, omega=omega)[1:]
    Z = X[:, :-1]
    difference = Z[:, None] - Z[None]
    distance = np.abs(gates[:, None, None, :-1] - difference).max(axis=-1).reshape(len(gates), -1)
    first, second = np.unravel_index(distance.argmin(axis=1), (12, 12))
    np.testing.assert_allclose(distance.min(axis=1), 0, atol=1e-5)
    middle = np.c_[(Z[first] + Z[second]) / 2, np.ones(len(gates))]
    np.testing.assert_allclose(np.sum(gates * middle, axis=1), 0, atol=1e-4)
    assert (first != second).all()
    assert set(first) | set(second) == set(range(12)) - {2, 7}


def test_the_draw_does_not_depend_on_how_eigenvectors_come_out():
    # Two equal eigenvalues: their eigenvectors are arbitrary, the symmetric root is not.
    moment = np.diag([2.0, 2.0, 1.0, 1.0]).astype(np.float32)
    tilted = moment.copy()
    tilted[0, 1] = tilted[1, 0] = 1e-6
    key = jax.random.key(2)
    for sampler in ("aligned", "gaussian", "geometric"):
        first = np.asarray(sample_gates(key, jnp.asarray(moment), 50, sampler=sampler))
        second = np.asarray(sample_gates(key, jnp.asarray(tilted), 50, sampler=sampler))
        np.testing.assert_allclose(first, second, atol=1e-4)


def test_distinct_patterns_keeps_the_first_of_each():
    D = np.array([[1, 0, 1, 0, 1], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
    assert distinct_patterns(D).tolist() == [0, 1, 4]


def test_solve_draws_as_its_options_say():
    X = _features(n=80)
    Y = np.abs(X[:, :1])
    options = Options(beta=0.1, n_gates=6, loss="squared", gates="pairs")
    solution = solve(X, Y, options, jax.random.key(3))
    np.testing.assert_array_equal(solution.gates, _draw("pairs", X, P=6, seed=3))


def test_refusals_say_what_would_be_right():
    X = _features()
    with pytest.raises(ValueError, match="gates must be one of aligned, gaussian, geometric"):
        Options(gates="random")
    with pytest.raises(ValueError, match="gates must be one of"):
        ConvexHeadClassifier(gates="random").fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match="pass rows="):
        sample_gates(jax.random.key(0), jnp.eye(3), 4, sampler="pairs")

"""Gates and patterns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from convex_heads.gates import activation_patterns, distinct_patterns, sample_gates


def _moment(seed=0, d=5):
    A = np.random.default_rng(seed).normal(size=(50, d)).astype(np.float32)
    A[:, -1] = 1
    return A.T @ A / 50


def test_first_gate_is_always_on_and_the_others_pass_through_the_mean():
    gates = np.asarray(sample_gates(jax.random.key(0), jnp.asarray(_moment()), 8))
    X = np.c_[np.random.default_rng(1).normal(size=(100, 4)), np.ones(100)].astype(np.float32)
    patterns = np.asarray(activation_patterns(jnp.asarray(X), jnp.asarray(gates)))
    assert patterns[:, 0].all()
    assert not gates[1:, -1].any()
    assert (patterns[:, 1:].mean(axis=0) > 0.05).all()


def test_gates_follow_the_covariance_of_the_data():
    moment = np.diag([9.0, 1.0, 0.0, 1.0]).astype(np.float32)
    gates = np.asarray(sample_gates(jax.random.key(1), jnp.asarray(moment), 20_001))[1:, :3]
    np.testing.assert_allclose(np.cov(gates.T), np.diag([9.0, 1.0, 0.0]), atol=0.3)


def test_the_draw_does_not_depend_on_how_eigenvectors_come_out():
    # Two equal eigenvalues: their eigenvectors are arbitrary, the symmetric root is not.
    moment = np.diag([2.0, 2.0, 1.0, 1.0]).astype(np.float32)
    tilted = moment.copy()
    tilted[0, 1] = tilted[1, 0] = 1e-6
    key = jax.random.key(2)
    first = np.asarray(sample_gates(key, jnp.asarray(moment), 50))
    second = np.asarray(sample_gates(key, jnp.asarray(tilted), 50))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_distinct_patterns_keeps_the_first_of_each():
    D = np.array([[1, 0, 1, 0, 1], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
    assert distinct_patterns(D).tolist() == [0, 1, 4]

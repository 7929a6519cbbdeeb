"""The group penalty: its prox really minimises, in any diagonal metric."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convex_heads.penalties import dual_norm, group_l21, group_norms, prox_group_l21

pytestmark = pytest.mark.x64


def _objective(V, A, h, t):
    quadratic = 0.5 * np.sum(h[None, :, None] * (V - A) ** 2, axis=(1, 2))
    return quadratic + t * np.sqrt(np.sum(V**2, axis=(1, 2)))


@given(seed=st.integers(0, 10_000), log_t=st.floats(-8, 3), spread=st.floats(0, 4))
def test_prox_satisfies_its_optimality_condition(seed, log_t, spread):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(4, 5, 2)) * 10 ** rng.uniform(-2, 2, (4, 1, 1))
    h = 10 ** rng.uniform(-spread, 0, 5)
    t = 10.0**log_t
    V = np.asarray(prox_group_l21(jnp.asarray(A), jnp.asarray(h), jnp.asarray(t)))
    for Vi, Ai in zip(V, A, strict=True):
        force = h[:, None] * (Ai - Vi)  # must be t * Vi / ||Vi||, or within the ball where Vi = 0
        if not Vi.any():
            assert np.linalg.norm(force) <= t * (1 + 1e-9)
        else:
            expected = t * Vi / np.linalg.norm(Vi)
            rounding = 1e-13 * np.abs(h[:, None] * Ai).max()
            np.testing.assert_allclose(force, expected, rtol=1e-6, atol=1e-9 * t + rounding)


def test_prox_beats_every_point_of_a_grid():
    A = np.array([[[1.0], [0.5]]])
    h = np.array([1.0, 0.2])
    V = np.asarray(prox_group_l21(jnp.asarray(A), jnp.asarray(h), jnp.asarray(0.3)))
    grid = np.stack(np.meshgrid(np.linspace(-1, 2, 301), np.linspace(-1, 2, 301)), -1)
    values = _objective(grid.reshape(-1, 2, 1), np.broadcast_to(A, (301 * 301, 2, 1)), h, 0.3)
    assert _objective(V, A, h, 0.3)[0] <= values.min() + 1e-12


def test_unit_metric_is_block_soft_thresholding():
    A = np.random.default_rng(1).normal(size=(6, 3, 2))
    norms = np.linalg.norm(A.reshape(6, -1), axis=1)[:, None, None]
    expected = np.maximum(0, 1 - 1.5 / norms) * A
    V = prox_group_l21(jnp.asarray(A), jnp.ones(3), jnp.asarray(1.5))
    np.testing.assert_allclose(V, expected, rtol=1e-10, atol=1e-14)


def test_zero_threshold_changes_nothing():
    A = np.random.default_rng(2).normal(size=(3, 4, 2))
    V = prox_group_l21(jnp.asarray(A), jnp.asarray([1.0, 0.1, 2.0, 3.0]), jnp.asarray(0.0))
    np.testing.assert_allclose(V, A, rtol=1e-12)


def test_norms_are_dual_to_each_other():
    rng = np.random.default_rng(3)
    G, W = rng.normal(size=(2, 4, 3, 2))
    bound = float(dual_norm(jnp.asarray(G)) * group_l21(jnp.asarray(W)))
    assert np.sum(G * W) <= bound
    best = int(np.argmax(group_norms(jnp.asarray(G))))
    aligned = np.zeros_like(G)
    aligned[best] = G[best]
    assert np.sum(G * aligned) == pytest.approx(
        float(dual_norm(jnp.asarray(G)) * group_l21(jnp.asarray(aligned)))
    )

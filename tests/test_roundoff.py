"""Solves in float32 that end where objectives drown in round-off."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convex_heads import Limits, fista, gated, subspace
from convex_heads.losses import SOFTMAX
from convex_heads.penalties import GROUP
from convex_heads.subspace import sharpened
from convex_heads.subspace_state import restate, zero_state


def _prepared(seed: int, n: int, d: int, C: int) -> gated.Prepared:
    """A mixture of C classes that a linear head all but separates, and 32 gates."""
    rng = np.random.default_rng(seed)
    centres, label = rng.normal(size=(C, d)), rng.integers(C, size=n)
    X = np.c_[centres[label] + 1.5 * rng.normal(size=(n, d)), np.ones(n)].astype(np.float32)
    Y = np.eye(C, dtype=np.float32)[label]
    return gated.prepare(X, Y, np.ones(n), SOFTMAX, 32, jax.random.key(seed))


def test_steps_do_not_vanish_when_a_search_is_lost_in_roundoff():
    at = _prepared(1, 1500, 60, 40)
    beta = jnp.float32(0.005 * at.beta_max)
    state = restate(at.program, SOFTMAX, GROUP, beta, zero_state(at.program, GROUP))
    lengths = []
    while float(state.gap) > 1e-5 and int(state.idle) < subspace.MAX_IDLE:
        state = subspace.advance(
            at.program, SOFTMAX, GROUP, beta, jnp.float32(1e-5), state, jnp.int32(4)
        )
        lengths.append(float(state.L))
    assert float(state.gap) <= 1e-4
    assert max(lengths) < 1e4  # P = 32 gates are worth about as much; it was 6e5


def test_levelled_bounds_close_the_gap_of_fista_sooner():
    passes = {"plain": 0.0, "levelled": 0.0}
    for seed in (5, 6, 7):  # together: FISTA's passes on one of them move with the last digit
        at = _prepared(seed, 500, 20, 6)
        beta, limits = 0.002 * at.beta_max, Limits(1e-4, 2000)
        begun, _ = gated.minimise(at, beta, limits=Limits(1e-2))
        solve = {"program": at.program, "loss": SOFTMAX, "beta": beta, "h": at.h, "W": begun.value}
        plain, _ = fista.minimise(**solve, limits=limits)
        sharp, _ = fista.minimise(
            **solve, limits=limits, sharpen=partial(sharpened, at.program, SOFTMAX, beta)
        )
        assert sharp.stats.relative_gap <= 1e-4
        assert sharp.stats.dual <= plain.stats.primal * (1 + 1e-6)
        passes["plain"] += plain.stats.passes
        passes["levelled"] += sharp.stats.passes
    assert passes["levelled"] < 0.8 * passes["plain"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fraction", [0.3, 0.1, 0.01])
def test_a_first_step_that_goes_too_far_gains_all_the_same(dtype: str, fraction: float):
    with jax.enable_x64(dtype == "float64"):
        for seed in range(4):  # at zero weights no norm has a derivative, and round-off has one
            at = _prepared(seed, 500, 20, 6)
            program = jax.tree.map(
                lambda a: a.astype(dtype) if a.dtype == np.float32 else a, at.program
            )
            beta = jnp.asarray(fraction * at.beta_max, dtype)
            state = restate(program, SOFTMAX, GROUP, beta, zero_state(program, GROUP))
            start = float(state.primal)
            state = subspace.advance(
                program, SOFTMAX, GROUP, beta, jnp.asarray(1e-6, dtype), state, jnp.int32(1)
            )
            assert state.primal < 0.8 * start

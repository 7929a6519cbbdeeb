"""A whole gated solve as one JAX computation, for ``jit`` and ``vmap``.

Outside of them :func:`convex_heads.solve` looks at the clock and calls back between chunks of
steps, and drops gates with equal patterns; shapes and control flow of a traced computation are
fixed, so here it cannot. A repeated pattern changes neither the optimal value nor the network.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from convex_heads import gated, subspace, subspace_state
from convex_heads.certificate import beta_max
from convex_heads.gates import activation_patterns, sample_gates
from convex_heads.limits import Limits
from convex_heads.losses import Loss
from convex_heads.operators import Program, block_rows
from convex_heads.penalties import Penalty
from convex_heads.precision import full_precision
from convex_heads.solution import Solution, Stats, Status

_STATUSES = tuple(Status)


def is_traced(*arrays: object) -> bool:
    """Whether one of them has no value yet: a call inside ``jit``, ``vmap`` or the like."""
    return any(isinstance(array, Tracer) for array in arrays)


def status_of(code: Array | int) -> Status:
    """The :class:`Status` of the number that a traced solve has in its place."""
    return _STATUSES[int(code)]


@full_precision
def solve_traced(
    X: Array,
    Y: Array,
    loss: Loss,
    penalty: Penalty,
    fraction: float,
    n_gates: int,
    sampler: str,
    key: Array,
    limits: Limits,
) -> Solution:
    """As :func:`convex_heads.solve`, with arrays for all figures and no history.

    Args:
        X: features (n, d), standardised, the last column constant one.
        Y: targets (n, C).
        loss: the row loss.
        penalty: of the weights.
        fraction: beta as a fraction of beta_max.
        n_gates: gates to draw; all of them stay.
        sampler: of gates; ``pairs`` picks rows, which needs values.
        key: JAX random key of the gates.
        limits: tolerance and max_passes.

    Returns:
        The solution; ``status`` is a number, see :func:`status_of`, and ``seconds`` is NaN.

    Raises:
        ValueError: gates or limits that need values or a clock.
    """
    if sampler == "pairs":
        raise ValueError("gates='pairs' picks rows by their values: not under jit or vmap")
    if limits.max_seconds is not None:
        raise ValueError("there is no clock under jit and vmap: use max_passes, not max_seconds")
    n, dtype = X.shape[0], X.dtype
    moment = X.T @ X / n
    gates = sample_gates(key, moment, n_gates, sampler=sampler)
    _, Q = jnp.linalg.eigh(moment)
    program = _blocked(X @ Q, activation_patterns(X, gates), Y, loss.offset(jnp.mean(Y, axis=0)))
    beta = fraction * jnp.maximum(beta_max(program, loss), gated.beta_floor(program, loss))
    tolerance = jnp.asarray(limits.tolerance, dtype)
    start = subspace_state.zeros(program, penalty)
    run = partial(subspace.advance, program, loss, penalty, beta, tolerance)
    state = run(subspace_state.restate(program, loss, penalty, beta, start), limits.max_passes)
    idle = state.idle >= subspace.MAX_IDLE
    if penalty.sparse:
        state = run(state, 0)
    code = jnp.where(
        state.gap <= tolerance,
        _STATUSES.index(Status.CONVERGED),
        jnp.where(idle, _STATUSES.index(Status.STALLED), _STATUSES.index(Status.MAX_PASSES)),
    )
    broken = ~jnp.isfinite(state.primal) | jnp.isnan(state.gap)
    code = jnp.where(broken, _STATUSES.index(Status.BROKEN), code)
    figures = Stats(
        primal=state.primal,
        dual=state.dual,
        relative_gap=state.gap,
        passes=state.passes,
        iterations=state.iterations,
        seconds=float("nan"),
        block_rows=program.X.shape[1],
    )
    W = jnp.einsum("kr,prc->pkc", Q, state.W)
    return Solution(W, cast(Any, code), figures, (), state.z, state.R, gates)


def _blocked(X: Array, D: Array, Y: Array, z0: Array) -> Program:
    """:func:`convex_heads.operators.build_program` of rows that all weigh the same."""
    n = X.shape[0]
    b = block_rows(n, D.shape[1], Y.shape[1])

    def blocks(A: Array) -> Array:
        padded = jnp.pad(A, ((0, -n % b), *((0, 0) for _ in A.shape[1:])))
        return padded.reshape(-1, b, *A.shape[1:])

    omega = jnp.full(n, 1 / n, X.dtype)
    return Program(blocks(X), blocks(D), blocks(Y), blocks(omega), z0)

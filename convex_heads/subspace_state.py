"""Where a solve of :mod:`convex_heads.subspace` stands: its weights, its span, its best bound."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from convex_heads.duality import loss_value, relative_gap
from convex_heads.losses import Loss
from convex_heads.operators import Program, apply
from convex_heads.penalties import Penalty
from convex_heads.precision import jit
from convex_heads.sharding import like_rows

# Steps kept for the span.
_MEMORY = 16
# Entries of their images, which are as large as the scores: many rows and classes get fewer steps.
_IMAGE_ENTRIES = 1 << 26


class State(NamedTuple):
    """Where a solve stands.

    Attributes:
        W: weights (P, d, C), the best so far: no step goes up by more than round-off.
        z: F W (B, b, C).
        steps: the last steps of W, the first gate's part e, and the last levelling's move
            (P, m + 2, d, C).
        images: F of each (B, m + 2, b, C).
        kept: which of them the search may use (m + 2,).
        R: residual of the best dual point so far (B, b, C).
        L: multiple of the metric that the last steps were worth, ().
        first_L: the same of the first gate's own steps, ().
        primal: objective at W, ().
        lowest: the lowest so far, which round-off may have left again, ().
        dual: best dual value, ().
        passes: data passes used, ().
        iterations: steps taken, () int32.
        idle: steps since the objective or the bound last gained 1e-4 of the gap, () int32.
    """

    W: Array
    z: Array
    steps: Array
    images: Array
    kept: Array
    R: Array
    L: Array
    first_L: Array
    primal: Array
    lowest: Array
    dual: Array
    passes: Array
    iterations: Array
    idle: Array

    @property
    def gap(self) -> Array:
        """Relative gap, ()."""
        return relative_gap(self.primal, self.dual)


def objective(
    program: Program, loss: Loss, penalty: Penalty, beta: Array, W: Array, z: Array
) -> Array:
    """The objective of weights W whose scores are z = F W, ()."""
    return loss_value(program, loss, z) + beta * penalty.value(W)


def kept_steps(n: int, C: int) -> int:
    """Steps kept for the span, of n rows and C outputs.

    Example:
        >>> kept_steps(14_622, 6), kept_steps(20_018, 1000), kept_steps(1_281_167, 1000)
        (16, 3, 2)
    """
    return min(_MEMORY, max(2, _IMAGE_ENTRIES // (n * C)))


def zero_state(program: Program, memory: int | None = None) -> State:
    """State at W = 0, before :func:`restate` has given it a penalty; see :func:`minimise`.

    Its rows are where those of the program are, everything else is on every device.
    """
    axes = {"z": 1, "R": 1, "images": 2}
    state = zeros(program, memory)._asdict()
    return State(*(like_rows(a, axes.get(field)) for field, a in state.items()))


@partial(jit, static_argnames="memory")
def zeros(program: Program, memory: int | None = None) -> State:
    """:func:`zero_state` as a part of a traced computation, which knows no places."""
    B, b, C = program.Y.shape
    m = (kept_steps(B * b, C) if memory is None else memory) + 2
    dtype = program.X.dtype
    z, zero = jnp.zeros((B, b, C), dtype), jnp.zeros((), dtype)
    P, *rest = program.shape
    return State(
        W=jnp.zeros((P, *rest), dtype),
        z=z,
        steps=jnp.zeros((P, m, *rest), dtype),
        images=jnp.zeros((B, m, b, C), dtype),
        kept=jnp.zeros(m, bool),
        R=z,
        L=zero + 1,
        first_L=zero + 1,
        primal=zero,
        lowest=zero,
        dual=zero,
        passes=zero,
        iterations=jnp.int32(0),
        idle=jnp.int32(0),
    )


def state_at(program: Program, W: Array) -> State:
    """State at weights W (P, d, C) without a span, for a warm start. Half a data pass."""
    return zero_state(program)._replace(W=W, z=apply(program, W))


@partial(jit, static_argnames=("loss", "penalty"), donate_argnames="s")
def restate(program: Program, loss: Loss, penalty: Penalty, beta: Array, s: State) -> State:
    """The same weights and span under another penalty or other row weights, bounds forgotten.

    The state is written over: ``s`` cannot be used again.
    """
    primal = objective(program, loss, penalty, beta, s.W, s.z)
    return s._replace(
        R=jnp.zeros_like(s.R),
        primal=primal,
        lowest=primal,
        dual=jnp.full_like(s.dual, -jnp.inf),
        passes=jnp.zeros_like(s.passes),
        iterations=jnp.zeros_like(s.iterations),
        idle=jnp.zeros_like(s.idle),
    )

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

# Steps kept for the span, and of the only gate, whose metric is its curvature: on a quadratic the
# last step is all that conjugate gradients need, and each more costs as much as half a product.
_MEMORY, _MEMORY_ALONE = 16, 2
# Entries of their images, which are as large as the scores: many rows and classes get fewer steps.
_IMAGE_ENTRIES = 1 << 26


class State(NamedTuple):
    """Where a solve stands.

    Attributes:
        W: weights (P, d, C), the best so far: no step goes up by more than round-off.
        z: F W (B, b, C).
        steps: the last steps of W, then the first gate's part e and the last levelling's move,
            where there are such (:func:`own_directions`): (P, k, d, C).
        images: F of each (B, k, b, C).
        kept: which of them the search may use (k,).
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


def kept_steps(n: int, P: int, C: int) -> int:
    """Steps kept for the span, of n rows, P gates and C outputs.

    Example:
        >>> kept_steps(14_622, 64, 6), kept_steps(20_018, 8, 1000), kept_steps(14_622, 1, 6)
        (16, 3, 2)
    """
    return min(_MEMORY if P > 1 else _MEMORY_ALONE, max(2, _IMAGE_ENTRIES // (n * C)))


def own_directions(P: int, penalty: Penalty) -> int:
    """Directions of the span beside the last steps: the first of several gates' part, levelling's.

    Example:
        >>> from convex_heads.penalties import GROUP, RIDGE
        >>> own_directions(64, GROUP), own_directions(1, GROUP), own_directions(1, RIDGE)
        (2, 1, 0)
    """
    return (P > 1) + penalty.sparse


def zero_state(program: Program, penalty: Penalty) -> State:
    """State at W = 0, before :func:`restate` has given it a penalty; see :func:`minimise`.

    Its rows are where those of the program are, everything else is on every device.
    """
    axes = {"z": 1, "R": 1, "images": 2}
    state = zeros(program, penalty)._asdict()
    return State(*(like_rows(a, axes.get(field)) for field, a in state.items()))


@partial(jit, static_argnames="penalty")
def zeros(program: Program, penalty: Penalty) -> State:
    """:func:`zero_state` as a part of a traced computation, which knows no places."""
    B, b, C = program.Y.shape
    P, *rest = program.shape
    m = kept_steps(B * b, P, C) + own_directions(P, penalty)
    dtype = program.X.dtype
    z, zero = jnp.zeros((B, b, C), dtype), jnp.zeros((), dtype)
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


def state_at(program: Program, penalty: Penalty, W: Array) -> State:
    """State at weights W (P, d, C) without a span, for a warm start. Half a data pass."""
    return zero_state(program, penalty)._replace(W=W, z=apply(program, W))


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

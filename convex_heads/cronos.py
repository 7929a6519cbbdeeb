r"""ADMM for the ReLU program with its cone constraints (CRONOS, Feng, Frangella, Pilanci 2024).

The program, one pair of neurons (v, w) for every gate and output, u = (v, w):

.. math:: \min_{v, w}\; \sum_j \omega_j\, l\big((z_0 + F(v - w))_j, y_j\big)
          + \beta \sum_{ic} (\|v_{ic}\| + \|w_{ic}\|)
          \quad\text{s.t.}\quad G v \ge 0,\; G w \ge 0 .

Iterates come from :mod:`convex_heads.admm`; here they are run to a proven gap. The multipliers make
a dual point: with R = omega * dl/dz and y >= 0 any multipliers, s (R, y) is dual feasible for

.. math:: s = \min\big(1, \beta / \max_{ick} \|\pm X' D_i R_c + X'(2 D_i - I) y_{ick}\|\big) .
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads import linear_system
from convex_heads.admm import CHUNK, Recipe, State, advance, paper, zero_state
from convex_heads.cones import signs, violation
from convex_heads.driver import drive, stats
from convex_heads.duality import loss_value, relative_gap, residual, scaled_dual
from convex_heads.limits import Limits
from convex_heads.linear_system import difference
from convex_heads.losses import Loss
from convex_heads.operators import Program, apply, columns_of, hidden, pull_back
from convex_heads.penalties import dual_scale, neuron_norms
from convex_heads.precision import full_precision, jit
from convex_heads.solution import Record, Solution

__all__ = ["FEASIBLE", "Recipe", "Run", "bounds", "minimise", "paper", "run_at"]

# Steps without a better bound and without a smaller violation that mean that round-off has been
# reached.
_MAX_IDLE = 3000
# Weights whose values are further outside the cones than this, relative, have no certificate.
FEASIBLE = 1e-3


class Bounds(NamedTuple):
    """Objective and lower bound at the sparse weights, and how far they are outside the cones."""

    primal: Array
    dual: Array
    violation: Array
    R: Array


@partial(jit, static_argnames="loss")
def bounds(program: Program, loss: Loss, beta: Array, s: State) -> Bounds:
    """Two and a half data passes; the residual of the dual point is that of the scores z."""
    m = difference(s.t)
    primal = loss_value(program, loss, apply(program, m)) + beta * jnp.sum(neuron_norms(s.t))
    R = residual(program, loss, s.z)
    P, d, C = program.shape

    def block(total: Array, rows: tuple[Array, ...]) -> tuple[Array, None]:
        X, D, omega, q, r = rows
        y = -s.rho[1] * omega[:, None, None] * jnp.minimum(q, 0)
        both = jnp.concatenate([r, -r], axis=1)[:, :, None]
        back = jnp.where(D[:, None, :], both, 0) - signs(D, X.dtype) * y
        return total + pull_back(X, back), None

    total, _ = jax.lax.scan(
        block,
        jnp.zeros((d, 2 * C * P), R.dtype),
        (program.X, program.D, program.omega, s.q, R),
    )
    norm = jnp.sqrt(jnp.max(jnp.sum(total * total, axis=0)))
    return Bounds(
        primal, scaled_dual(program, loss, R, dual_scale(norm, beta)), violation(program, s.t), R
    )


class Run(NamedTuple):
    """A state and what is known of it; see :class:`convex_heads.driver.Progress`.

    Attributes:
        state: the iterates.
        primal: objective at t, ().
        dual: best lower bound so far, ().
        violation: of t, relative, ().
        R: residual of the best dual point (B, b, C).
        idle: steps without a better bound or a smaller violation, ().
        passes: with those that looking at the gap took, ().
    """

    state: State
    primal: Array
    dual: Array
    violation: Array
    R: Array
    idle: Array
    passes: Array

    @property
    def gap(self) -> Array:
        """The larger of relative gap and violation, (); infinite above ``FEASIBLE``.

        Weights outside the cones can have less than the optimal value, by about as much.
        """
        gap = jnp.maximum(jnp.abs(relative_gap(self.primal, self.dual)), self.violation)
        return jnp.where(self.violation <= FEASIBLE, gap, jnp.inf)

    @property
    def iterations(self) -> Array:
        """Steps taken, ()."""
        return self.state.k


@full_precision
def run_at(program: Program, loss: Loss, V: Array, recipe: Recipe | None = None) -> Run:
    """A run whose weights are V (P, d, 2 C) and whose multipliers are zero, for a warm start."""
    state = zero_state(program, loss, recipe or Recipe())
    columns, P = columns_of(V), V.shape[0]
    q = jax.lax.map(
        lambda rows: jnp.maximum(hidden(rows[0], columns, P) * signs(rows[1], V.dtype), 0),
        (program.X, program.D),
    )
    state = state._replace(u=V, t=V, q=q, z=apply(program, difference(V)))
    zero = jnp.zeros((), V.dtype)
    return Run(state, zero, zero, zero, jnp.zeros_like(state.z), jnp.int32(0), zero)


def minimise(
    program: Program,
    loss: Loss,
    beta: float,
    *,
    h: Array,
    recipe: Recipe | None = None,
    warm: Run | None = None,
    limits: Limits | None = None,
    on_record: Callable[[Record], None] | None = None,
    key: Array | None = None,
) -> tuple[Solution, Run]:
    """Solves one ReLU program for one beta.

    Args:
        program: the blocked data, features in principal axes.
        loss: the row loss.
        beta: penalty, absolute, >= 0.
        h: second moments (d,): X' diag(omega) X = diag(h).
        recipe: how ADMM is run; None for our defaults.
        warm: final run on the same X, D and recipe.
        limits: when to stop. A gap counts once the cones are violated by at most ``FEASIBLE``.
        on_record: called with every history record, every twenty steps.
        key: JAX random key of the Nystrom sketch.

    Returns:
        The solution (``value`` (P, d, 2 C): v, then w) and the final run, which serves warm starts.

    Raises:
        ValueError: a recipe that does not split the loss, with another loss than the squared one.
    """
    recipe, limits = recipe or Recipe(), limits or Limits()
    if not recipe.split_loss and loss.name != "squared":
        raise ValueError(f"a recipe without a loss split is for the squared loss, not {loss.name}")
    start = time.perf_counter()
    dtype = program.X.dtype
    beta_ = jnp.asarray(beta, dtype)
    state = zero_state(program, loss, recipe) if warm is None else warm.state
    state = state._replace(k=jnp.zeros_like(state.k), passes=jnp.zeros_like(state.passes))
    if recipe.rank:
        key = jax.random.key(0) if key is None else key
        system = linear_system.sketched(program, h, state.rho, recipe.rank, key)
    else:
        system = linear_system.structured(program, h)

    def look(state: State, run: Run | None) -> Run:
        at = bounds(program, loss, beta_, state)
        if run is None:
            return Run(state, at.primal, at.dual, at.violation, at.R, jnp.int32(0), state.passes)
        better = at.dual > run.dual
        progress = better | (at.violation < 0.99 * run.violation)
        return Run(
            state=state,
            primal=at.primal,
            dual=jnp.maximum(at.dual, run.dual),
            violation=at.violation,
            R=jnp.where(better, at.R, run.R),
            idle=jnp.where(progress, 0, run.idle + CHUNK),
            passes=run.passes + (state.passes - run.state.passes) + 3,
        )

    def go_on(run: Run) -> Run:
        return look(advance(program, loss, recipe, system, beta_, run.state, CHUNK), run)

    run, status, history = drive(
        go_on, look(state, None), limits, max_idle=_MAX_IDLE, on_record=on_record
    )
    value = run.state.t if recipe.sparse else run.state.u
    figures = stats(run, time.perf_counter() - start, program.X.shape[1])
    z = apply(program, difference(value))
    return Solution(value, status, figures, history, z, run.R), run

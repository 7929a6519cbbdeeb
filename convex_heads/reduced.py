r"""A solve that begins with products in less than float32 and ends in float32.

With the data rounded (:mod:`convex_heads.precision`) the solver finds the optimum of a program of
slightly other data, in about as many passes. What its weights are worth is then computed in
float32: their objective P(W), and the bound D(R) of its best residual R, which is a dual point of
the true program once scaled by the true F'R (:mod:`convex_heads.duality`). Where

.. math:: (P(W) - D(R)) / P(W) \le \text{tolerance},

that is all; otherwise the solver goes on in float32 from those weights, with an empty span: its
images are those of other data. Either way no gap is reported that products in less than float32
have a part in, and both gaps, the one that was believed and the one that held, are told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from convex_heads import gated
from convex_heads.driver import going_on
from convex_heads.duality import dual_value, reported_gap
from convex_heads.gated import Prepared
from convex_heads.limits import Limits
from convex_heads.losses import Loss
from convex_heads.operators import Program, adjoint, apply
from convex_heads.penalties import Penalty
from convex_heads.precision import Precision, jit
from convex_heads.sharding import agreed
from convex_heads.solution import PrecisionEffect, Record, Solution, Status
from convex_heads.subspace_state import State, objective


def minimise(
    prepared: Prepared,
    beta: float,
    *,
    solver: str = gated.SOLVERS[0],
    warm: Any = None,
    limits: Limits | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> tuple[Solution, Any]:
    """As :func:`convex_heads.gated.minimise`, beginning in the precision of ``prepared``.

    Records of the beginning have the gap that the solver believes, the one after them and those
    that follow the gap in float32.
    """
    solve = partial(gated.minimise, beta=beta, solver=solver)
    if prepared.precision is Precision.FLOAT32:
        return solve(prepared, warm=warm, limits=limits, on_record=on_record)
    limits, began = limits or Limits(), time.perf_counter()
    program = prepared.program
    rounded = prepared._replace(program=program._replace(precision=prepared.precision))
    if warm is not None:
        warm = _without_span(warm, rounded.program)
    first, state = solve(rounded, warm=warm, limits=limits, on_record=on_record)
    z = apply(program, first.value)
    beta_ = jnp.asarray(beta, program.X.dtype)
    primal, dual = map(
        float,
        _bounds(program, prepared.loss, prepared.penalty, beta_, first.value, z, first.residual),
    )
    passes, seconds = first.stats.passes + 1, float(agreed(time.perf_counter() - began))
    at = Record(
        passes=passes,
        primal=primal,
        dual=dual,
        relative_gap=reported_gap(primal, dual),
        seconds=round(seconds, 4),
    )
    history = [*first.history, at]
    if on_record is not None:
        on_record(at)
    effect = PrecisionEffect(
        precision=prepared.precision.value,
        passes=first.stats.passes,
        believed_gap=first.stats.relative_gap,
        relative_gap=at.relative_gap,
    )
    if at.relative_gap <= limits.tolerance:
        figures = first.stats._replace(
            primal=primal, dual=dual, relative_gap=at.relative_gap, passes=passes, seconds=seconds
        )
        done = first._replace(
            status=Status.CONVERGED,
            stats=figures,
            history=tuple(history),
            scores=z,
            precision_effect=effect,
        )
        return done, state

    second, state = solve(
        prepared,
        warm=_without_span(state, program),
        limits=limits.after(passes, seconds),
        on_record=going_on(history, passes, seconds, on_record),
    )
    figures = second.stats._replace(
        passes=passes + second.stats.passes,
        iterations=first.stats.iterations + second.stats.iterations,
        seconds=time.perf_counter() - began,
    )
    second = second._replace(stats=figures, history=tuple(history), precision_effect=effect)
    return second, state


@partial(jit, static_argnames=("loss", "penalty"))
def _bounds(
    program: Program, loss: Loss, penalty: Penalty, beta: Array, W: Array, z: Array, R: Array
) -> tuple[Array, Array]:
    """Objective at W with z = F W, and the dual value of the residual R: (), ()."""
    dual = dual_value(program, loss, R, adjoint(program, R), beta, penalty)
    return objective(program, loss, penalty, beta, W, z), dual


def _without_span(state: Any, program: Program) -> Any:
    """A final state as a warm start under products of another precision."""
    if not isinstance(state, State):
        return state  # it begins with nothing but weights
    return state._replace(z=apply(program, state.W), kept=jnp.zeros_like(state.kept))

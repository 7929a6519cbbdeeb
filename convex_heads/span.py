"""The exact search of :mod:`convex_heads.subspace`: the objective on a span, without the data.

F of every direction is known, so the objective, its gradient and its Hessian on the span of k
directions cost O(n C k^2) there instead of the O(n P d C) of a data pass.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads.losses import Loss
from convex_heads.operators import Program
from convex_heads.penalties import Penalty

# Models that one search may evaluate.
_NEWTON_TRIES = 12
# A Newton step that gains less than this share of the whole search is the last one.
_NEWTON_SHARE = 3e-2
# A Newton step that does no good is cut to this share of itself.
_SHORTER = 0.4
# Coefficients of steps are no larger: they would blow up the round-off in the steps' images.
_LONGEST = 8.0


class Span(NamedTuple):
    """The objective on W+ + span of k directions, without the data.

    Around W+ and not around W: its scores have just been computed, and the gates that the
    proximal step switched off are exactly zero there.

    Attributes:
        z: F W+ (B, b, C).
        Z: F of the directions (B, k, b, C).
        q: squared norm of every gate's weights at W+, (P,).
        b: their products with the directions (P, k).
        B: products of the directions (P, k, k).
    """

    z: Array
    Z: Array
    q: Array
    b: Array
    B: Array


class _Model(NamedTuple):
    """Value (), gradient (k,) and Hessian (k, k) of the objective at one point t of the span."""

    t: Array
    value: Array
    gradient: Array
    hessian: Array


def _model(
    program: Program, loss: Loss, penalty: Penalty, beta: Array, span: Span, t: Array
) -> _Model:
    k = t.shape[0]
    ones = jnp.ones(span.z.shape[-1], t.dtype)

    def block(total: tuple, rows: tuple[Array, ...]) -> tuple[tuple, None]:
        value, gradient, hessian = total
        Y, omega, z, Z = rows
        score = program.z0 + z + jnp.tensordot(t, Z, 1)
        g = loss.gradient(score, Y)
        a, u = loss.hessian(g, Y)
        flat = Z.reshape(k, -1)
        # A sum over classes, written as a product: the compiler is slow at short sums.
        along = ((Z * u).reshape(-1, ones.size) @ ones).reshape(k, -1)
        curved = (Z * (omega[:, None] * a)).reshape(k, -1) @ flat.T - (along * omega) @ along.T
        return (
            value + jnp.sum(omega * loss.value(score, Y)),
            gradient + flat @ (omega[:, None] * g).ravel(),
            hessian + curved,
        ), None

    zero = jnp.zeros((), span.z.dtype)
    start = zero, jnp.zeros_like(t), jnp.zeros((k, k), t.dtype)
    (value, gradient, hessian), _ = jax.lax.scan(
        block, start, (program.Y, program.omega, span.z, span.Z)
    )
    h, slope, curvature = penalty.on_span(span.q, span.b, span.B, t)
    return _Model(t, value + beta * h, gradient + beta * slope, hessian + beta * curvature)


def _newton_direction(model: _Model) -> Array:
    """Of the scaled and slightly damped model; zero along directions that are zero."""
    diagonal = jnp.diag(model.hessian)
    positive = diagonal > 0
    scale = jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, diagonal, 1)), 0)
    damping = jnp.sqrt(jnp.finfo(scale.dtype).eps)
    matrix = model.hessian * scale[:, None] * scale + jnp.diag(jnp.where(positive, damping, 1))
    return -scale * jnp.linalg.solve(matrix, scale * model.gradient)


class _Search(NamedTuple):
    """Newton's method on the span: where it is, where it goes, what it has gained."""

    at: _Model
    move: Array
    size: Array
    decrement: Array
    total: Array
    tries: Array


def roundoff(primal: Array) -> Array:
    """What rounding can do to an objective of this size."""
    return 32 * jnp.finfo(primal.dtype).eps * jnp.abs(primal)


def search(
    program: Program,
    loss: Loss,
    penalty: Penalty,
    beta: Array,
    primal: Array,
    span: Span,
    back: Array,
) -> Array:
    """Minimises over the span by Newton's method: coefficients t (k,).

    Starts from zero, or, if the objective there is above ``primal``, from ``back`` (k,), where it
    is ``primal``.

    Near the optimum objectives drown in round-off while slopes do not, so a step is also good if
    it leaves the objective where it was and the slope along it flatter (the approximate Wolfe
    conditions, Hager & Zhang 2005).
    """
    model = partial(_model, program, loss, penalty, beta, span)

    def begin(at: _Model, total: Array, tries: Array) -> _Search:
        move = _newton_direction(at)
        decrement = -(at.gradient @ move) / 2
        return _Search(at, move, jnp.ones_like(total), decrement, total + decrement, tries)

    def body(c: _Search) -> _Search:
        new = model(jnp.clip(c.at.t + c.size * c.move, -_LONGEST, _LONGEST))
        slope, before = new.gradient @ c.move, c.at.gradient @ c.move
        flatter = jnp.abs(slope) <= 0.9 * jnp.abs(before)
        good = (new.value < c.at.value) | ((new.value <= c.at.value + roundoff(primal)) & flatter)
        return jax.lax.cond(
            good,
            lambda: begin(new, c.total, c.tries + 1),
            lambda: c._replace(size=c.size * _SHORTER, tries=c.tries + 1),
        )

    def go_on(c: _Search) -> Array:
        return (c.decrement > _NEWTON_SHARE * c.total) & (c.tries < _NEWTON_TRIES)

    at = model(jnp.zeros_like(back))
    low = at.value <= primal + roundoff(primal)
    at = jax.lax.cond(low, lambda: at, lambda: model(back))
    gained = jnp.maximum(primal - at.value, 0)
    return jax.lax.while_loop(go_on, body, begin(at, gained, jnp.zeros((), jnp.int32))).at.t

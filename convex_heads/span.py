"""The exact search of :mod:`convex_heads.subspace`: the objective on a span, without the data.

F of every direction is known, so the objective, its gradient and its Hessian on the span of k
directions cost O(n C k^2) there instead of the O(n P d C) of a data pass.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve

from convex_heads.duality import row_gradients
from convex_heads.losses import Loss
from convex_heads.operators import Program
from convex_heads.penalties import Penalty, group_norms

# Models that one search may evaluate.
_NEWTON_TRIES = 12
# A Newton step that gains less than this share of the whole search is the last one.
_NEWTON_SHARE = 3e-2
# A Newton step that does no good is cut to this share of itself.
_SHORTER = 0.4
# Ways to W+ that went too far are cut to this share, so many times.
_BACK, _CUTS = 1 / 16, 2
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
        kept: which directions there are; the others are not used (k,).
    """

    z: Array
    Z: Array
    q: Array
    b: Array
    B: Array
    kept: Array


def span_at(W: Array, z: Array, steps: Array, images: Array, kept: Array) -> Span:
    """Around W (P, d, C), z = F W: steps (P, k, d, C), images (B, k, b, C), those kept (k,)."""
    flat = steps.reshape(*steps.shape[:2], -1)
    return Span(
        z=z,
        Z=images,
        q=group_norms(W) ** 2,
        b=jnp.einsum("pkx,px->pk", flat, W.reshape(len(W), -1)),
        B=jnp.einsum("pkx,plx->pkl", flat, flat),
        kept=kept,
    )


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

    def block(total: tuple, rows: tuple[Array, ...]) -> tuple[tuple, None]:
        value, gradient, hessian = total
        Y, omega, z, Z = rows
        score = program.z0 + z + jnp.tensordot(t, Z, 1)
        g = loss.gradient(score, Y)
        return (
            value + jnp.sum(omega * loss.value(score, Y)),
            gradient + Z.reshape(k, -1) @ (omega[:, None] * g).ravel(),
            hessian + _curvature(loss, Y, omega, g, Z),
        ), None

    zero = jnp.zeros((), span.z.dtype)
    start = zero, jnp.zeros_like(t), jnp.zeros((k, k), t.dtype)
    (value, gradient, hessian), _ = jax.lax.scan(
        block, start, (program.Y, program.omega, span.z, span.Z)
    )
    h, slope, curvature = penalty.on_span(span.q, span.b, span.B, t)
    return _Model(t, value + beta * h, gradient + beta * slope, hessian + beta * curvature)


def _curvature(loss: Loss, Y: Array, omega: Array, g: Array, Z: Array) -> Array:
    """Hessian (k, k) of a block's loss where its gradient is g (b, C), on scores Z (k, b, C)."""
    k, ones = len(Z), jnp.ones(Z.shape[-1], Z.dtype)
    a, u = loss.hessian(g, Y)
    # A sum over classes, written as a product: the compiler is slow at short sums.
    along = ((Z * u).reshape(-1, ones.size) @ ones).reshape(k, -1)
    return (Z * (omega[:, None] * a)).reshape(k, -1) @ Z.reshape(k, -1).T - (
        along * omega
    ) @ along.T


def newton(
    program: Program,
    loss: Loss,
    penalty: Penalty,
    beta: Array,
    span: Span,
    t: Array,
    R: Array,
    slope: Array,
) -> tuple[Array, Array]:
    """One step of Newton's method from t (k,), and what its model says that it gains, ().

    R (B, b, C) is the residual at t, so that the curvature takes no exponential, and slope (k,) the
    gradient of the loss there.
    """

    def block(total: Array, rows: tuple[Array, ...]) -> tuple[Array, None]:
        Y, omega, r, Z = rows
        return total + _curvature(loss, Y, omega, row_gradients(r, omega), Z), None

    rows = program.Y, program.omega, R, span.Z
    hessian, _ = jax.lax.scan(block, jnp.zeros((t.size, t.size), t.dtype), rows)
    h, along, curvature = penalty.on_span(span.q, span.b, span.B, t)
    at = _Model(t, h, slope + beta * along, hessian + beta * curvature)
    move = _newton_direction(at, span.kept)
    return t + move, -(at.gradient @ move) / 2


def _newton_direction(model: _Model, kept: Array) -> Array:
    """Of the scaled and slightly damped model; zero along directions not kept, or zero."""
    diagonal = jnp.diag(model.hessian)
    positive = kept & (diagonal > 0)
    scale = jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, diagonal, 1)), 0)
    damping = jnp.sqrt(jnp.finfo(scale.dtype).eps)
    matrix = model.hessian * scale[:, None] * scale + jnp.diag(jnp.where(positive, damping, 1))
    return -scale * cho_solve(cho_factor(matrix), scale * model.gradient)


class _Search(NamedTuple):
    """Newton's method on the span: where it is, where it goes, what it has gained, where it began.

    The model is evaluated at one place in the loop, because every other one would be compiled
    again: the loop starts with no point at all, only with a value to undercut.
    """

    at: _Model
    next: Array
    move: Array
    size: Array
    decrement: Array
    total: Array
    tries: Array
    first: Array


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
) -> tuple[Array, Array]:
    """Minimises over the span by Newton's method: coefficients t (k,), and the value () at zero.

    Where round-off hides what there is to gain, t is zero: W+ has exact zeros.

    Starts from zero, or, if the objective there is above ``primal``, on the way to ``back`` (k,),
    where it is ``primal``: at ``back`` itself gates may be zero, whose norms have no derivative.

    Near the optimum objectives drown in round-off while slopes do not, so a step is also good if
    it leaves the objective where it was and the slope along it flatter (the approximate Wolfe
    conditions, Hager & Zhang 2005).
    """
    zero, infinity = jnp.zeros((), back.dtype), jnp.full((), jnp.inf, back.dtype)
    noise = roundoff(primal)

    def accept(c: _Search, new: _Model, started: Array) -> _Search:
        move = _newton_direction(new, span.kept)
        decrement = -(new.gradient @ move) / 2
        before = jnp.where(started, c.total, jnp.maximum(primal - new.value, 0))
        return _Search(
            at=new,
            next=_along(new.t, move, jnp.ones_like(zero)),
            move=move,
            size=jnp.ones_like(zero),
            decrement=decrement,
            total=before + decrement,
            tries=c.tries + 1,
            first=c.first,
        )

    def refuse(c: _Search, started: Array, above: Array) -> _Search:
        """A shorter step, or another start; ``back`` is the last and needs to undercut nothing."""
        end = ~started & ((c.size < 1.5 * _BACK**_CUTS) | ~above)
        size = c.size * jnp.where(started, _SHORTER, jnp.where(end, 0, _BACK))
        value = jnp.where(end, infinity, c.at.value)
        return c._replace(
            at=c.at._replace(value=value),
            next=jnp.where(started, _along(c.at.t, c.move, size), (1 - size) * back),
            size=size,
            tries=c.tries + 1,
        )

    def body(c: _Search) -> _Search:
        new = _model(program, loss, penalty, beta, span, c.next)
        started = jnp.isfinite(c.total)
        slope, before = new.gradient @ c.move, c.at.gradient @ c.move
        flatter = jnp.abs(slope) <= 0.9 * jnp.abs(before)
        good = (new.value < c.at.value) | ((new.value <= c.at.value + noise) & flatter & started)
        c = c._replace(first=jnp.where(c.tries < 0, new.value, c.first))
        above = new.value > primal + noise
        return jax.lax.cond(
            good, lambda: accept(c, new, started), lambda: refuse(c, started, above)
        )

    def go_on(c: _Search) -> Array:
        more = ~jnp.isfinite(c.total) | (c.decrement > _NEWTON_SHARE * c.total)
        return more & (c.tries < _NEWTON_TRIES)

    flat = jnp.zeros_like(back)
    nowhere = _Model(back, primal + noise, flat, jnp.zeros((back.size, back.size), back.dtype))
    start = _Search(
        at=nowhere,
        next=flat,
        move=flat,
        size=jnp.ones_like(zero),
        decrement=zero,
        total=infinity,
        tries=jnp.full((), -1, jnp.int32),
        first=infinity,
    )
    end = jax.lax.while_loop(go_on, body, start)
    keep = end.first <= jnp.minimum(end.at.value, primal)
    return jnp.where(keep, zero, end.at.t), end.first


def _along(t: Array, move: Array, size: Array) -> Array:
    return jnp.clip(t + size * move, -_LONGEST, _LONGEST)

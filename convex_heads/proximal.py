r"""The proximal step from weights W, in a metric that all gates share.

.. math:: W^+ = \arg\min_V\; \langle F'R, V \rangle
          + \tfrac12 \sum_i L_i \|V_i - W_i\|_h^2 + \beta h(V),

with R the residual at W, h the diagonal of X' Lambda X for the curvature Lambda of the loss there,
and two multiples L_i of it: one for the first gate, which is on everywhere and does alone what all
gates do together, and one for the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from convex_heads.duality import dual_value, residual, row_gradients
from convex_heads.losses import Loss
from convex_heads.operators import Program, adjoint, apply
from convex_heads.penalties import Penalty, floored_metric
from convex_heads.sharding import sum_blocks


class Proximal(NamedTuple):
    """A proximal step from W.

    Attributes:
        W: W+ (P, d, C).
        z: F W+ (B, b, C).
        R: residual at W (B, b, C).
        G: F'R (P, d, C).
        dual: value of its dual point, ().
        drift: what the error of the scores that stand for F W does to the objective, to first
            order, ().
    """

    W: Array
    z: Array
    R: Array
    G: Array
    dual: Array
    drift: Array


def metric(program: Program, loss: Loss, R: Array) -> Array:
    """Diagonal of X' Lambda X (d,), Lambda the curvature of the loss where its residual is R."""

    def block(total: Array, rows: tuple[Array, ...]) -> tuple[Array, None]:
        X, Y, omega, r = rows
        a, u = loss.hessian(row_gradients(r, omega), Y)
        weight = omega * jnp.mean(a - u * u, axis=-1)
        return total + weight @ (X * X), None

    start = jnp.zeros(program.X.shape[2], R.dtype)
    return floored_metric(sum_blocks(block, start, (program.X, program.Y, program.omega, R)))


def proximal_step(
    program: Program,
    loss: Loss,
    penalty: Penalty,
    beta: Array,
    W: Array,
    z: Array,
    first_L: Array,
    L: Array,
) -> Proximal:
    """The step from W (P, d, C) with scores z = F W (B, b, C). One data pass."""
    R = residual(program, loss, z)
    G = adjoint(program, R)
    lengths = jnp.full(len(W), L).at[0].set(first_L)
    H = lengths[:, None] * metric(program, loss, R)
    new = penalty.prox(W - G / H[:, :, None], H, beta)
    return Proximal(
        new,
        apply(program, new),
        R,
        G,
        dual_value(program, loss, R, G, beta, penalty),
        # <R, F W> = <F'R, W>: both sides are there.
        jnp.abs(jnp.vdot(R, z) - jnp.vdot(G, W)),
    )

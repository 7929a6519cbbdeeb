r"""Primal and dual values of the gated program.

With phi(z) = sum_j omega_j l(z0 + z_j, y_j):

.. math:: \min_W \phi(FW) + \beta \sum_i \|W_i\|_F \;=\;
          \max_\nu \{-\phi^*(\nu) : \|X' D_i \nu\|_F \le \beta \;\forall i\},

.. math:: \phi^*(\nu) = \sum_j \omega_j\, l^*(\nu_j / \omega_j; y_j) - \langle \nu, z_0 \rangle .

For a residual R_j = omega_j dl/dz_j at any point, nu = s R with
s = min(1, beta / max_i ||X' D_i R||_F) is feasible, and its value bounds every primal value from
below. A bound is a bound wherever R came from; the nearer R is to the optimal one, the tighter.
"""

from __future__ import annotations

import math
import sys

import jax.numpy as jnp
from jax import Array

from convex_heads.losses import Loss
from convex_heads.operators import Program
from convex_heads.penalties import GROUP, Penalty
from convex_heads.precision import jit


def loss_value(program: Program, loss: Loss, z: Array) -> Array:
    """sum_j omega_j l(z0 + z_j, y_j), ()."""
    return jnp.sum(program.omega * loss.value(program.z0 + z, program.Y))


def residual(program: Program, loss: Loss, z: Array) -> Array:
    """R_j = omega_j dl/dz(z0 + z_j, y_j): (B, b, C)."""
    return program.omega[..., None] * loss.gradient(program.z0 + z, program.Y)


def row_gradients(R: Array, omega: Array) -> Array:
    """The loss gradient of every row (..., C) from residuals R = omega * gradient."""
    omega = omega[..., None]
    return jnp.where(omega > 0, R / jnp.where(omega > 0, omega, 1), 0)


def dual_value(
    program: Program, loss: Loss, R: Array, G: Array, beta: Array, penalty: Penalty = GROUP
) -> Array:
    """Dual value of the scaled residual s R, where G = F'R (P, d, C) sets the scale s."""
    s, cost = penalty.dual(G, beta)
    return scaled_dual(program, loss, R, s) - cost


def scaled_dual(program: Program, loss: Loss, R: Array, s: Array) -> Array:
    """Value -phi*(s R) of the dual point s R, s in [0, 1], ()."""
    # A gradient whose row weighs so little has lost its digits in R, and may seem to be none; the
    # value of such a row is beyond those of the sum.
    floor = jnp.finfo(R.dtype).tiny / jnp.finfo(R.dtype).eps
    g = row_gradients(s * R, jnp.where(program.omega > floor, program.omega, 0))
    conjugate = jnp.sum(program.omega * loss.conjugate(g, program.Y))
    return -conjugate + s * jnp.sum(R * program.z0)


@jit
def relative_gap(primal: Array, dual: Array) -> Array:
    """(primal - dual) / primal, ()."""
    return (primal - dual) / jnp.maximum(primal, jnp.finfo(primal).tiny)


def reported_gap(primal: float, dual: float) -> float:
    """(primal - dual) / primal of figures that are final, at least 0; infinite where one is none.

    Example:
        >>> reported_gap(2.0, 1.0), reported_gap(1.0, 1.0 + 1e-9), reported_gap(float("nan"), 1.0)
        (0.5, 0.0, inf)
    """
    if not (math.isfinite(primal) and math.isfinite(dual)):
        return math.inf
    # Round-off can put the bound an ulp above the value.
    return max(0.0, primal - dual) / max(primal, sys.float_info.min)

r"""A dual point whose gates are level: the bound that a nearly optimal residual hides.

A residual R is a dual point once it is scaled by s = beta / max_i ||X' D_i R||_F, so the one worst
gate of all scales every row. Near the optimum the norms scatter around beta by a few per cent, and
with them the bound, long after the objective has settled. Here every gate moves along its own
gradient, by as much as takes the norms down to beta:

.. math:: V_i = -a_i\, U_i,\quad U_i = X'D_iR / \|X'D_iR\|_F, \qquad
          a = \arg\min_{a \ge 0}\; \tfrac12 a'Ma - e'a, \quad e_i = \|X'D_iR\|_F - \beta,

with M_ik = <D_i X U_i, Lambda D_k X U_k>, the Hessian of the loss in these P directions: to first
order the residual at W + V has the norms ||X'D_iR|| - (M a)_i <= beta. It is a residual, and so a
dual point, whatever the orders above the first do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads.losses import Loss, row_gradients
from convex_heads.operators import Program, apply, columns_of, hidden
from convex_heads.penalties import group_norms
from convex_heads.sharding import sum_blocks

# Gates that are moved: those with the largest norms.
MOST = 128
# Norms are taken to so much below beta, relative: first order is not exact.
_MARGIN = 1e-3
# Of the diagonal of M, added to it: nearly equal gates share what either could do alone.
_DAMPING = 1e-3
_SWEEPS = 30


def level(program: Program, loss: Loss, R: Array, G: Array, beta: Array) -> tuple[Array, Array]:
    """The move V (P, d, C) and its image F V (B, b, C), from a residual R and G = F'R.

    Costs ``min(MOST, P) / P`` of a data pass.
    """
    norms = group_norms(G)
    _, worst = jax.lax.top_k(norms, min(MOST, len(G)))
    norms, U = norms[worst], G[worst]
    U = U / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)[:, None, None]
    those = program._replace(D=program.D[:, :, worst])
    M = _curvature(those, loss, R, U)
    a = _nonnegative(M, norms - (1 - _MARGIN) * beta)
    V = -a[:, None, None] * U
    return jnp.zeros_like(G).at[worst].set(V), apply(those, V)


def _curvature(program: Program, loss: Loss, R: Array, U: Array) -> Array:
    """<D_i X U_i, Lambda D_k X U_k> of the program's gates, directions U (P, d, C): (P, P)."""
    columns, P = columns_of(U), len(U)

    def block(total: Array, rows: tuple[Array, ...]) -> tuple[Array, None]:
        X, D, Y, omega, r = rows
        a, u = loss.hessian(row_gradients(r, omega), Y)
        Z = jnp.where(D[:, None, :], hidden(X, columns, P), 0)
        scaled = (Z * (omega[:, None] * a)[:, :, None]).reshape(-1, P)
        along = jnp.einsum("bcp,bc->bp", Z, u)
        return total + scaled.T @ Z.reshape(-1, P) - (along * omega[:, None]).T @ along, None

    rows = program.X, program.D, program.Y, program.omega, R
    return sum_blocks(block, jnp.zeros((P, P), U.dtype), rows)


def _nonnegative(M: Array, e: Array) -> Array:
    """The minimiser of a'Ma / 2 - e'a over a >= 0, by coordinate descent: (P,)."""
    diagonal = jnp.diag(M)
    curved = diagonal > 0
    step = jnp.where(curved, 1 / jnp.where(curved, (1 + _DAMPING) * diagonal, 1), 0)

    def coordinate(i: Array, a: Array) -> Array:
        slope = e[i] - M[i] @ a - _DAMPING * diagonal[i] * a[i]
        return a.at[i].set(jnp.maximum(0, a[i] + step[i] * slope))

    def sweep(_: Array, a: Array) -> Array:
        return jax.lax.fori_loop(0, len(e), coordinate, a)

    return jax.lax.fori_loop(0, _SWEEPS, sweep, jnp.zeros_like(e))

r"""A dual point whose gates are level: the bound that a nearly optimal residual hides.

A residual R is a dual point once it is scaled by s = beta / max_i ||X' D_i R||_F, so the one worst
gate of all scales every row. Near the optimum the norms scatter around beta by a few per cent, and
with them the bound, long after the objective has settled. Here every gate moves along its own
gradient, by as much as is best for the quadratic model of the objective:

.. math:: V_i = -a_i\, U_i,\quad U_i = X'D_iR / \|X'D_iR\|_F, \qquad
          a = \arg\min\; \tfrac12 a'Ma - e'a, \quad e_i = \|X'D_iR\|_F - \beta,
          \quad a_i \ge \min(0, \langle W_i, U_i \rangle),

with M_ik = <D_i X U_i, Lambda D_k X U_k>, the Hessian of the loss in these P directions. What a
gate has along its gradient it may lose, and no more. So to first order the residual at W + V has
the norms ||X'D_iR|| - (M a)_i: beta for every gate that is free, at most beta for the others, which
is the dual constraint, and complementary slackness with it. Where curvature changes on the way, a
second round from there brings the rest. Whatever comes out is a residual, and so a dual point.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads.duality import dual_value, residual, row_gradients
from convex_heads.losses import Loss
from convex_heads.operators import Program, adjoint, apply, columns_of, hidden
from convex_heads.penalties import dual_norm, group_norms
from convex_heads.sharding import sum_blocks

# Gates that are moved: those with the largest norms.
_MOST = 128
_ROUNDS = 3
# Norms are taken to so much of the worst excess below beta, and to no more than so much of beta:
# first order is not exact.
_MARGIN, _LARGEST_MARGIN = 0.1, 1e-3
# Of the diagonal of M, added to it: nearly equal gates share what either could do alone.
_DAMPING = 1e-3
_SWEEPS = 30


class Levelled(NamedTuple):
    """What levelling yields.

    Attributes:
        move: V (P, d, C), from the weights to where the gates are level.
        image: F V (B, b, C).
        R: residual there (B, b, C).
        G: F'R (P, d, C).
        dual: value of its dual point, ().
        rounds: that it took, () int32.
    """

    move: Array
    image: Array
    R: Array
    G: Array
    dual: Array
    rounds: Array

    @property
    def passes(self) -> Array:
        """Data passes that it took, ()."""
        P = len(self.move)
        return self.rounds.astype(self.dual.dtype) * (0.5 + min(_MOST, P) / P)


def levelled(
    program: Program,
    loss: Loss,
    beta: Array,
    W: Array,
    z: Array,
    R: Array,
    G: Array,
    primal: Array,
) -> Levelled:
    """The gates levelled, in as many rounds as each halves the excess and it is what the gap is.

    Args:
        program: the blocked data.
        loss: the row loss.
        beta: absolute group penalty, > 0.
        W: weights (P, d, C).
        z: F W (B, b, C).
        R: their residual (B, b, C).
        G: F'R (P, d, C).
        primal: their objective, ().
    """

    def excess(G: Array) -> Array:
        return dual_norm(G) / beta - 1

    def again(carry: tuple[Array, Levelled]) -> Array:
        before, at = carry
        above = excess(at.G)
        useful = (above < before / 2) & (above * primal > primal - at.dual)
        return (at.rounds == 0) | (at.rounds < _ROUNDS) & useful

    def once_more(carry: tuple[Array, Levelled]) -> tuple[Array, Levelled]:
        _, at = carry
        move, image = level(program, loss, W + at.move, at.R, at.G, beta)
        move, image = at.move + move, at.image + image
        R = residual(program, loss, z + image)
        G = adjoint(program, R)
        dual = dual_value(program, loss, R, G, beta)
        return excess(at.G), Levelled(move, image, R, G, dual, at.rounds + 1)

    nowhere = jnp.zeros_like(W), jnp.zeros_like(z)
    start = Levelled(*nowhere, R, G, jnp.full_like(primal, -jnp.inf), jnp.int32(0))
    return jax.lax.while_loop(again, once_more, (excess(G), start))[1]


def level(
    program: Program, loss: Loss, W: Array, R: Array, G: Array, beta: Array
) -> tuple[Array, Array]:
    """The move V (P, d, C) of one round and its image F V (B, b, C), from R and G = F'R at W."""
    norms = group_norms(G)
    _, worst = jax.lax.top_k(norms, min(_MOST, len(G)))
    norms, U = norms[worst], G[worst]
    U = U / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)[:, None, None]
    those = program._replace(D=program.D[:, :, worst])
    margin = jnp.clip(_MARGIN * (norms[0] / beta - 1), 0, _LARGEST_MARGIN)
    a = _minimiser(
        _curvature(those, loss, R, U),
        norms - (1 - margin) * beta,
        jnp.minimum(0, jnp.sum(W[worst] * U, axis=(1, 2))),
    )
    V = -a[:, None, None] * U
    return jnp.zeros_like(G).at[worst].set(V), apply(those, V)


def _curvature(program: Program, loss: Loss, R: Array, U: Array) -> Array:
    """<D_i X U_i, Lambda D_k X U_k> of the program's gates, directions U (P, d, C): (P, P)."""
    columns, P = columns_of(U), len(U)

    def block(total: Array, rows: tuple[Array, ...]) -> tuple[Array, None]:
        X, D, Y, omega, r = rows
        a, u = loss.hessian(row_gradients(r, omega), Y)
        Z = jnp.where(D[:, None, :], hidden(X, columns, P, program.precision), 0)
        scaled = (Z * (omega[:, None] * a)[:, :, None]).reshape(-1, P)
        along = jnp.einsum("bcp,bc->bp", Z, u)
        return total + scaled.T @ Z.reshape(-1, P) - (along * omega[:, None]).T @ along, None

    rows = program.X, program.D, program.Y, program.omega, R
    return sum_blocks(block, jnp.zeros((P, P), U.dtype), rows)


def _minimiser(M: Array, e: Array, least: Array) -> Array:
    """Of a'Ma / 2 - e'a over a >= least, least <= 0, by coordinate descent from zero: (P,)."""
    diagonal = jnp.diag(M)
    curved = diagonal > 0
    step = jnp.where(curved, 1 / jnp.where(curved, (1 + _DAMPING) * diagonal, 1), 0)

    def coordinate(i: Array, a: Array) -> Array:
        slope = e[i] - M[i] @ a - _DAMPING * diagonal[i] * a[i]
        return a.at[i].set(jnp.maximum(least[i], a[i] + step[i] * slope))

    def sweep(_: Array, a: Array) -> Array:
        return jax.lax.fori_loop(0, len(e), coordinate, a)

    return jax.lax.fori_loop(0, _SWEEPS, sweep, jnp.zeros_like(e))

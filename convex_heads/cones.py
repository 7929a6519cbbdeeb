r"""The cones of the ReLU program, one for every gate, and their slack operator G, streamed.

.. math:: K_i = \{v : (2 D_i - I) X v \ge 0\}, \qquad
          (G V)_{ik} = (2 D_i - I) X v_{ik}, \qquad (G' S)_{ik} = X' (2 D_i - I) S_{ik} .

A neuron relu(x'v) with v in K_i is on exactly where gate i is, so on the training rows it computes
D_i X v. Rows of weight zero (padding, validation) constrain nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads.operators import Program, columns_of, hidden, pull_back, weights_of
from convex_heads.penalties import neuron_norms
from convex_heads.precision import jit

_RELAX = 1.6


def signs(D: Array, dtype: jnp.dtype) -> Array:
    """2 D - I of pattern rows (b, P): (b, 1, P)."""
    return jnp.where(D, jnp.ones((), dtype), -jnp.ones((), dtype))[:, None, :]


@jit
def violation(program: Program, V: Array) -> Array:
    """How far the values of V (P, d, K) are outside their cones, ().

    The largest ||min(0, G v)|| over all v relative to the largest ||X v||, both weighted by omega;
    0 is feasible.
    """
    P, _, K = V.shape
    columns = columns_of(V)

    def block(total: tuple, rows: tuple[Array, ...]) -> tuple[tuple, None]:
        X, D, omega = rows
        g = hidden(X, columns, P) * signs(D, X.dtype)
        below, omega = jnp.minimum(g, 0), omega[:, None, None]
        return (
            total[0] + jnp.sum(omega * below * below, axis=0),
            total[1] + jnp.sum(omega * g * g, axis=0),
        ), None

    zero = jnp.zeros((K, P), V.dtype)
    (below, size), _ = jax.lax.scan(block, (zero, zero), (program.X, program.D, program.omega))
    top = jnp.max(size)
    return jnp.where(top > 0, jnp.sqrt(jnp.max(below) / jnp.where(top > 0, top, 1)), 0)


@partial(jit, static_argnames="steps")
def projection_norms(
    program: Program, h: Array, A: Array, *, steps: int = 100, rho: float = 10.0
) -> tuple[Array, Array]:
    r"""Norms of the projections of A_ik (P, d, K) on their cones, bounded from above; by ADMM.

    .. math:: \|\mathrm{Proj}_{K_i}(a)\| = \min_{y \ge 0} \|a + X'(2 D_i - I) y\| ,

    so every y >= 0 gives an upper bound. The steps of ADMM for the projection,
    min_v 1/2 ||v - a||^2 subject to G v = s >= 0, supply them (scaled form, Boyd et al. 2011,
    section 3.1.1; the constraint weighted by omega).

    Args:
        program: the blocked data, features in principal axes: X' diag(omega) X = diag(h).
        h: that diagonal (d,).
        A: the vectors (P, d, K).
        steps: steps to take; each costs two products of X with K P columns.
        rho: ADMM's penalty, for features whose second moments are about 1. 10 settles soonest for
            vectors that are far outside their cones, 1 for vectors that are nearly inside.

    Returns:
        The bounds (P, K), and the points v (P, d, K) whose norms they are near.
    """
    P, d, K = A.shape
    size = neuron_norms(A)[:, None, :]
    a = A / jnp.where(size > 0, size, 1)

    def pull(q: Array, part: Callable[[Array], Array]) -> Array:
        """G'(omega * part(q)), (P, d, K)."""

        def block(total: Array, rows: tuple[Array, ...]) -> tuple[Array, None]:
            X, D, omega, q = rows
            back = omega[:, None, None] * signs(D, X.dtype) * part(q)
            return total + pull_back(X, back), None

        rows = program.X, program.D, program.omega, q
        total, _ = jax.lax.scan(block, jnp.zeros((d, K * P), A.dtype), rows)
        return weights_of(total, P)

    def slacks(v: Array, q: Array) -> Array:
        """Slack (positive part) and multiplier (negative part) of every row after one step."""
        columns = columns_of(v)

        def block(rows: tuple[Array, ...]) -> Array:
            X, D, q = rows
            g = hidden(X, columns, P) * signs(D, X.dtype)
            return _RELAX * g + (1 - _RELAX) * jnp.maximum(q, 0) + jnp.minimum(q, 0)

        return jax.lax.map(block, (program.X, program.D, q))

    inverse = 1 / (1 + rho * h[None, :, None])

    def point(q: Array) -> Array:
        return inverse * (a + rho * pull(q, jnp.abs))

    B, b = program.omega.shape
    q = jax.lax.fori_loop(
        0, steps, lambda _, q: slacks(point(q), q), jnp.zeros((B, b, K, P), A.dtype)
    )
    bound = a - rho * pull(q, lambda q: jnp.minimum(q, 0))
    return jnp.minimum(neuron_norms(bound), 1) * size[:, 0], point(q) * size

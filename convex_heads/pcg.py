"""Preconditioned conjugate gradients, several right-hand sides at once, products counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class PCGResult(NamedTuple):
    """What a solve came to.

    Attributes:
        x: the solution, of the shape of the right-hand side.
        residual: norm of b - A x relative to that of b, by CG's recursion from the true residual
            at the start, ().
        products: products with A, the one at the start included, ().
    """

    x: Array
    residual: Array
    products: Array


def pcg(
    A: Callable[[Array], Array],
    b: Array,
    x: Array,
    precondition: Callable[[Array], Array],
    tolerance: Array,
    max_steps: int,
) -> PCGResult:
    """Solves A x = b for a symmetric positive definite A that acts on every column alike.

    The columns share their step lengths, so that one product serves all of them (the method is
    that for the block-diagonal matrix of the columns; Saad 2003, algorithm 9.1).

    Args:
        A: product with the matrix.
        b: right-hand side, any shape.
        x: where to start.
        precondition: product with an approximate inverse of A, symmetric positive definite.
        tolerance: residual norm to reach, relative to b.
        max_steps: steps at most; reaching it is no error, the residual says how far it got.
    """
    tiny = jnp.finfo(b.dtype).tiny
    size = jnp.sqrt(jnp.vdot(b, b))

    def body(carry: tuple) -> tuple:
        k, x, r, p, rz = carry
        q = A(p)
        step = rz / jnp.maximum(jnp.vdot(p, q), tiny)
        x, r = x + step * p, r - step * q
        z = precondition(r)
        new = jnp.vdot(r, z)
        return k + 1, x, r, z + new / jnp.maximum(rz, tiny) * p, new

    def go_on(carry: tuple) -> Array:
        k, _, r, _, _ = carry
        return (k < max_steps) & (jnp.sqrt(jnp.vdot(r, r)) > tolerance * size)

    r = b - A(x)
    z = precondition(r)
    k, x, r, _, _ = jax.lax.while_loop(go_on, body, (jnp.int32(0), x, r, z, jnp.vdot(r, z)))
    return PCGResult(x, jnp.sqrt(jnp.vdot(r, r)) / jnp.maximum(size, tiny), k + 1)

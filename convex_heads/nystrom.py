r"""Randomised Nystrom approximation of a positive semidefinite matrix, and its preconditioner.

.. math:: \hat A = (A \Omega)(\Omega' A \Omega)^{+} (A \Omega)' = U \hat\Lambda U'

from products with A alone (Frangella, Tropp, Udell 2021, algorithm 2.1), and the preconditioner of
A + mu I made of it (ibid., eq. 5.3):

.. math:: P^{-1} = (\hat\lambda_r + \mu)\, U (\hat\Lambda + \mu I)^{-1} U' + (I - U U') .
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_POWER_STEPS = 10


class Nystrom(NamedTuple):
    """U (P, d, r) with orthonormal columns and the eigenvalues (r,), descending."""

    U: Array
    eigenvalues: Array


def nystrom(
    A: Callable[[Array], Array], shape: tuple[int, int], rank: int, key: Array, dtype: jnp.dtype
) -> Nystrom:
    """Approximation of rank at most ``rank``.

    Args:
        A: product of the matrix with columns (P, d, r), all alike.
        shape: (P, d); the matrix is of size P d.
        rank: r, between 1 and P d.
        key: JAX random key of the test matrix.
        dtype: float type; the shift that keeps the factorisation positive is scaled to it.
    """
    size = shape[0] * shape[1]
    rank = min(rank, size)
    test, _ = jnp.linalg.qr(jax.random.normal(key, (size, rank), dtype))
    Y = A(test.reshape(*shape, rank)).reshape(size, rank)
    shift = jnp.sqrt(rank) * jnp.finfo(dtype).eps * jnp.linalg.norm(Y)
    Y = Y + shift * test
    core = test.T @ Y
    values, vectors = jnp.linalg.eigh((core + core.T) / 2)
    # A Cholesky factor would do, but does not exist where round-off made the core indefinite.
    root = jnp.where(values > shift / 2, 1 / jnp.sqrt(jnp.maximum(values, shift / 2)), 0)
    U, singular, _ = jnp.linalg.svd(Y @ (vectors * root), full_matrices=False)
    return Nystrom(U.reshape(*shape, rank), jnp.maximum(singular**2 - shift, 0))


def approximation_error(
    A: Callable[[Array], Array], sketch: Nystrom, key: Array, steps: int = _POWER_STEPS
) -> Array:
    """Estimate of the spectral norm of A - U diag(eigenvalues) U', never above it, ().

    Power iterations (ibid., algorithm E.1).
    """

    def remainder(v: Array) -> Array:
        inside = jnp.einsum("pdr,pdc->rc", sketch.U, v)
        return A(v) - jnp.einsum("pdr,rc->pdc", sketch.U, sketch.eigenvalues[:, None] * inside)

    def body(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        v = carry[0]
        w = remainder(v)
        size = jnp.sqrt(jnp.vdot(w, w))
        return w / jnp.maximum(size, jnp.finfo(w.dtype).tiny), jnp.abs(jnp.vdot(v, w))

    P, d, _ = sketch.U.shape
    v = jax.random.normal(key, (P, d, 1), sketch.U.dtype)
    v = v / jnp.linalg.norm(v)
    return jax.lax.fori_loop(0, steps, body, (v, jnp.zeros((), v.dtype)))[1]


def adaptive_nystrom(
    A: Callable[[Array], Array],
    shape: tuple[int, int],
    mu: float,
    key: Array,
    dtype: jnp.dtype,
    *,
    rank: int = 16,
    max_rank: int = 512,
    factor: float = 10.0,
) -> Nystrom:
    """Doubles the rank until the error that is left is at most ``factor`` mu (ibid., section 5.4).

    The condition number of the preconditioned matrix is then about factor + 1.
    """
    while True:
        key, draw, check = jax.random.split(key, 3)
        sketch = nystrom(A, shape, rank, draw, dtype)
        done = rank >= min(max_rank, shape[0] * shape[1])
        if done or float(approximation_error(A, sketch, check)) <= factor * mu:
            return sketch
        rank = min(2 * rank, max_rank)


def precondition(sketch: Nystrom, mu: Array, r: Array) -> Array:
    """P^-1 r of columns r (P, d, c), scaled by 1 / (lambda_r + mu), which CG does not notice."""
    inside = jnp.einsum("pdr,pdc->rc", sketch.U, r)
    last = sketch.eigenvalues[-1] + mu
    ratio = last / (sketch.eigenvalues + mu) - 1
    return r + jnp.einsum("pdr,rc->pdc", sketch.U, ratio[:, None] * inside)

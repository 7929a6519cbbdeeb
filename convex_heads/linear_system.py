r"""The linear system of one step of :mod:`convex_heads.admm`, and its preconditioners.

.. math:: (\rho_1 I + \rho_2 G'\Omega G + \rho_3 B' F' \Omega F B)\, u = b, \qquad
          u = (v, w), \quad B u = v - w .

Its structure leaves little of it (features in principal axes, X'\Omega X = diag(h)):
(2D-I)^2 = I makes G'\Omega G = diag(h) for every gate, sign and output; F sees v - w only, so
v + w is a division by rho_1 + rho_2 h; and one matrix, rho_1 + rho_2 diag(h) + 2 rho_3 F'\Omega F,
serves all outputs of v - w, by conjugate gradients. Two preconditioners:

- structured: takes the patterns for independent of the features, so that F'\Omega F is T (x)
  diag(h), T_ik the share of rows where gates i and k are both on; one eigendecomposition of T
  (P, P) inverts it, for any penalties.
- Nystrom (:mod:`convex_heads.nystrom`), the published one: for penalties that do not change.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads.nystrom import Nystrom, adaptive_nystrom, nystrom, precondition
from convex_heads.operators import Program, adjoint, apply
from convex_heads.pcg import pcg
from convex_heads.precision import full_precision, jit

ADAPTIVE = "adaptive"
_MAX_CG = 20


class System(NamedTuple):
    """What the linear system is made of.

    Attributes:
        h: second moments (d,).
        share: eigenvalues of T (P,).
        basis: eigenvectors of T (P, P).
        sketch: Nystrom approximation of rho_2 diag(h) + 2 rho_3 F' Omega F, or None.
    """

    h: Array
    share: Array
    basis: Array
    sketch: Nystrom | None = None


@jit
def structured(program: Program, h: Array) -> System:
    """The system with its structured preconditioner; T takes one sweep over the patterns."""

    def block(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
        D, omega = rows
        on = D.astype(h.dtype)
        return total + (on * omega[:, None]).T @ on, None

    P = program.D.shape[2]
    T, _ = jax.lax.scan(block, jnp.zeros((P, P), h.dtype), (program.D, program.omega))
    share, basis = jnp.linalg.eigh(T)
    return System(h, jnp.maximum(share, 0), basis)


@full_precision
def sketched(program: Program, h: Array, rho: Array, rank: int | str, key: Array) -> System:
    """The system for penalties rho (3,), with a Nystrom preconditioner.

    Args:
        program: the blocked data.
        h: second moments (d,).
        rho: penalties that will not change.
        rank: of the sketch; ``adaptive`` doubles it until the condition number is about ten.
        key: JAX random key of the sketch.
    """

    def matrix(m: Array) -> Array:
        return rho[1] * h[:, None] * m + 2 * rho[2] * _gram(program, m)

    shape = program.shape[:2]
    if rank == ADAPTIVE:
        sketch = adaptive_nystrom(matrix, shape, float(rho[0]), key, h.dtype)
    else:
        sketch = nystrom(matrix, shape, int(rank), key, h.dtype)
    return structured(program, h)._replace(sketch=sketch)


def solve(
    program: Program, system: System, rho: Array, b: Array, start: Array, tolerance: Array
) -> tuple[Array, Array]:
    """u (P, d, 2 C) and the products with F'F that it took, ().

    Args:
        program: the blocked data.
        system: from :func:`structured` or :func:`sketched`.
        rho: penalties (3,).
        b: right-hand side (P, d, 2 C).
        start: u to start from.
        tolerance: residual norm relative to that of b, for the half v - w.
    """
    h = system.h[:, None]
    base = rho[0] + rho[1] * h

    def matrix(m: Array) -> Array:
        return base * m + 2 * rho[2] * _gram(program, m)

    def approximate_inverse(r: Array) -> Array:
        if system.sketch is not None:
            return precondition(system.sketch, rho[0], r)
        r = jnp.einsum("ip,idc->pdc", system.basis, r)
        r = r / (base + 2 * rho[2] * system.share[:, None, None] * h)
        return jnp.einsum("ip,pdc->idc", system.basis, r)

    minus = pcg(matrix, difference(b), difference(start), approximate_inverse, tolerance, _MAX_CG)
    v, w = jnp.split(b, 2, axis=-1)
    plus = (v + w) / base
    return jnp.concatenate([plus + minus.x, plus - minus.x], axis=-1) / 2, minus.products


def difference(V: Array) -> Array:
    """v - w of (..., 2 C)."""
    v, w = jnp.split(V, 2, axis=-1)
    return v - w


def _gram(program: Program, m: Array) -> Array:
    """F' Omega F m."""
    return adjoint(program, program.omega[..., None] * apply(program, m))

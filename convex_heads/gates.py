r"""Gates g_i and their activation patterns D_i = diag(1[X g_i >= 0]): four ways to draw them.

With S = sum_j omega_j x_j x_j' the second moment of the standardised features and xi ~ N(0, I):

=============  ==============================================================================
``aligned``    S^{1/2} xi, random mixtures of the rows: directions in which the data vary more
               get more of the cuts. On text and image features fewer such gates are needed
               than isotropic ones (the default).
``gaussian``   xi: all directions alike, whatever the data.
``geometric``  S^{-1/2} xi in the span of the data: hyperplanes *through* rows of a random
               sketch of the data, see below.
``pairs``      x_a - x_b, threshold half-way between the two random rows a and b; the others
               pass through the mean of the data.
=============  ==============================================================================

The geometric-algebra view of the convex programs (Pilanci 2023, arXiv 2309.16512) takes hyperplanes
through r - 1 rows, r the rank of the data: generalised cross products. Wang, Kim, Chu, Subramaniam
& Pilanci (2024, arXiv 2406.02806) take such products of sketched data. Here the sketch is Gaussian
mixtures of all rows, and these are N(0, S): the cross product v of r - 1 of them solves
(N S^{1/2}) v = 0 with N Gaussian, S^{1/2} v has a uniform direction, and v is drawn as S^{-1/2} xi
without computing a cross product.

Everything depends on the data through S, or on rows in their canonical order
(:mod:`convex_heads.scaling`), so equal data and an equal key give equal gates to the bit.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads.precision import jit
from convex_heads.sources import RowSource, chunks

SAMPLERS = ("aligned", "gaussian", "geometric", "pairs")
DEFAULT_SAMPLER = "aligned"
# Variances below this share of the largest are round-off, not part of the span of the data.
_SPAN = 1e-6
# Gates are drawn in such numbers: as many as a certificate tries.
_DRAWN_AT_ONCE = 256


class WeightedRows(NamedTuple):
    """The rows that ``pairs`` draws from.

    Attributes:
        X: standardised features (n, d), the last column constant one.
        omega: row weights (n,), non-negative, not all zero: a row is drawn as often as its weight
            says, one of weight zero never.
    """

    X: RowSource
    omega: np.ndarray


def sample_gates(
    key: Array,
    second_moment: Array,
    n_gates: int,
    *,
    sampler: str = DEFAULT_SAMPLER,
    rows: WeightedRows | None = None,
) -> Array:
    """Draws gates: the always-on one, so that the head contains the linear probe, then P - 1 more.

    Args:
        key: a JAX random key.
        second_moment: S (d, d), of the standardised features; the last row and column belong to
            the constant column and are ignored.
        n_gates: P >= 1. The first gate is (0, ..., 0, 1), always on.
        sampler: one of :data:`SAMPLERS`.
        rows: needed by ``pairs`` alone.

    Returns:
        gates (P, d).

    Raises:
        ValueError: no such sampler, or ``pairs`` without rows.

    Example:
        >>> gates = sample_gates(jax.random.key(0), jnp.eye(3), 4)
        >>> gates.shape, gates[0].tolist(), bool((gates[1:, -1] == 0).all())
        ((4, 3), [0.0, 0.0, 1.0], True)
    """
    check_sampler(sampler)
    if sampler == "pairs":
        if rows is None:
            raise ValueError("gates 'pairs' are drawn from rows: pass rows=WeightedRows(X, omega)")
        drawn = jnp.asarray(_pairs(key, rows, n_gates - 1), second_moment.dtype)
        return _with_always_on(drawn)
    # A draw is the beginning of any longer one, and there is one compiled function for many P.
    enough = -(-(n_gates - 1) // _DRAWN_AT_ONCE) * _DRAWN_AT_ONCE
    return _with_always_on(_coloured(key, second_moment, enough, sampler))[:n_gates]


@partial(jit, static_argnames="m")
def aligned_gates(key: Array, Q: Array, eigenvalues: Array, m: int) -> Array:
    """Gates (m, d) that :func:`sample_gates` draws as ``aligned``, always-on one left out.

    For those who have S = Q diag(eigenvalues) Q' decomposed, the constant column's row included:
    the entries of S^(1/2) xi but for the last one have the covariance of the features alone. Where
    their mean is zero these are the very gates of the same key.
    """
    xi = jax.random.normal(key, (m, len(Q) - 1), Q.dtype)
    last = jax.random.normal(jax.random.fold_in(key, 1), (m, 1), Q.dtype)
    drawn = ((jnp.concatenate([xi, last], axis=1) @ Q) * _root(eigenvalues)) @ Q.T
    return drawn.at[:, -1].set(0)


def row_basis(X: RowSource) -> np.ndarray | None:
    """An orthonormal basis (d, n + 1) of the span of rows (n, d) whose last column is constant.

    The constant column keeps an axis of its own, the last one. None where n + 1 >= d: all of the
    space is needed, or nearly.

    Example:
        >>> X = np.array([[3.0, 4.0, 0.0, 1.0]])
        >>> B = row_basis(X)
        >>> B.shape, bool(np.allclose(X @ B @ B.T, X)), (X @ B)[0, -1].tolist()
        ((4, 2), True, 1.0)
    """
    n, d = X.shape
    if n + 1 >= d:
        return None
    span, _ = np.linalg.qr(X[:][:, :-1].T)
    basis = np.zeros((d, n + 1), X.dtype)
    basis[:-1, :-1] = span
    basis[-1, -1] = 1
    return basis


def check_sampler(sampler: str) -> None:
    """Raises a ValueError for a sampler that does not exist."""
    if sampler not in SAMPLERS:
        raise ValueError(f"gates must be one of {', '.join(SAMPLERS)}; got {sampler!r}")


@jit
def _with_always_on(drawn: Array) -> Array:
    """Gates (m, d) after the one that is always on: (m + 1, d)."""
    return jnp.pad(drawn, ((1, 0), (0, 0))).at[0, -1].set(1)


@partial(jit, static_argnames=("m", "sampler"))
def _coloured(key: Array, moment: Array, m: int, sampler: str) -> Array:
    """Rows f(S) xi with f(S) = Q f(Lambda) Q', (m, d), last entries zero.

    The *symmetric* f(S) does not depend on the signs or the order of the eigenvectors nor, where
    eigenvalues are equal, on which eigenvectors were found: equal data give equal gates.
    """
    d = moment.shape[0]
    eigenvalues, Q = jnp.linalg.eigh(moment[:-1, :-1])
    xi = jax.random.normal(key, (m, d - 1), moment.dtype)
    drawn = ((xi @ Q) * _SPECTRUM[sampler](eigenvalues)) @ Q.T
    return jnp.pad(drawn, ((0, 0), (0, 1)))


def _root(eigenvalues: Array) -> Array:
    return jnp.sqrt(jnp.maximum(eigenvalues, 0))


def _inverse_root(eigenvalues: Array) -> Array:
    inside = eigenvalues > _SPAN * jnp.max(eigenvalues)
    return jnp.where(inside, 1 / jnp.sqrt(jnp.where(inside, eigenvalues, 1)), 0)


_SPECTRUM = {"aligned": _root, "gaussian": jnp.ones_like, "geometric": _inverse_root}


def _pairs(key: Array, rows: WeightedRows, m: int) -> np.ndarray:
    omega = np.asarray(rows.omega, np.float64)
    ends = np.cumsum(omega)
    # In double precision: single knows only 2^24 different rows.
    u = np.random.default_rng(np.asarray(jax.random.key_data(key))).random((2, m))
    a = _index(ends, u[0] * ends[-1])
    # The second row is one of the others: the share of the first is cut out of the line.
    rest = u[1] * (ends[-1] - omega[a])
    b = _index(ends, np.where(rest < ends[a] - omega[a], rest, rest + omega[a]))
    x_a, x_b = (rows.X[index][:, :-1].astype(np.float64) for index in (a, b))
    threshold = np.sum((x_a - x_b) * (x_a + x_b), axis=1) / 2
    return np.c_[x_a - x_b, -threshold]


def _index(ends: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The rows whose share of the cumulated weights holds u; never one of weight zero."""
    return np.minimum(np.searchsorted(ends, u, side="right"), np.searchsorted(ends, ends[-1]))


@jit
def activation_patterns(X: Array, gates: Array) -> Array:
    """1[X g_i >= 0]: features (n, d), gates (P, d) -> bool (n, P)."""
    return X @ gates.T >= 0


def patterns_of(X: RowSource, gates: np.ndarray) -> np.ndarray:
    """:func:`activation_patterns` of rows that are read in chunks: (n, P) bool."""
    D = np.empty((len(X), len(gates)), bool)
    for rows in chunks(X):
        D[rows] = activation_patterns(jnp.asarray(X[rows]), jnp.asarray(gates))
    return D


def distinct_patterns(D: np.ndarray) -> np.ndarray:
    """Indices (in order) of the first gate of every distinct pattern; D is bool (n, P)."""
    packed = np.packbits(np.asarray(D), axis=0).T
    _, first = np.unique(packed, axis=0, return_index=True)
    return np.sort(first)

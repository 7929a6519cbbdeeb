r"""The gated feature map and its adjoint, streamed over row blocks.

.. math:: F W = \sum_i D_i X W_i \in R^{n \times C}, \qquad
          (F' R)_i = X' D_i R \in R^{d \times C},

with D_i = diag(1[X g_i >= 0]). One *data pass* is one product with F and one with F'. Rows travel
in blocks, so that nothing of size (n, P, C) ever exists: the largest temporary is (b, C P).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from convex_heads.precision import Precision, jit, product
from convex_heads.scratch import spooled
from convex_heads.sharding import devices_here, place, sum_blocks, to_host

# Largest number of entries in one (b, C P) temporary: 16 MB in float32. Gates run along its last
# axis, where masking and summing them vectorise; of blocks of 256 to 14,336 rows, 512 are fastest
# on two cores (n 14,336, d 385, P 64, C 6).
_BLOCK_ENTRIES = 4 << 20
_MAX_BLOCK_ROWS = 512
# Rows of a block are a multiple of this: among several blocks, and of the only one of little data,
# where compiling takes longer than solving.
_ROUND, _ROUND_ALONE = 16, 64


class Program(NamedTuple):
    """The data of one gated program, in B blocks of b rows (the last one padded).

    Attributes:
        X: features (B, b, d), standardised, with a constant column.
        D: activation patterns (B, b, P), bool.
        Y: targets (B, b, C).
        omega: row weights (B, b), summing to one; zero for padding and for held-out rows.
        z0: offset of the scores (C,).
        precision: of the products that are streamed, F W and F'R. Default float32.
    """

    X: Array
    D: Array
    Y: Array
    omega: Array
    z0: Array
    precision: Precision = Precision.FLOAT32

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, d, C), the shape of the weights W."""
        return self.D.shape[2], self.X.shape[2], self.Y.shape[2]


def block_rows(n: int, P: int, C: int) -> int:
    """Rows of a block: n rows in equal blocks small enough for the (b, P C) temporary.

    Over several devices each has so many rows of a block. Blocks have round numbers of rows, so
    that data of nearly one length, such as the folds of a cross-validation, share compiled code.
    """
    devices = devices_here()
    n = -(-n // devices)
    limit = max(1, min(_MAX_BLOCK_ROWS, _BLOCK_ENTRIES // max(1, P * C)))
    equal = -(-n // -(-n // limit))
    multiple = _ROUND_ALONE if n <= limit else _ROUND
    return devices * min(limit, -(-equal // multiple) * multiple)


def build_program(
    X: ArrayLike, D: ArrayLike, Y: ArrayLike, omega: ArrayLike, z0: ArrayLike
) -> Program:
    """Cuts (n, ...) arrays into blocks.

    Args:
        X: features (n, d).
        D: patterns (n, P), bool.
        Y: targets (n, C).
        omega: row weights (n,), non-negative; normalised here to sum to one.
        z0: offset (C,).
    """
    X, D, Y, omega = np.asarray(X), np.asarray(D), np.asarray(Y), np.asarray(omega)
    b = block_rows(len(X), D.shape[1], Y.shape[1])
    return Program(
        _blocks(X, b),
        _blocks(D, b),
        _blocks(Y, b),
        _blocks(omega / omega.sum(), b),
        jnp.asarray(z0),
    )


def spool_program(
    X: Iterable[np.ndarray], d: int, D: np.ndarray, Y: np.ndarray, omega: np.ndarray, z0: ArrayLike
) -> Program:
    """As :func:`build_program`, for features larger than memory: they go to a temporary file.

    Args:
        X: features (n, d) in the dtype of Y, some rows at a time.
        d: their width.
        D: patterns (n, P), bool.
        Y: targets (n, C).
        omega: row weights (n,), non-negative; normalised here to sum to one.
        z0: offset (C,).
    """
    n = len(Y)
    b = block_rows(n, D.shape[1], Y.shape[1])
    return Program(
        spooled((-(-n // b), b, d), Y.dtype, X),
        _blocks(D, b),
        _blocks(Y, b),
        _blocks(omega / omega.sum(), b),
        jnp.asarray(z0),
    )


def _blocks(A: np.ndarray, b: int) -> Array:
    """(n, ...) -> (B, b, ...), the last block padded with zeros."""
    pad = -len(A) % b
    A = np.concatenate([A, np.zeros((pad, *A.shape[1:]), A.dtype)]) if pad else A
    return place(A.reshape(-1, b, *A.shape[1:]))


def rows(program_array: Array, n: int) -> np.ndarray:
    """Undoes the blocks: (B, b, ...) -> (n, ...), padding dropped."""
    A = to_host(program_array)
    return A.reshape(-1, *A.shape[2:])[:n]


def columns_of(W: Array) -> Array:
    """Weights (P, d, C) -> (d, C P): gates along the last axis, as streamed products want."""
    P, d, C = W.shape
    return W.transpose(1, 2, 0).reshape(d, C * P)


def weights_of(columns: Array, P: int) -> Array:
    """The inverse of :func:`columns_of`: (d, C P) -> (P, d, C)."""
    d = columns.shape[0]
    return columns.reshape(d, -1, P).transpose(2, 0, 1)


def hidden(X: Array, columns: Array, P: int, precision: Precision = Precision.FLOAT32) -> Array:
    """Values of rows (b, d) before gating: (b, C, P)."""
    return product(X, columns, precision).reshape(len(X), -1, P)


def pull_back(X: Array, back: Array, precision: Precision = Precision.FLOAT32) -> Array:
    """X' of values (b, C, P), as columns (d, C P)."""
    return product(X.T, back.reshape(len(X), -1), precision)


@jit
def apply(program: Program, W: Array) -> Array:
    """F W: weights (P, d, C) -> scores without offset (B, b, C). Half a data pass."""
    columns, P = columns_of(W), W.shape[0]

    def block(XD: tuple[Array, Array]) -> Array:
        X, D = XD
        Z = hidden(X, columns, P, program.precision)
        return jnp.sum(jnp.where(D[:, None, :], Z, jnp.zeros_like(Z)), axis=2)

    return jax.lax.map(block, (program.X, program.D))


@jit
def adjoint(program: Program, R: Array) -> Array:
    """F' R: residuals (B, b, C) -> (P, d, C). Half a data pass."""
    (P, d, _), C = program.shape, R.shape[-1]

    def block(total: Array, XDR: tuple[Array, Array, Array]) -> tuple[Array, None]:
        X, D, r = XDR
        gated = jnp.where(D[:, None, :], r[:, :, None], jnp.zeros_like(r)[:, :, None])
        return total + pull_back(X, gated, program.precision), None

    total = sum_blocks(block, jnp.zeros((d, C * P), R.dtype), (program.X, program.D, R))
    return weights_of(total, P)


@jit
def adjoint_of_gates(program: Program, gates: Array, R: Array) -> Array:
    """X' D_g R of other gates (P', d), in the coordinates of program.X: (P', d, C).

    At most as many of them at a time as the program has gates; their patterns are not kept.
    """
    P, d, C = min(program.shape[0], len(gates)), program.shape[1], R.shape[-1]
    groups = jnp.pad(gates, ((0, -len(gates) % P), (0, 0))).reshape(-1, P, d)

    def of_group(group: Array) -> Array:
        def block(total: Array, XR: tuple[Array, Array]) -> tuple[Array, None]:
            X, r = XR
            on = X @ group.T >= 0
            gated = jnp.where(on[:, None, :], r[:, :, None], jnp.zeros_like(r)[:, :, None])
            return total + pull_back(X, gated), None

        return weights_of(sum_blocks(block, jnp.zeros((d, C * P), R.dtype), (program.X, R)), P)

    return jax.lax.map(of_group, groups).reshape(-1, d, C)[: len(gates)]


@jit
def column_moments(program: Program) -> Array:
    """The diagonal (d,) of X' diag(omega) X."""

    def block(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
        X, omega = rows
        return total + omega @ (X * X), None

    start = jnp.zeros(program.X.shape[2], program.X.dtype)
    return sum_blocks(block, start, (program.X, program.omega))

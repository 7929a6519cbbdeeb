"""Standardisation with a constant column, and the canonical form of a training set."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from convex_heads.sources import RowSource

# A column whose spread is below so many units in the last place of its own largest entry holds
# nothing but round-off. It is judged by itself: the scales of columns are the user's affair (one in
# millions, others in units), and a tiny one can be a signal. Against the others it is judged where
# they are told to have one unit (`min_spread`).
_ULPS = 4
# Standardised features are cut off there: a row that is so far out is no row that was fitted, and
# its square must be a float32 number.
_FARTHEST = 1e12
_BLOCK = 4096


class Scaling(NamedTuple):
    """x -> [(x - mean) / scale, 1].

    Attributes:
        mean: (d,).
        scale: (d,), positive; 1 for columns that are left out, which become zero.
        keep: (d,) bool, False for these columns.
    """

    mean: np.ndarray
    scale: np.ndarray
    keep: np.ndarray

    @classmethod
    def fit(cls, X: RowSource, omega: np.ndarray, min_spread: float = 0.0) -> Scaling:
        """Weighted mean and spread of the columns of X (n, d), in double precision.

        (Near-)constant columns are left out, and those whose spread is below `min_spread` times the
        median of the others'.
        """
        weights = np.asarray(omega, np.float64) / np.sum(omega, dtype=np.float64)
        # In units of a power of two near its largest entry no column's square over- or underflows.
        largest = np.zeros(X.shape[1])
        for rows in _blocks(len(X)):
            largest = np.maximum(largest, np.abs(X[rows]).max(axis=0))
        unit = _power_of_two(largest)
        mean, square = np.zeros(X.shape[1]), np.zeros(X.shape[1])
        for rows in _blocks(len(X)):
            mean += weights[rows] @ (X[rows] / unit)
        # Two passes: a large mean would cancel the spread in E[x^2] - mean^2.
        for rows in _blocks(len(X)):
            square += weights[rows] @ (X[rows] / unit - mean) ** 2
        spread, dtype = np.sqrt(square), X.dtype
        scale = spread * unit
        # Subnormal spreads have lost their digits too.
        keep = (spread > _ULPS * np.finfo(dtype).eps * largest / unit) & (
            scale >= np.finfo(dtype).tiny
        )
        if min_spread > 0 and keep.any():
            keep &= scale >= min_spread * np.median(scale[keep])
        scale = np.where(keep, scale, 1)
        return cls((mean * unit).astype(dtype), scale.astype(dtype), keep)

    def transform(self, X: RowSource, dtype: DTypeLike | None = None) -> np.ndarray:
        """Features (n, d) -> (n, d + 1), the last column one; dtype is that of X if not given."""
        out = np.ones((X.shape[0], X.shape[1] + 1), X.dtype if dtype is None else dtype)
        # In double precision, and halves, so that no difference of two large entries overflows.
        mean, scale = self.mean.astype(np.float64) / 2, self.scale.astype(np.float64) / 2
        for rows in _blocks(len(X)):
            block = X[rows].astype(np.float64)
            block *= 0.5
            block -= mean
            with np.errstate(over="ignore"):
                block /= scale
            np.clip(block, -_FARTHEST, _FARTHEST, out=block)
            block *= self.keep
            out[rows, :-1] = block
        return out


class Standardised:
    """Raw rows (n, d) of a source as standardised rows (n, d + 1), computed when they are read."""

    def __init__(self, source: RowSource, scaling: Scaling, dtype: DTypeLike) -> None:
        self._source, self._scaling = source, scaling
        self.shape: tuple[int, ...] = (source.shape[0], source.shape[1] + 1)
        self.dtype: np.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._scaling.transform(self._source[rows], self.dtype)


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, n, _BLOCK)]


def _power_of_two(x: np.ndarray) -> np.ndarray:
    """The largest power of two not above x, elementwise; 1 for zero."""
    return np.where(x > 0, np.ldexp(1.0, np.frexp(x)[1] - 1), 1.0)


class Canonical(NamedTuple):
    """A training set without repeats, in an order that depends on its content alone.

    (One that is streamed stays as it is: sorting it would be random reads of a disk.)

    Attributes:
        X: distinct rows (m, d).
        target: their targets (m, ...).
        weight: summed weights (m,), float64.
        uniform: (m,) a number in [0, 1) that depends on the row of X alone; rows below a threshold
            make a random subset that repeats of a row never straddle.
    """

    X: RowSource
    target: np.ndarray
    weight: np.ndarray
    uniform: np.ndarray


def canonical(X: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Canonical:
    """Merges equal (row, target) pairs, adding weights; drops weight zero; sorts by content.

    A row of weight 3 and the row three times thus give the same problem to the last bit, and so do
    two orders of the same rows.

    Args:
        X: (n, d).
        target: (n,) or (n, k).
        weight: (n,), non-negative.
    """
    X, target = np.ascontiguousarray(X), np.ascontiguousarray(target)
    alive = np.flatnonzero(weight > 0)
    # 16 bytes of BLAKE2b: equal digests mean equal rows (2^-64 odds at 2^32 rows). -0.0 + 0 = 0.0.
    row_digest = [_digest(row) for row in X[alive] + X.dtype.type(0)]
    digests = [r + _digest(t) for r, t in zip(row_digest, target[alive], strict=True)]
    packed = np.frombuffer(b"".join(digests), dtype="S32") if digests else np.empty(0, "S32")
    _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    total = np.zeros(len(first))
    np.add.at(total, inverse, np.asarray(weight, np.float64)[alive])
    uniform = np.array([_uniform(row_digest[i]) for i in first])
    chosen = alive[first]
    return Canonical(X[chosen], target[chosen], total, uniform)


def as_given(X: RowSource, target: np.ndarray, weight: np.ndarray) -> Canonical:
    """The counterpart of :func:`canonical` for rows that are streamed: order and repeats stay."""
    uniform = [
        _uniform(_digest(row)) for rows in _blocks(len(X)) for row in X[rows] + X.dtype.type(0)
    ]
    return Canonical(X, target, np.asarray(weight, np.float64), np.array(uniform))


def _uniform(digest: bytes) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _digest(row: np.ndarray) -> bytes:
    # S-typed numpy strings drop trailing NULs: a digest ending in NUL bytes still differs from
    # every other, because the fixed width is padded back on comparison.
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()

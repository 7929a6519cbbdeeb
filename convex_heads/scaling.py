"""Standardisation with a constant column, and the canonical form of a training set."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

# A column whose spread is below this share of the largest spread is constant up to round-off of
# float32 features (MiniLM embeddings have such columns); dividing by it would blow up noise.
_CONSTANT = 1e-6


class Scaling(NamedTuple):
    """x -> [(x - mean) / scale, 1].

    Attributes:
        mean: (d,).
        scale: (d,), positive; 1 for (near-)constant columns, which become zero.
        keep: (d,) bool, False for (near-)constant columns.
    """

    mean: np.ndarray
    scale: np.ndarray
    keep: np.ndarray

    @classmethod
    def fit(cls, X: np.ndarray, omega: np.ndarray) -> Scaling:
        """Weighted mean and spread of the columns of X (n, d), in double precision."""
        weights = np.asarray(omega, np.float64) / np.sum(omega, dtype=np.float64)
        mean = weights @ X
        # Two passes: a large mean would cancel the spread in E[x^2] - mean^2.
        scale = np.sqrt(np.maximum(_weighted_square_sum(X, mean, weights), 0))
        keep = scale > _CONSTANT * max(scale.max(initial=0), float(np.finfo(np.float64).tiny))
        scale = np.where(keep, scale, 1)
        dtype = X.dtype
        return cls(mean.astype(dtype), scale.astype(dtype), keep)

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Features (n, d) -> (n, d + 1), the last column one."""
        out = np.ones((X.shape[0], X.shape[1] + 1), X.dtype)
        np.subtract(X, self.mean, out=out[:, :-1])
        out[:, :-1] /= self.scale
        out[:, :-1] *= self.keep
        return out


def _weighted_square_sum(X: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.zeros(X.shape[1])
    for start in range(0, len(X), 4096):
        block = X[start : start + 4096] - mean
        total += weights[start : start + 4096] @ (block * block)
    return total


class Canonical(NamedTuple):
    """A training set without repeats, in an order that depends on its content alone.

    Attributes:
        X: distinct rows (m, d).
        target: their targets (m, ...).
        weight: summed weights (m,), float64.
        uniform: (m,) a number in [0, 1) that depends on the row of X alone; rows below a threshold
            make a random subset that repeats of a row never straddle.
    """

    X: np.ndarray
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
    uniform = np.array([int.from_bytes(row_digest[i][:8], "big") / 2.0**64 for i in first])
    chosen = alive[first]
    return Canonical(X[chosen], target[chosen], total, uniform)


def _digest(row: np.ndarray) -> bytes:
    # S-typed numpy strings drop trailing NULs: a digest ending in NUL bytes still differs from
    # every other, because the fixed width is padded back on comparison.
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()

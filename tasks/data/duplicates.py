"""Rows whose features have a twin among other rows: a search by faiss, in bounded memory.

Rows are standardised and scaled to length 1, z = ((x - mean) / deviation) / || . ||, so that the
cosine z_i'z_j means the same for every backbone. Two rows are twins when their cosine is at least
t, that is when ||z_i - z_j||^2 <= 2 - 2 t. Projecting on k orthonormal directions never lengthens
a difference, so a row whose nearest neighbour among k = 64 principal directions is farther than
that has no twin for certain: faiss searches k columns instead of d, and only the few rows that
remain are compared in full. Up to ``EXACT_ROWS`` rows nothing is missed; beyond, an inverted file
looks at the cells around a row, and a twin beyond them can be missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT_ROWS = 100_000  # above, an inverted file: 0.5 n^2 k products would take minutes
# Rows per search. Below about 2000 faiss takes its loop for a few queries, five times slower.
_BLOCK = 4096
_SLICE = 512  # rows of a block that are compared with the block at once
_DIRECTIONS = 64
_SAMPLE = 4096  # rows that the directions come from
_PAIRS = 1024  # rows whose pairs say how alike any two rows are
_PROBES = 16  # cells of the inverted file that a row is compared with
_SAME = 1e-3  # difference of standardised rows, relative to their length, that is rounding
_SLACK = 1e-4  # of a squared distance between unit vectors: float32 rounding

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Twins:
    """For each of n rows one twin, where it has one.

    Attributes:
        of: (n,) position of the twin, or -1.
        similarity: (n,) float32 cosine with it; NaN where there is none.
        same: (n,) whether its features are the same to rounding, in length too.
    """

    of: NDArray[np.int64]
    similarity: NDArray[np.float32]
    same: NDArray[np.bool_]


class FeatureSpace:
    """The scaling and the directions in which rows are compared, learnt from some rows.

    Args:
        features: (n, d) floats, n >= 1; usually the training rows.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
        >>> index = SeenRows(FeatureSpace(X), capacity=50)
        >>> index.add(X)
        >>> index.twins(X[[7]] * 1.0001, similarity=0.99).of
        array([7])
    """

    def __init__(self, features: NDArray[np.floating]) -> None:
        n, d = features.shape
        mean, square = np.zeros(d), np.zeros(d)
        for rows in _blocks(n, _SLICE):
            mean += features[rows].sum(axis=0, dtype=np.float64) / n
        for rows in _blocks(n, _SLICE):
            square += ((features[rows] - mean) ** 2).sum(axis=0) / n
        deviation = np.sqrt(square)
        # A column that hardly ever moves is noise: it is not blown up to the size of the others.
        floor = 0.1 * float(np.median(deviation[deviation > 0])) if deviation.any() else 1.0
        self.mean = mean.astype(np.float32)
        self.scale = (1 / np.maximum(deviation, floor)).astype(np.float32)
        self.directions: NDArray[np.float32] | None = None
        # The eigenvectors of d columns cost more than a search among fewer than d rows.
        if d > 1.5 * _DIRECTIONS and n > d:
            Z = self.unit(features[_evenly(n, _SAMPLE)])
            self.directions = np.linalg.eigh(Z.T @ Z)[1][:, -_DIRECTIONS:]

    def unit(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Z (b, d): standardised rows of length 1; a row equal to the mean stays zero."""
        Z = self.standardised(features)
        Z /= np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)
        return Z

    def standardised(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """(b, d): mean 0 and deviation 1 in every column of the rows learnt from."""
        return (features.astype(np.float32) - self.mean) * self.scale

    def project(self, Z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Z (b, d) in the k directions that are searched."""
        return Z if self.directions is None else np.ascontiguousarray(Z @ self.directions)

    def alike(self, features: NDArray[np.floating], similarity: float) -> float:
        """Share of all pairs of rows (of at most 1024 rows) with at least this cosine."""
        Z = self.unit(features[_evenly(len(features), _PAIRS)])
        n = len(Z)
        near = int(np.count_nonzero(similarity <= Z @ Z.T)) - n
        return max(near, 0) / (n * (n - 1)) if n > 1 else 0.0


class SeenRows:
    """Rows that later rows are compared with.

    Args:
        space: how rows are compared.
        capacity: rows that will be added at most; decides between a full search and an index.
        sample: (m, d) rows that an index learns its cells from; needed above ``EXACT_ROWS``.
    """

    def __init__(
        self, space: FeatureSpace, capacity: int, sample: NDArray[np.floating] | None = None
    ) -> None:
        import faiss  # here: it brings an OpenMP runtime of its own

        self.space = space
        self.exact = capacity <= EXACT_ROWS
        # The rows given and which of them: of rows that lie on disk no copy is kept.
        self._blocks: list[tuple[NDArray[np.floating], slice]] = []
        self._starts = np.zeros(0, np.int64)
        self._n = 0
        k = space.mean.size if space.directions is None else space.directions.shape[1]
        self._index: Any = faiss.IndexFlatL2(k)
        if not self.exact:
            if sample is None:
                raise ValueError("more rows than EXACT_ROWS need a sample to learn cells from")
            cells = int(4 * capacity**0.5)
            self._quantizer = self._index  # faiss does not keep it alive
            self._index = faiss.IndexIVFFlat(self._quantizer, k, cells)
            self._index.cp.niter, self._index.cp.max_points_per_centroid = 8, 32
            self._index.cp.min_points_per_centroid = 1
            self._index.nprobe = _PROBES
            self._index.train(space.project(space.unit(sample[_evenly(len(sample), 32 * cells)])))

    def add(self, features: NDArray[np.floating], progress: Progress | None = None) -> None:
        """Remember rows (b, d); they are not copied, only their k projections are kept."""
        for rows in _blocks(len(features)):
            block = features[rows]
            self._remember(features, rows, self.space.project(self.space.unit(block)))
            if progress is not None:
                progress(len(block))

    def twins(
        self, features: NDArray[np.floating], similarity: float, progress: Progress | None = None
    ) -> Twins:
        """A twin among the rows seen so far for each of the rows (n, d) given."""
        return self._search(features, similarity, progress, grow=False)

    def earlier_twins(
        self, features: NDArray[np.floating], similarity: float, progress: Progress | None = None
    ) -> Twins:
        """The same, but each row is compared with the given rows before it too, and then added."""
        return self._search(features, similarity, progress, grow=True)

    def _search(
        self,
        features: NDArray[np.floating],
        similarity: float,
        progress: Progress | None,
        grow: bool,
    ) -> Twins:
        n = len(features)
        found = Twins(np.full(n, -1, np.int64), np.full(n, np.nan, np.float32), np.zeros(n, bool))
        radius = 2 - 2 * similarity + _SLACK
        for where in _blocks(n):
            start, block = where.start, features[where]
            Z = self.space.unit(block)
            P = self.space.project(Z)
            candidate, distance = self._nearest(P)
            before = self._n
            if grow:
                self._remember(features, where, P)
                here, distance_here = _nearest_before(P)
                closer = distance_here < distance
                candidate = np.where(closer, before + here, candidate)
                distance = np.minimum(distance, distance_here)
            rows = np.flatnonzero(distance <= radius)
            cosine = _cosine(Z[rows], self.space.unit(self._rows(candidate[rows])))
            is_twin = cosine >= similarity
            self._put(found, block, start, rows[is_twin], candidate[rows[is_twin]], cosine[is_twin])
            # Near in k directions and not in all of them: another row may still be a twin.
            doubtful = rows[~is_twin]
            if self.exact and len(doubtful):
                last = before + doubtful if grow else np.full(len(doubtful), self._n)
                best, cosine = self._compare_all(Z[doubtful], last)
                is_twin = cosine >= similarity
                self._put(found, block, start, doubtful[is_twin], best[is_twin], cosine[is_twin])
            if progress is not None:
                progress(len(block))
        return found

    def _put(self, found: Twins, block: Any, start: int, rows: Any, of: Any, cosine: Any) -> None:
        """Note that these rows of the block have twins."""
        found.of[start + rows] = of
        found.similarity[start + rows] = cosine
        A, B = (self.space.standardised(X) for X in (block[rows], self._rows(of)))
        length = np.linalg.norm(A, axis=1)
        found.same[start + rows] = np.linalg.norm(A - B, axis=1) <= _SAME * length

    def _remember(
        self, features: NDArray[np.floating], rows: slice, P: NDArray[np.float32]
    ) -> None:
        self._index.add(P)
        self._blocks.append((features, rows))
        self._starts = np.append(self._starts, self._n)
        self._n += len(P)

    def _nearest(self, P: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if self._n == 0:
            return np.full(len(P), -1), np.full(len(P), np.inf, np.float32)
        distance, candidate = self._index.search(P, 1)
        distance[candidate < 0] = np.inf
        return candidate[:, 0], distance[:, 0]

    def _rows(self, positions: NDArray[np.int64]) -> NDArray[np.floating]:
        """Features of some of the rows seen."""
        out = np.empty((len(positions), self.space.mean.size), np.float32)
        which = np.searchsorted(self._starts, positions, side="right") - 1
        for b in np.unique(which):
            mine = which == b
            features, rows = self._blocks[b]
            out[mine] = features[rows.start + positions[mine] - self._starts[b]]
        return out

    def _compare_all(
        self, Z: NDArray[np.float32], last: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The most similar of the first `last` rows seen, for each row of Z."""
        best = np.full(len(Z), -1, np.int64)
        cosine = np.full(len(Z), -np.inf, np.float32)
        for start, (features, rows) in zip(self._starts.tolist(), self._blocks, strict=True):
            if start >= last.max():
                break
            block = features[rows]
            G = Z @ self.space.unit(block).T
            G[start + np.arange(len(block)) >= last[:, None]] = -np.inf
            column = G.argmax(axis=1)
            value = G[np.arange(len(Z)), column]
            better = value > cosine
            best[better], cosine[better] = start + column[better], value[better]
        return best, cosine


def _nearest_before(
    P: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest of the rows above it and the squared distance, for each row of P."""
    n = len(P)
    square = (P * P).sum(axis=1)
    nearest, distance = np.full(n, -1, np.int64), np.full(n, np.inf, np.float32)
    for rows in _blocks(n, _SLICE):
        D = square[rows, None] + square[: rows.stop] - 2 * (P[rows] @ P[: rows.stop].T)
        D[np.arange(rows.start, rows.stop)[:, None] <= np.arange(rows.stop)] = np.inf
        nearest[rows] = D.argmin(axis=1)
        distance[rows] = np.maximum(D.min(axis=1), 0)
    return nearest, distance


def _cosine(A: NDArray[np.float32], B: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines of unit rows by their difference: exact where they are close to 1."""
    difference = A - B
    return (1 - 0.5 * (difference * difference).sum(axis=1)).astype(np.float32)


def _evenly(n: int, size: int) -> NDArray[np.int64]:
    """At most `size` of n row numbers, evenly spread."""
    return np.arange(n) if n <= size else np.linspace(0, n - 1, size).astype(np.int64)


def _blocks(n: int, size: int = _BLOCK) -> Iterator[slice]:
    """Stretches of nearly the same length, none longer than `size`."""
    edges = np.linspace(0, n, -(-n // size) + 1).astype(int).tolist()
    yield from map(slice, edges, edges[1:])

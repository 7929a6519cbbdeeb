"""Rows from many memory-mapped shards in one indexing operation.

Taking the rows of a mini-batch shard by shard costs several NumPy calls per shard, and a shuffled
batch touches almost as many shards as it has rows. But all mappings lie in one address space, so
one array with overlapping rows, laid over all of them, makes every stored row reachable by one
index: row r of the array begins r items after the lowest mapping. Only indices of stored rows are
ever used, so nothing between the mappings is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from extractors.codec import decode_features
from extractors.shard import Block


class Gatherer:
    """Rows of a split by their position in it.

    ``gatherer[rows]`` is ``features``, for slices too: with its ``shape`` and ``dtype`` it is a row
    source that estimators read in chunks (``convex_heads.sources``).

    Args:
        blocks: the shards of the split in reading order; kept, so that their mappings stay.
        dim: width of a feature vector.
    """

    def __init__(self, blocks: Sequence[Block], *, dim: int) -> None:
        self._blocks = tuple(block for block in blocks if len(block))
        arrays = [block.encoded for block in self._blocks]
        counts = np.array([len(array) for array in arrays], np.int64)
        #: rows of the split.
        self.n = int(counts.sum())
        self._scale: np.ndarray | None = None
        #: (n,) int64 of all rows.
        self.labels = np.concatenate([np.empty(0, np.int64), *(b.labels for b in self._blocks)])
        if not arrays:
            self._laid = np.empty((0, dim), np.float32)
            self._index = np.empty(0, np.int64)
            return
        if arrays[0].dtype == np.int8:
            self._scale = np.concatenate([block.scale for block in self._blocks])  # type: ignore[arg-type]
        item = arrays[0].itemsize
        places = np.array([array.ctypes.data for array in arrays], np.int64)
        lowest = int(np.argmin(places))
        first = (places - places[lowest]) // item  # mappings begin at pages, features at 8 bytes
        reach = int((first + counts * dim).max()) - dim + 1
        self._laid = np.lib.stride_tricks.as_strided(
            arrays[lowest].reshape(-1), (reach, dim), (item, item), writeable=False
        )
        #: (n,) row of ``_laid`` for every row of the split.
        self._index = np.repeat(first - (np.cumsum(counts) - counts) * dim, counts)
        self._index += np.arange(self.n) * dim

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, dim)."""
        return self.n, self._laid.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Of the features that are handed out."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        return self.features(np.arange(self.n)[rows] if isinstance(rows, slice) else rows)

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        rows = positions(rows, self.n)
        if rows.size and rows.min() < 0:
            raise IndexError(f"rows must lie in 0..{self.n - 1}")
        return rows

    def encoded(self, rows: np.ndarray) -> np.ndarray:
        """(b, dim) as stored, copied.

        Args:
            rows: (b,) positions, in any order, repeats allowed; or an (n,) mask.

        Raises:
            IndexError: a position outside 0..n-1, a mask of another length, or numbers that are no
                integers.
        """
        return self._laid[self._index[self._positions(rows)]]

    def scale(self, rows: np.ndarray) -> np.ndarray | None:
        """(b,) float32 that int8 rows are multiplied with; None for floating point."""
        return None if self._scale is None else self._scale[self._positions(rows)]

    def features(self, rows: np.ndarray) -> np.ndarray:
        """(b, dim) float32, copied."""
        return decode_features(self.encoded(rows), self.scale(rows))


def positions(rows: np.ndarray, n: int) -> np.ndarray:
    """Positions from positions, or from an (n,) mask, which as positions would be zeros and ones.

    Raises:
        IndexError: a mask of another length, or numbers that are no integers.

    Example:
        >>> positions(np.array([True, False, True]), 3).tolist()
        [0, 2]
    """
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (n,):
            raise IndexError(f"a mask of {n} rows has shape ({n},), got {rows.shape}")
        return np.flatnonzero(rows)
    if rows.size and rows.dtype.kind not in "iu":
        raise IndexError(f"rows are chosen by integers or by a mask, not by {rows.dtype}")
    return rows.astype(np.intp, copy=False)


class Picked:
    """Some rows of a row source, in another order perhaps; read when they are asked for.

    Args:
        source: with ``shape``, ``dtype``, and rows by slice and by index array.
        rows: (m,) positions in it, or a mask over all of it.
    """

    def __init__(self, source: Any, rows: np.ndarray) -> None:
        self._source = source
        self._rows = positions(rows, source.shape[0])
        self.shape: tuple[int, ...] = (len(self._rows), source.shape[1])
        self.dtype: np.dtype = source.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        chosen = rows if isinstance(rows, slice) else positions(rows, len(self))
        return self._source[self._rows[chosen]]

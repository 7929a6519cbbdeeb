"""Features that are read as they are needed: memory-mapped files, shards, stores.

A *row source* has a ``shape`` (n, d) and a ``dtype`` and hands out rows by slice or by index array;
NumPy arrays are row sources themselves. Estimators read sources that are larger than memory in
chunks and keep none of them: the program that is solved lies in a temporary file
(:mod:`convex_heads.scratch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import issparse

# Entries of a chunk of rows: 16 MB in float32, 32 MB in float64; of an array, which is in memory
# anyway, four times as many.
_CHUNK_ENTRIES = 1 << 22


class RowSource(Protocol):
    """Rows of features by position."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the rows."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Rows (k, d) of a slice, or of an index array (k,)."""
        ...


class Shards:
    """Arrays under each other as one row source; nothing is copied until rows are read.

    Args:
        parts: arrays (n_k, d), in order: memory-mapped files, h5py or zarr data sets, or other row
            sources.

    Raises:
        ValueError: no part at all, or parts that do not fit under each other.

    Example:
        >>> shards = Shards([np.zeros((2, 3)), np.ones((4, 3))])
        >>> shards.shape, shards[1:3].tolist()
        ((6, 3), [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
        >>> shards[np.array([5, 0])].tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        if not len(parts):
            raise ValueError("Shards needs at least one array")
        for k, part in enumerate(parts):
            if len(part.shape) != 2 or part.shape[1] != parts[0].shape[1]:
                raise ValueError(
                    f"shards are arrays (n_k, d) of one width; the first is "
                    f"{tuple(parts[0].shape)}, shard {k} is {tuple(part.shape)}"
                )
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), int(parts[0].shape[1]))
        self.dtype: np.dtype = np.result_type(*(part.dtype for part in parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        if not isinstance(rows, slice):
            return self._gather(np.asarray(rows, np.intp))
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return self._gather(np.arange(start, stop, step))
        out = np.empty((max(0, stop - start), self.shape[1]), self.dtype)
        first = 0
        for part, last in zip(self._parts, self._ends.tolist(), strict=True):
            lo, hi = max(start, first), min(stop, last)
            if lo < hi:
                out[lo - start : hi - start] = part[lo - first : hi - first]
            first = last
        return out

    def _gather(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), self.shape[1]), self.dtype)
        owner = np.searchsorted(self._ends, index, side="right")
        for k in np.unique(owner):
            mine = owner == k
            first = self._ends[k] - len(self._parts[k])
            # In rising order without repeats, as h5py wants them.
            places, back = np.unique(index[mine] - first, return_inverse=True)
            out[mine] = self._parts[k][places][back]
        return out


class _Converted:
    """The rows of a source in another dtype."""

    def __init__(self, source: RowSource, dtype: DTypeLike) -> None:
        self._source = source
        self.shape: tuple[int, ...] = tuple(source.shape)
        self.dtype: np.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._source[rows].astype(self.dtype)


def is_streamed(X: Any) -> bool:
    """Whether X is read in chunks: a memory-mapped file, or a row source that is no array.

    Example:
        >>> is_streamed(np.zeros((2, 2))), is_streamed(Shards([np.zeros((2, 2))]))
        (False, True)
    """
    if isinstance(X, np.ndarray):
        # Rows picked out of a mapping are an ndarray in memory, of the same class.
        return getattr(X, "_mmap", None) is not None
    wanted = ("shape", "dtype", "__len__", "__getitem__")
    return (
        all(hasattr(X, name) for name in wanted) and not hasattr(X, "__array__") and not issparse(X)
    )


def check_source(name: str, X: RowSource, dtypes: Sequence[DTypeLike]) -> RowSource:
    """A streamed X, checked to be a finite table of numbers; all of it is read once.

    Args:
        name: of X, for the error.
        X: the source.
        dtypes: what its rows may be; others are converted to the first when they are read.

    Raises:
        ValueError: said in one sentence.
    """
    kind = np.dtype(X.dtype).kind
    if len(X.shape) != 2 or 0 in X.shape or kind not in "fiub":
        raise ValueError(
            f"{name} must be a table (n, d) of real numbers, with at least one row and one column; "
            f"got shape {tuple(X.shape)} of {X.dtype}"
        )
    for rows in chunks(X) if kind == "f" else ():
        finite = np.isfinite(X[rows]).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{name} holds NaN or infinity, first in row {rows.start + int(finite.argmin())}: "
                f"drop such rows or fill them in"
            )
    return X if X.dtype in dtypes else _Converted(X, dtypes[0])


def chunks(X: RowSource) -> Iterator[slice]:
    """Slices that go through all rows, few enough at a time to be copied."""
    entries = _CHUNK_ENTRIES if is_streamed(X) else 4 * _CHUNK_ENTRIES
    step = max(1, entries // max(1, X.shape[1]))
    for start in range(0, len(X), step):
        yield slice(start, min(start + step, len(X)))

"""Feature vectors that somebody else computed: ``.npy``, ``.npz``, and list columns of Arrow.

A ``.npy`` file holds the features (n, d), and beside it ``NAME.labels.npy`` the labels (n,). A
``.npz`` file holds both, under any names that ``find_columns`` knows (features and label, X and y).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

LABELS_SUFFIX = ".labels.npy"
_MAGIC = {"npy": b"\x93NUMPY", "npz": b"PK"}


def read_array(path: Path) -> np.ndarray:
    """A ``.npy`` file, memory-mapped.

    Raises:
        InputError: no such file, no array, or pickled objects in it (they are never executed).
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error


def open_npy(path: Path) -> dict[str, np.ndarray]:
    """Its columns by name: ``features``, and ``label`` where ``NAME.labels.npy`` lies beside it.

    Raises:
        InputError: an array that cannot be read or is not (n, d), or labels of another length.
    """
    columns = {"features": read_array(path)}
    beside = path.with_name(path.stem + LABELS_SUFFIX)
    if beside.is_file():
        columns["label"] = read_array(beside)
    return _checked(columns, path)


def open_npz(path: Path) -> dict[str, np.ndarray]:
    """Its arrays by name, as columns of one length.

    Raises:
        InputError: a file that cannot be read, or arrays of several lengths.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # zipfile has errors of its own
        raise _unreadable(path, error) from error
    return _checked(columns, path)


def column_values(array: np.ndarray) -> list[Any]:
    """A column as rows: vectors of a matrix (views of it), or plain values of a vector.

    >>> column_values(np.array(["neg", "pos"]))
    ['neg', 'pos']
    """
    if array.ndim > 1:
        # Plain views: those of a memory-mapped file would be five times larger.
        return list(np.asarray(array))
    if array.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in array.tolist()]
    return array.tolist()


def vectors_of(column: pa.ChunkedArray) -> list[Any] | None:
    """The rows of a list column of numbers as arrays, without a copy; None for other columns.

    A row that is missing is None.
    """
    import pyarrow as pa

    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)):
        return None
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return None
    rows: list[Any] = []
    for chunk in column.chunks:
        plain = not chunk.null_count and not chunk.flatten().null_count
        if plain and pa.types.is_fixed_size_list(kind):
            rows += list(chunk.flatten().to_numpy().reshape(len(chunk), kind.list_size))
        elif plain:
            ends = chunk.offsets.to_numpy()
            rows += np.split(chunk.flatten().to_numpy(), (ends - ends[0])[1:-1])
        else:  # a missing number becomes NaN, which the extractor names with its row
            rows += [
                None if row is None else np.array(row, np.float64) for row in chunk.to_pylist()
            ]
    return rows


def as_vector(value: Any) -> Any:
    """A list of numbers as an array; anything else as it is, to be refused with its row's name."""
    if isinstance(value, list | tuple):
        try:
            return np.array(value, np.float64)
        except (TypeError, ValueError):
            return value
    return value


def check_width(inputs: Sequence[Any], name: str) -> int:
    """The width of the first vector.

    Raises:
        InputError: there is none.
    """
    for value in inputs:
        if isinstance(value, np.ndarray) and value.ndim == 1 and len(value):
            return len(value)
    raise InputError(f"{name} has no row with a vector of features")


def _checked(columns: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    rows = {name: len(array) if array.ndim else -1 for name, array in columns.items()}
    if not rows or len(set(rows.values())) > 1 or -1 in rows.values():
        listed = ", ".join(f"{name} {array.shape}" for name, array in columns.items())
        raise InputError(
            f"{path} must hold arrays of one length, features (n, d) and labels (n,); it has "
            + (listed or "none")
        )
    if "features" in columns and columns["features"].ndim != 2:
        raise InputError(f"{path} has shape {columns['features'].shape}; features are (n, d)")
    return columns


def _unreadable(path: Path, error: Exception) -> InputError:
    if path.is_file():
        with path.open("rb") as file:
            kind = "npy" if path.suffix.lower() == ".npy" else "npz"
            if not file.read(6).startswith(_MAGIC[kind]):
                return InputError(f"cannot read {path}: it is no {kind} file as numpy writes them")
    if "pickle" in str(error).lower() or "object" in str(error).lower():
        return InputError(
            f"{path} holds Python objects, which are not read because they can execute code; save "
            "labels as numbers or with .astype(str)"
        )
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return InputError(f"cannot read {path}: {reason or type(error).__name__}")

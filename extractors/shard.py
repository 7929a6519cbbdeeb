"""One shard: an Arrow IPC *stream* with one record batch of one split.

The columns are ``id`` (string), ``label`` (int64), ``split`` (string), ``tokens`` (int32, null for
images) and ``features`` (fixed-size list of float32). A stream, unlike Arrow's file format, is
readable by ``datasets.Dataset.from_file``; it is memory-mapped without a copy all the same, and one
batch per shard keeps the features of a shard one (n, dim) array.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from extractors.errors import InputError


class StoredRows(NamedTuple):
    """Rows read from a store."""

    ids: list[str]  # n
    labels: np.ndarray  # (n,) int64
    features: np.ndarray  # (n, dim) float32; a read-only view of the file where one shard holds all
    tokens: np.ndarray | None  # (n,) int32 before truncation; None for images


def shard_bytes(split: str, rows: StoredRows) -> memoryview:
    """The file content of a shard with n >= 1 rows.

    Example:
        >>> rows = StoredRows(["a"], np.array([1]), np.ones((1, 2), np.float32), None)
        >>> len(shard_bytes("train", rows)) % 8
        0
    """
    import pyarrow as pa

    n, dim = rows.features.shape
    flat = pa.array(np.ascontiguousarray(rows.features).reshape(-1))
    tokens = pa.nulls(n, pa.int32()) if rows.tokens is None else pa.array(rows.tokens, pa.int32())
    batch = pa.record_batch(
        {
            "id": pa.array(list(rows.ids), pa.string()),
            "label": pa.array(np.asarray(rows.labels, np.int64)),
            "split": pa.array([split] * n, pa.string()),
            "tokens": tokens,
            "features": pa.FixedSizeListArray.from_arrays(flat, dim),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return memoryview(sink.getvalue())


def read_shard(path: Path) -> StoredRows:
    """Memory-map a shard; labels, features and tokens are read-only views of the file.

    Raises:
        InputError: missing, or no Arrow stream of one record batch with these columns.
    """
    import pyarrow as pa

    try:
        batch = pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
        features, tokens = batch["features"], batch["tokens"]
        return StoredRows(
            batch["id"].to_pylist(),
            batch["label"].to_numpy(),
            features.flatten().to_numpy().reshape(len(features), features.type.list_size),
            None if tokens.null_count else tokens.to_numpy(),
        )
    except (OSError, KeyError, StopIteration, pa.ArrowException) as error:
        raise InputError(f"the shard {path} cannot be read: extract again to redo it") from error


def concatenate(blocks: Sequence[StoredRows], *, dim: int, has_tokens: bool) -> StoredRows:
    """Copy blocks into one; no blocks give no rows."""
    if not blocks:
        tokens = np.empty(0, np.int32) if has_tokens else None
        return StoredRows([], np.empty(0, np.int64), np.empty((0, dim), np.float32), tokens)
    counts = [block.tokens for block in blocks if block.tokens is not None]
    return StoredRows(
        [name for block in blocks for name in block.ids],
        np.concatenate([block.labels for block in blocks]),
        np.concatenate([block.features for block in blocks]),
        np.concatenate(counts) if has_tokens else None,
    )


def select(blocks: Sequence[StoredRows], rows: np.ndarray, *, has_tokens: bool) -> StoredRows:
    """Gather rows by their position in the concatenation of the blocks, block by block.

    Args:
        blocks: at least one.
        rows: (n,) positions, in the order wanted; repeats are allowed.
        has_tokens: whether token counts are wanted.
    """
    n, dim = len(rows), blocks[0].features.shape[1]
    ids = np.empty(n, dtype=object)
    labels, features = np.empty(n, np.int64), np.empty((n, dim), np.float32)
    tokens = np.empty(n, np.int32) if has_tokens else None
    start = 0
    for block in blocks:
        here = np.flatnonzero((rows >= start) & (rows < start + len(block.ids)))
        local = rows[here] - start
        ids[here] = [block.ids[i] for i in local]
        labels[here] = block.labels[local]
        features[here] = block.features[local]
        if tokens is not None and block.tokens is not None:
            tokens[here] = block.tokens[local]
        start += len(block.ids)
    return StoredRows(ids.tolist(), labels, features, tokens)

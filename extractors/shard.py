"""One shard: an Arrow IPC *stream* with one record batch of one split.

The columns are ``id`` (string), ``label`` (int64), ``split`` (string), ``tokens`` (int32, null for
images), ``features`` (fixed-size list of float32, float16 or int8) and, beside int8, ``scale``
(float32). A stream, unlike Arrow's file format, is readable by ``datasets.Dataset.from_file``; it
is memory-mapped without a copy all the same, and one batch per shard keeps the features of a shard
one (n, dim) array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extractors.codec import Encoded, decode_features
from extractors.errors import InputError
from extractors.mapped import Mapped


class StoredRows(NamedTuple):
    """Rows read from a store."""

    ids: list[str]  # n
    labels: np.ndarray  # (n,) int64
    # (n, dim) float32; a read-only view of the file where one shard holds all. Rows that are read
    # as they are needed have a row source there, which takes slices and index arrays.
    features: np.ndarray
    tokens: np.ndarray | None  # (n,) int32 before truncation; None for images


def shard_bytes(
    split: str,
    rows: StoredRows,
    encoded: Encoded | None = None,
    *,
    metadata: Mapping[bytes, bytes] | None = None,
) -> memoryview:
    """The file content of a shard with n >= 1 rows.

    Args:
        split: the split of all rows.
        rows: what to store.
        encoded: the features as they are stored; None stores ``rows.features`` as float32.
        metadata: of the Arrow schema (see ``provenance.py``).

    Example:
        >>> rows = StoredRows(["a"], np.array([1]), np.ones((1, 2), np.float32), None)
        >>> len(shard_bytes("train", rows)) % 8
        0
    """
    import pyarrow as pa

    values = rows.features if encoded is None else encoded.values
    n, dim = values.shape
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    tokens = pa.nulls(n, pa.int32()) if rows.tokens is None else pa.array(rows.tokens, pa.int32())
    columns = {
        "id": pa.array(list(rows.ids), pa.string()),
        "label": pa.array(np.asarray(rows.labels, np.int64)),
        "split": pa.array([split] * n, pa.string()),
        "tokens": tokens,
        "features": pa.FixedSizeListArray.from_arrays(flat, dim),
    }
    if encoded is not None and encoded.scale is not None:
        columns["scale"] = pa.array(encoded.scale)
    return _stream(pa.record_batch(columns), metadata)


def merged_bytes(
    blocks: Sequence[Block], *, metadata: Mapping[bytes, bytes] | None = None
) -> memoryview:
    """The file content of one shard with the rows of several, in their order and as stored."""
    import pyarrow as pa

    table = pa.Table.from_batches([block.batch for block in blocks]).combine_chunks()
    (batch,) = table.to_batches()
    return _stream(batch, metadata)


def _stream(batch: Any, metadata: Mapping[bytes, bytes] | None) -> memoryview:
    import pyarrow as pa

    batch = batch.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return memoryview(sink.getvalue())


def features_offset(content: Any) -> int:
    """The byte at which the features of a shard begin; content: its bytes, or a mapping of them."""
    import pyarrow as pa

    buffer = pa.py_buffer(content)
    flat = pa.ipc.open_stream(buffer).read_next_batch()["features"].values
    return flat.buffers()[1].address + flat.offset * flat.type.byte_width - buffer.address


class Block:
    """One shard, memory-mapped: a column is read when it is asked for, features are not copied.

    The mapping outlives the file's name and holds no file open.

    Args:
        path: the shard.
        size: that the file must have; None takes it as it is.
        shape: (n, dim) of its features; None reads it from the file, a smaller n leaves out the
            last rows.
        dtype: of the stored features; None reads it from the file.
        offset: of the features in the file; None looks for it.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: another size, or no Arrow stream of one record batch with these columns.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int | None = None,
        shape: tuple[int, int] | None = None,
        dtype: str | None = None,
        offset: int | None = None,
    ) -> None:
        self.path = path
        self._n: int | None = None
        try:
            self._mapped = Mapped(path, size)
        except FileNotFoundError as error:
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
        except OSError as error:
            raise InputError(
                f"the shard {path} cannot be read: extract again to redo it"
            ) from error
        found = self._mapped.size
        if size not in (None, found):
            raise InputError(
                f"the shard {path} cannot be read ({found} bytes instead of {size}): extract again "
                "to redo it"
            )
        if shape is None or dtype is None or offset is None:
            features = self._column("features")
            shape = shape or (len(features), features.type.list_size)
            dtype = str(features.type.value_type.to_pandas_dtype()(0).dtype)
            offset = features_offset(self._mapped.buffer())
        n, dim = shape
        # A view of the file itself: parsing Arrow for each shard would take longer than reading it.
        try:
            encoded = self._mapped.array((n, dim), dtype, offset)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the shard {path} cannot be read: extract again to redo it"
            ) from error
        self._n = n
        #: byte of the file at which the features begin.
        self.offset = offset
        #: (n, dim) as stored: float32, float16 or int8, read-only.
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def expect(self) -> None:
        """Have the shard read from the disk, beside whatever is done until it is looked at."""
        self._mapped.expect()

    @property
    def ids(self) -> list[str]:
        """n names, made anew at each use."""
        return self._column("id").to_pylist()

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64."""
        return self._column("label").to_numpy()

    @property
    def tokens(self) -> np.ndarray | None:
        """(n,) int32 token counts before truncation; None for images."""
        tokens = self._column("tokens")
        return None if tokens.null_count else tokens.to_numpy()

    @cached_property
    def scale(self) -> np.ndarray | None:
        """(n,) float32 that int8 features are multiplied with; None for floating point."""
        return self._column("scale").to_numpy() if self.encoded.dtype == np.int8 else None

    @property
    def features(self) -> np.ndarray:
        """(n, dim) float32: a read-only view of the file, or decoded from float16 or int8."""
        return decode_features(self.encoded, self.scale)

    def rows(self) -> StoredRows:
        """Everything at once."""
        return StoredRows(self.ids, self.labels, self.features, self.tokens)

    @cached_property
    def batch(self) -> Any:
        """Its one ``pyarrow.RecordBatch``, uncopied."""
        import pyarrow as pa

        return pa.ipc.open_stream(self._mapped.buffer()).read_next_batch()

    def _column(self, name: str) -> Any:
        import pyarrow as pa

        try:
            return self.batch[name].slice(0, self._n)
        except (OSError, ValueError, KeyError, StopIteration, pa.ArrowException) as error:
            raise InputError(
                f"the shard {self.path} cannot be read: extract again to redo it"
            ) from error


def in_order(blocks: Sequence[Block]) -> Iterator[Block]:
    """Blocks one after the other, each read from the disk while the one before it is used.

    The operating system reads ahead within a file, not from one file to the next.
    """
    for number, block in enumerate(blocks):
        if number + 1 < len(blocks):
            blocks[number + 1].expect()
        yield block


def concatenate(blocks: Sequence[Block], *, dim: int, has_tokens: bool) -> StoredRows:
    """Copy blocks into one; no blocks give no rows."""
    if not blocks:
        tokens = np.empty(0, np.int32) if has_tokens else None
        return StoredRows([], np.empty(0, np.int64), np.empty((0, dim), np.float32), tokens)
    features = np.empty((sum(map(len, blocks)), dim), np.float32)
    start = 0
    for block in in_order(blocks):
        features[start : start + len(block)] = block.features
        start += len(block)
    counts = [tokens for block in blocks if (tokens := block.tokens) is not None]
    return StoredRows(
        [name for block in blocks for name in block.ids],
        np.concatenate([block.labels for block in blocks]),
        features,
        np.concatenate(counts) if has_tokens else None,
    )

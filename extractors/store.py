"""FeatureStore: frozen features on disk, once and for all.

A store is a folder with ``manifest.json`` and shards. A shard is an Arrow IPC *stream* with one
record batch of one split and the columns ``id`` (string), ``label`` (int64), ``split`` (string),
``tokens`` (int32, null for images) and ``features`` (fixed-size list of float32). The stream format
is memory-mapped without a copy, and plain pyarrow or ``datasets.Dataset.from_file`` read it too.

Reading never locks. There is one writer at a time; it grows the store shard by shard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from extractors.errors import InputError
from extractors.fingerprint import file_sha256
from extractors.manifest import MANIFEST_NAME, Manifest, Shard, SkippedRow
from extractors.storage import TEMPORARY_PREFIX, exclusive_lock, make_folder, plain_disk_errors
from extractors.storage import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

LOCK_NAME = ".lock"
_SHARD_NAME = re.compile(r"\w+-\d{5,}\.arrow")


def default_cache_dir() -> Path:
    """``$CONVEX_HEADS_CACHE``, else ``$XDG_CACHE_HOME/convex-heads``, else ``~/.cache/...``.

    Example:
        >>> default_cache_dir().is_absolute()
        True
    """
    if own := os.environ.get("CONVEX_HEADS_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "convex-heads"


class StoredRows(NamedTuple):
    """Rows read from a store."""

    ids: list[str]  # n
    labels: np.ndarray  # (n,) int64
    features: np.ndarray  # (n, dim) float32; a read-only view of the file where one shard holds all
    tokens: np.ndarray | None  # (n,) int32 before truncation; None for images


@dataclass(frozen=True)
class FeatureStore:
    """Features of one data set from one backbone, opened for reading.

    An opened store is a snapshot: what a writer adds later is seen after ``FeatureStore.open``.

    Attributes:
        path: the store's folder.
        manifest: what it holds.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from extractors.manifest import Manifest
        >>> folder = Path(tempfile.mkdtemp()) / "store"
        >>> new = Manifest({"data": {}, "extractor": {}}, "demo", "toy:text-2", "text", 2,
        ...                ("no", "yes"), None)
        >>> with FeatureStore.writer(folder, new) as writer:
        ...     _ = writer.append("train", ["a"], np.array([1]), np.ones((1, 2), np.float32))
        >>> FeatureStore.open(folder).read("train").features
        array([[1., 1.]], dtype=float32)
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open a store for reading. Only the manifest is read; see ``verify`` for the shards.

        Raises:
            InputError: no store, another schema version, or an altered manifest.
        """
        folder = Path(path)
        return cls(folder, Manifest.read(folder))

    @staticmethod
    @contextmanager
    def writer(path: str | Path, new: Manifest) -> Iterator[StoreWriter]:
        """Open a store for writing, alone; a store that is not there yet is created from ``new``.

        Files that a killed writer left behind are removed.

        Args:
            path: the store's folder.
            new: the manifest of an empty store; an existing one must have the same key and dim.

        Raises:
            MachineError: another process is writing, or the disk refuses.
            InputError: an existing store cannot be read or belongs to other data.
        """
        folder = Path(path)
        make_folder(folder)
        with exclusive_lock(folder / LOCK_NAME, what=f"the store {folder}"):
            if (folder / MANIFEST_NAME).exists():
                found = Manifest.read(folder)
                if found.key != new.key:
                    raise InputError(
                        f"the store {folder} belongs to other data or another backbone (key "
                        f"{found.key[:12]}, expected {new.key[:12]})"
                    )
                if found.dim != new.dim:
                    raise InputError(
                        f"the store {folder} holds features of width {found.dim}, the backbone "
                        f"gives {new.dim}: delete the store and extract again"
                    )
            else:
                found = new
                found.write(folder)
            writer = StoreWriter(folder, found)
            writer.remove_leftovers()
            yield writer

    @property
    def dim(self) -> int:
        return self.manifest.dim

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def splits(self) -> tuple[str, ...]:
        return self.manifest.splits

    @property
    def n_rows(self) -> int:
        return sum(shard.rows for shard in self.manifest.shards)

    @property
    def seconds(self) -> float:
        """Wall time that encoding everything in the store took, over all runs."""
        return sum(shard.seconds for shard in self.manifest.shards)

    def ids(self, split: str) -> list[str]:
        """The ids of a split in reading order; an empty list for a split without rows."""
        return [i for shard in self._shards(split) for i in self._batch(shard)["id"].to_pylist()]

    def blocks(self, split: str) -> Iterator[StoredRows]:
        """The shards of a split one after another; features are memory-mapped, not copied."""
        for shard in self._shards(split):
            yield _stored_rows(self._batch(shard), self.dim)

    def read(self, split: str, ids: Sequence[str] | None = None) -> StoredRows:
        """Rows of one split.

        Args:
            split: its name.
            ids: which rows, in which order; None reads all in the store's order.

        Returns:
            n rows; a split in one shard that is read whole is not copied.

        Raises:
            InputError: an id is not stored in this split.
        """
        blocks = list(self.blocks(split))
        stored = [i for block in blocks for i in block.ids]
        if ids is None or list(ids) == stored:
            return blocks[0] if len(blocks) == 1 else _concatenate(blocks, self)
        position = {name: i for i, name in enumerate(stored)}
        try:
            wanted = np.array([position[i] for i in ids], dtype=np.intp)
        except KeyError as error:
            raise InputError(
                f"the store {self.path} has no row {error} in split '{split}': extract it first"
            ) from error
        out = StoredRows(
            list(ids),
            np.empty(len(wanted), np.int64),
            np.empty((len(wanted), self.dim), np.float32),
            np.empty(len(wanted), np.int32) if self._has_tokens else None,
        )
        start = 0
        for block in blocks:  # one shard in memory at a time
            here = np.flatnonzero((wanted >= start) & (wanted < start + len(block.ids)))
            rows = wanted[here] - start
            out.labels[here] = block.labels[rows]
            out.features[here] = block.features[rows]
            if out.tokens is not None and block.tokens is not None:
                out.tokens[here] = block.tokens[rows]
            start += len(block.ids)
        return out

    def truncated_fraction(self, ids: Mapping[str, Sequence[str]] | None = None) -> float:
        """Share of texts that are longer than the backbone reads; 0.0 for images.

        Args:
            ids: split -> ids to count; None counts the whole store.
        """
        limit = self.manifest.max_length
        if limit is None or not self._has_tokens or not self.n_rows:
            return 0.0
        if ids is None:
            return sum(shard.truncated for shard in self.manifest.shards) / self.n_rows
        long = total = 0
        for split, wanted in ids.items():
            counts = {
                name: int(tokens)
                for shard in self._shards(split)
                for name, tokens in zip(*_id_and_tokens(self._batch(shard)), strict=True)
            }
            long += sum(counts[i] > limit for i in wanted)
            total += len(wanted)
        return long / total if total else 0.0

    def verify(self) -> list[str]:
        """Read every byte and say what is wrong; an empty list means the store is whole."""
        problems = [f"{file}: {problem}" for file, problem in self.damaged_shards().items()]
        if not problems:
            seen: set[str] = set()
            for split in self.splits:
                ids = self.ids(split)
                if len(set(ids)) < len(ids) or not seen.isdisjoint(ids):
                    problems.append(f"split {split}: an id occurs twice")
                seen.update(ids)
        return problems

    def damaged_shards(self) -> dict[str, str]:
        """File name -> what is wrong with it, for each listed shard that is missing or altered."""
        found = {}
        for shard in self.manifest.shards:
            path = self.path / shard.file
            if not path.is_file():
                found[shard.file] = "missing"
            elif (size := path.stat().st_size) != shard.bytes:
                found[shard.file] = f"{size} bytes instead of {shard.bytes}"
            elif file_sha256(path) != shard.sha256:
                found[shard.file] = "altered (its checksum differs)"
            elif (rows := self._batch(shard).num_rows) != shard.rows:
                found[shard.file] = f"{rows} rows instead of {shard.rows}"
        return found

    @cached_property
    def _has_tokens(self) -> bool:
        return self.manifest.modality == "text"

    def _shards(self, split: str) -> list[Shard]:
        return [shard for shard in self.manifest.shards if shard.split == split]

    def _batch(self, shard: Shard) -> pa.RecordBatch:
        return read_shard(self.path / shard.file)


@dataclass
class StoreWriter:
    """The one writer of a store, while ``FeatureStore.writer`` holds its lock.

    Attributes:
        path: the store's folder.
        manifest: the store as it is on disk after the last ``append``.
    """

    path: Path
    manifest: Manifest

    def append(
        self,
        split: str,
        ids: Sequence[str],
        labels: np.ndarray,
        features: np.ndarray,
        tokens: np.ndarray | None = None,
        *,
        seconds: float = 0.0,
        skipped: Sequence[SkippedRow] = (),
    ) -> Shard | None:
        """Add one shard, or nothing at all if anything fails on the way.

        Args:
            split: letters, digits and underscore.
            ids: n ids that are not in the store yet.
            labels: (n,) int64.
            features: (n, dim) float32, finite.
            tokens: (n,) int32 before truncation, or None for images.
            seconds: wall time that encoding took.
            skipped: rows of this stretch of the data that could not be encoded.

        Returns:
            The new shard, or None where n is 0 and only skipped rows were noted.

        Raises:
            MachineError: the disk refuses; what was there before is untouched.
            InputError: shapes that do not belong together, or features that are not finite.
        """
        manifest = replace(self.manifest, skipped=(*self.manifest.skipped, *skipped))
        shard = None
        if len(ids):
            self._check(split, ids, labels, features, tokens)
            limit = manifest.max_length
            content = shard_bytes(split, ids, labels, features, tokens)
            import hashlib

            shard = Shard(
                file=manifest.free_name(split),
                split=split,
                rows=len(ids),
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                truncated=0 if tokens is None or limit is None else int((tokens > limit).sum()),
                seconds=round(seconds, 3),
            )
            write_atomically(self.path / shard.file, content)
            manifest = manifest.with_shard(shard)
        manifest.write(self.path)
        self.manifest = manifest
        return shard

    def drop(self, files: set[str]) -> None:
        """Forget damaged shards: their rows are missing from now on."""
        manifest = self.manifest.without(files)
        manifest.write(self.path)
        self.manifest = manifest
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Delete half-written files and shards that the manifest does not list."""
        listed = {shard.file for shard in self.manifest.shards}
        with plain_disk_errors(self.path):
            for path in self.path.iterdir():
                orphan = _SHARD_NAME.fullmatch(path.name) and path.name not in listed
                if orphan or path.name.startswith(TEMPORARY_PREFIX):
                    path.unlink(missing_ok=True)

    def _check(
        self,
        split: str,
        ids: Sequence[str],
        labels: np.ndarray,
        features: np.ndarray,
        tokens: np.ndarray | None,
    ) -> None:
        n = len(ids)
        if not re.fullmatch(r"\w+", split):
            raise InputError(f"a split's name has letters, digits and underscores, not '{split}'")
        if features.shape != (n, self.manifest.dim) or features.dtype != np.float32:
            raise InputError(
                f"features must be float32 of shape ({n}, {self.manifest.dim}), got "
                f"{features.dtype} of shape {features.shape}"
            )
        if labels.shape != (n,) or (tokens is not None and tokens.shape != (n,)):
            raise InputError(f"labels and tokens must have one entry for each of the {n} rows")
        if not np.isfinite(features).all():
            row = ids[int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])]
            raise InputError(f"row '{row}' has features that are NaN or infinite")


def shard_bytes(
    split: str,
    ids: Sequence[str],
    labels: np.ndarray,
    features: np.ndarray,
    tokens: np.ndarray | None,
) -> memoryview:
    """A shard's file content: an Arrow IPC stream of one record batch."""
    import pyarrow as pa

    n, dim = features.shape
    flat = pa.array(np.ascontiguousarray(features).reshape(-1))
    counts = pa.nulls(n, pa.int32()) if tokens is None else pa.array(tokens, pa.int32())
    batch = pa.record_batch(
        {
            "id": pa.array(list(ids), pa.string()),
            "label": pa.array(np.asarray(labels, np.int64)),
            "split": pa.array([split] * n, pa.string()),
            "tokens": counts,
            "features": pa.FixedSizeListArray.from_arrays(flat, dim),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return memoryview(sink.getvalue())


def read_shard(path: Path) -> pa.RecordBatch:
    """Memory-map a shard.

    Raises:
        InputError: missing, or no Arrow stream of one record batch.
    """
    import pyarrow as pa

    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        return reader.read_next_batch()
    except (OSError, pa.ArrowInvalid, StopIteration) as error:
        raise InputError(f"the shard {path} cannot be read: extract again to redo it") from error


def _stored_rows(batch: pa.RecordBatch, dim: int) -> StoredRows:
    ids, tokens = batch["id"].to_pylist(), batch["tokens"]
    return StoredRows(
        ids,
        batch["label"].to_numpy(),
        batch["features"].flatten().to_numpy().reshape(len(ids), dim),
        None if tokens.null_count else tokens.to_numpy(),
    )


def _id_and_tokens(batch: pa.RecordBatch) -> tuple[list[str], list[int]]:
    return batch["id"].to_pylist(), batch["tokens"].to_pylist()


def _concatenate(blocks: Sequence[StoredRows], store: FeatureStore) -> StoredRows:
    if not blocks:
        tokens = np.empty(0, np.int32) if store._has_tokens else None
        return StoredRows([], np.empty(0, np.int64), np.empty((0, store.dim), np.float32), tokens)
    tokens = [block.tokens for block in blocks if block.tokens is not None]
    return StoredRows(
        [i for block in blocks for i in block.ids],
        np.concatenate([block.labels for block in blocks]),
        np.concatenate([block.features for block in blocks]),
        np.concatenate(tokens) if len(tokens) == len(blocks) else None,
    )

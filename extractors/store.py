"""FeatureStore: frozen features on disk, computed once.

A store is a folder with ``manifest.json`` (see ``manifest.py``) and Arrow shards (see
``shard.py``). Reading never locks and never writes; there is one writer at a time, which grows the
store shard by shard (see ``writer.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extractors.errors import InputError
from extractors.fingerprint import file_sha256
from extractors.manifest import Manifest, Shard
from extractors.shard import StoredRows, concatenate, read_shard, select
from extractors.writer import StoreWriter, open_writer

__all__ = ["FeatureStore", "StoreWriter", "StoredRows", "default_cache_dir"]


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


@dataclass(frozen=True)
class FeatureStore:
    """Features of one data set from one backbone, opened for reading.

    An opened store is a snapshot: what a writer adds later is seen after ``FeatureStore.open``.

    Attributes:
        path: the store's folder.
        manifest: what it holds.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "store"
        >>> new = Manifest(fingerprint={"data": {}, "extractor": {}}, task="demo",
        ...                backbone="toy:text-2", modality="text", dim=2, classes=("no", "yes"),
        ...                max_length=None)
        >>> rows = StoredRows(["a"], np.array([1]), np.ones((1, 2), np.float32), np.array([3]))
        >>> with FeatureStore.writer(folder, new) as writer:
        ...     _ = writer.append("train", rows)
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
    def writer(path: str | Path, new: Manifest) -> AbstractContextManager[StoreWriter]:
        """Open a store for writing, alone; one that is not there yet is created from ``new``.

        Raises:
            MachineError: another process is writing, or the disk refuses.
            InputError: an existing store cannot be read or belongs to other data.
        """
        return open_writer(Path(path), new)

    @property
    def dim(self) -> int:
        """Width of a feature vector."""
        return self.manifest.dim

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.manifest.classes

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have rows."""
        return self.manifest.splits

    @property
    def n_rows(self) -> int:
        """Rows in all splits."""
        return sum(shard.rows for shard in self.manifest.shards)

    @property
    def seconds(self) -> float:
        """Wall time that encoding everything in the store took, over all runs."""
        return sum(shard.seconds for shard in self.manifest.shards)

    def ids(self, split: str) -> list[str]:
        """The ids of a split in reading order; an empty list for a split without rows."""
        return [name for block in self.blocks(split) for name in block.ids]

    def blocks(self, split: str) -> Iterator[StoredRows]:
        """The shards of a split one after another; features are memory-mapped, not copied."""
        for shard in self._shards(split):
            yield read_shard(self.path / shard.file)

    def read(self, split: str, ids: Sequence[str] | None = None) -> StoredRows:
        """Rows of one split.

        Args:
            split: its name.
            ids: which rows, in which order; None reads all in the store's order.

        Returns:
            n rows; a split in one shard that is read whole is not copied (and is read-only).

        Raises:
            InputError: an id is not stored in this split, or a shard cannot be read.
        """
        blocks = list(self.blocks(split))
        stored = [name for block in blocks for name in block.ids]
        if ids is None or list(ids) == stored:
            if len(blocks) == 1:
                return blocks[0]
            return concatenate(blocks, dim=self.dim, has_tokens=self._has_tokens)
        position = {name: row for row, name in enumerate(stored)}
        try:
            rows = np.array([position[name] for name in ids], dtype=np.intp)
        except KeyError as error:
            raise InputError(
                f"the store {self.path} has no row {error} in split '{split}': extract it first"
            ) from error
        if not len(rows):
            return concatenate([], dim=self.dim, has_tokens=self._has_tokens)
        return select(blocks, rows, has_tokens=self._has_tokens)

    def truncated_fraction(self, ids: Mapping[str, Sequence[str]] | None = None) -> float:
        """Share of texts that are longer than the backbone reads; 0.0 for images.

        Args:
            ids: split -> ids to count; None counts the whole store.

        Raises:
            InputError: an id is not stored in that split.
        """
        limit = self.manifest.max_length
        if limit is None or not self._has_tokens or not self.n_rows:
            return 0.0
        if ids is None:
            return sum(shard.truncated for shard in self.manifest.shards) / self.n_rows
        counts = [self._tokens(split, wanted) for split, wanted in ids.items()]
        total = sum(map(len, counts))
        return sum(int((tokens > limit).sum()) for tokens in counts) / total if total else 0.0

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
            elif (rows := len(read_shard(path).ids)) != shard.rows:
                found[shard.file] = f"{rows} rows instead of {shard.rows}"
        return found

    @property
    def _has_tokens(self) -> bool:
        return self.manifest.modality == "text"

    def _shards(self, split: str) -> list[Shard]:
        return [shard for shard in self.manifest.shards if shard.split == split]

    def _tokens(self, split: str, ids: Sequence[str]) -> np.ndarray:
        """(n,) token counts of these rows, without touching their features."""
        counts: dict[str, int] = {}
        for block in self.blocks(split):
            if block.tokens is not None:
                counts.update(zip(block.ids, block.tokens.tolist(), strict=True))
        try:
            return np.array([counts[name] for name in ids], dtype=np.int32)
        except KeyError as error:
            raise InputError(
                f"the store {self.path} has no row {error} in split '{split}': extract it first"
            ) from error

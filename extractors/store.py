"""FeatureStore: frozen features on disk, computed once.

A store is a folder with ``manifest.json`` (see ``manifest.py``) and Arrow shards (see
``shard.py``). Reading never locks and never writes; there is one writer at a time, which grows the
store shard by shard (see ``writer.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extractors.damage import contradictions, examine
from extractors.errors import InputError
from extractors.gather import Gatherer, Picked
from extractors.manifest import Manifest
from extractors.shard import Block, StoredRows, concatenate, in_order
from extractors.snapshot import Stamp, map_split, stamp_of
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


class Batch(NamedTuple):
    """Some rows of a split, for example a mini-batch."""

    rows: np.ndarray  # (b,) positions in the split
    features: np.ndarray  # (b, dim) float32, or as stored where decoding was declined
    labels: np.ndarray  # (b,) int64
    scale: np.ndarray | None  # (b,) float32 to multiply int8 features with; None where decoded


@dataclass(frozen=True)
class FeatureStore:
    """Features of one data set from one backbone, opened for reading.

    An opened store is a snapshot: what a writer adds later is seen after ``FeatureStore.open``.

    Attributes:
        path: the store's folder.
        manifest: what it holds.
        stamp: of the manifest's file when it was read, for ``snapshot.py``.

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
    stamp: Stamp | None = field(default=None, compare=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open a store for reading. Only the manifest is read; see ``verify`` for the shards.

        Raises:
            InputError: no store, another schema version, or an altered manifest.
        """
        folder = Path(path).absolute()  # it is read later, perhaps from another working directory
        stamp = stamp_of(folder)
        return cls(folder, Manifest.read(folder), stamp)

    @staticmethod
    def writer(path: str | Path, new: Manifest) -> AbstractContextManager[StoreWriter]:
        """Open a store for writing, alone; one that is not there yet is created from ``new``.

        Raises:
            MachineError: another process is writing, or the disk refuses.
            InputError: an existing store cannot be read or belongs to other data.
        """
        return open_writer(Path(path).absolute(), new)

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

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.manifest.shards)

    def ids(self, split: str) -> list[str]:
        """The ids of a split in reading order; an empty list for a split without rows."""
        return [name for block in self.blocks(split) for name in block.ids]

    def labels(self, split: str) -> np.ndarray:
        """(n,) int64 labels of a split in reading order."""
        return self.source(split).labels

    def blocks(self, split: str) -> Iterator[Block]:
        """The shards of a split one after another; features are memory-mapped, not copied.

        All are mapped before the first is given out, so that a writer that compacts the store in
        the meantime takes nothing away.

        Raises:
            InputError: a shard is missing or cannot be read.
        """
        yield from in_order(self._blocks(split))

    def batches(
        self,
        split: str,
        size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        decode: bool = True,
    ) -> Iterator[Batch]:
        """Every row of a split once, in batches.

        Args:
            split: its name.
            size: rows per batch; the last one may have fewer.
            seed: None keeps the store's order; a number shuffles all rows, anew in each epoch.
            epoch: counts the passes, from 0.
            decode: False gives features as they are stored, for example to decode int8 on a device.

        Raises:
            InputError: a size below 1, or a shard that cannot be read.

        Example:
            >>> import tempfile
            >>> new = Manifest(fingerprint={}, task="demo", backbone="toy:text-2", modality="image",
            ...                dim=2, classes=("no", "yes"), max_length=None)
            >>> folder = Path(tempfile.mkdtemp()) / "store"
            >>> rows = StoredRows(list("abc"), np.array([0, 1, 1]), np.ones((3, 2), "f"), None)
            >>> with FeatureStore.writer(folder, new) as writer:
            ...     _ = writer.append("train", rows)
            >>> store = FeatureStore.open(folder)
            >>> [batch.labels.tolist() for batch in store.batches("train", 2)]
            [[0, 1], [1]]
            >>> sorted(int(r) for batch in store.batches("train", 2, seed=0) for r in batch.rows)
            [0, 1, 2]
        """
        if size < 1:
            raise InputError(f"a batch has at least 1 row, got {size}")
        gatherer = self.source(split)
        if seed is None:
            order = np.arange(gatherer.n)
        else:
            order = np.random.default_rng((seed, epoch)).permutation(gatherer.n)
        for start in range(0, gatherer.n, size):
            rows = order[start : start + size]
            scale = None if decode else gatherer.scale(rows)
            features = gatherer.features(rows) if decode else gatherer.encoded(rows)
            yield Batch(rows, features, gatherer.labels[rows], scale)

    def read(
        self, split: str, ids: Sequence[str] | None = None, *, streamed: bool = False
    ) -> StoredRows:
        """Rows of one split.

        Args:
            split: its name.
            ids: which rows, in which order; None reads all in the store's order.
            streamed: whether the features stay on disk until some of them are read, by slice or
                index array, as those of ``source`` do.

        Returns:
            n rows; a split of float32 in one shard that is read whole is not copied (and is
            read-only).

        Raises:
            InputError: an id is not stored in this split, or a shard cannot be read.
        """
        blocks = self._blocks(split)
        stored = self.ids(split)
        if ids is None or list(ids) == stored:
            if streamed:
                return self._streamed(split, stored, None)
            if len(blocks) == 1:
                return blocks[0].rows()
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
        if streamed:
            return self._streamed(split, list(ids), rows)
        gatherer = self.source(split)
        return StoredRows(
            list(ids),
            gatherer.labels[rows],
            gatherer.features(rows),
            self._token_counts(split)[rows] if self._has_tokens else None,
        )

    def _streamed(self, split: str, ids: list[str], rows: np.ndarray | None) -> StoredRows:
        """Rows whose features are a row source; `rows`: their positions, None for all of them."""
        source: Any = self.source(split)
        labels, tokens = source.labels, self._token_counts(split) if self._has_tokens else None
        if rows is not None:
            source, labels = Picked(source, rows), labels[rows]
            tokens = None if tokens is None else tokens[rows]
        return StoredRows(ids, labels, source, tokens)

    def _token_counts(self, split: str) -> np.ndarray:
        """(n,) int32 of all rows of a split of texts."""
        found = [tokens for block in self._blocks(split) if (tokens := block.tokens) is not None]
        return np.concatenate([np.empty(0, np.int32), *found])

    def source(self, split: str) -> Gatherer:
        """Features (n, dim) and ``labels`` of a split that stay on disk until rows are read.

        Estimators take it in place of an array, also where it is larger than memory:
        ``head.fit(source, source.labels)``.

        Raises:
            InputError: a shard that cannot be read.
        """
        if split not in self._gatherers:
            blocks = self._blocks(split)
            for block in blocks:
                block.expect()
            self._gatherers[split] = Gatherer(blocks, dim=self.dim)
        return self._gatherers[split]

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
        """Read every byte and say what is wrong; an empty list means the store is whole.

        Where a writer has merged shards since the store was opened, it is the merged ones that are
        read.
        """
        problems = []
        try:
            Manifest.read(self.path)
        except InputError as error:
            problems.append(str(error))
        manifest, damaged = examine(self.path, self.manifest)
        problems += [f"{file}: {problem}" for file, problem in damaged.items()]
        if not problems:
            problems += contradictions(self.path, manifest)
            store = FeatureStore(self.path, manifest)
            seen: set[str] = set()
            for split in store.splits:
                ids = store.ids(split)
                if len(set(ids)) < len(ids) or not seen.isdisjoint(ids):
                    problems.append(f"split {split}: an id occurs twice")
                seen.update(ids)
        return problems

    def damaged_shards(self) -> dict[str, str]:
        """File name -> what is wrong with it, for each listed shard that is missing or altered."""
        return examine(self.path, self.manifest)[1]

    @property
    def _has_tokens(self) -> bool:
        return self.manifest.modality == "text"

    @cached_property
    def _mapped(self) -> dict[str, tuple[Block, ...]]:
        return {}

    @cached_property
    def _gatherers(self) -> dict[str, Gatherer]:
        return {}

    def _blocks(self, split: str) -> tuple[Block, ...]:
        if split not in self._mapped:
            self._mapped[split] = map_split(self.path, self.manifest, split, self.stamp)
        return self._mapped[split]

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

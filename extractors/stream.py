"""Rows that come one after the other -> a feature store, however many there are.

The same store as that of ``extractors.extract.extract``, from any iterable: a generator over files
or a database, without a length and larger than memory. What is in memory at any moment is one shard
per split, the next of them, and a few dozen bytes per row that remember its id.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extractors.base import Extractor, check_ids
from extractors.codec import StoreDtype, check_dtype
from extractors.damage import examine
from extractors.encode import Chunk, OnBadRow, encode_chunks
from extractors.errors import InputError
from extractors.extract import SHARD_ROWS, Extraction, fingerprint, reduced_error, store_folder
from extractors.fill import (
    changed,
    check_classes,
    check_labels,
    empty_manifest,
    fill,
    none_left,
    repeated,
)
from extractors.known import KnownIds
from extractors.manifest import MANIFEST_NAME, Manifest
from extractors.rebuild import rebuild_manifest
from extractors.snapshot import StoreChanged
from extractors.store import FeatureStore, StoreWriter


class StreamRow(NamedTuple):
    """One raw row of a stream."""

    id: str  # unique in the stream, and stable between runs
    split: str  # letters, digits and underscore
    input: Any  # as in ``extractors.base.Rows``
    label: int


def extract_stream(
    rows: Iterable[StreamRow],
    extractor: Extractor,
    *,
    task: str,
    classes: tuple[str, ...],
    data_fingerprint: dict[str, Any],
    cache_dir: Path | None = None,
    shard_rows: int = SHARD_ROWS,
    on_bad_row: OnBadRow = "fail",
    dtype: StoreDtype = "float32",
    progress: Callable[[int], None] | None = None,
) -> Extraction:
    """Fill the feature store with every row of a stream that is not in it yet.

    A stream that is given again after an interruption passes over the rows that are stored and goes
    on from there. When nothing is missing the backbone is not loaded and nothing is written.

    Args:
        rows: the stream; it is gone through once.
        extractor: the backbone.
        task: the data set's name, for people.
        classes: class names by label.
        data_fingerprint: JSON-able identity of the data, known before they are read (a path and a
            version, a query and a date).
        cache_dir: holds the stores; None is ``default_cache_dir()``.
        shard_rows: rows per shard; what a crash can cost for each split.
        on_bad_row: "fail" or "skip"; "skip" remembers such rows and does not try them again.
        dtype: how features are stored, see ``extractors.codec``.
        progress: called with the number of rows encoded since the last call.

    Returns:
        As ``extract``; ``truncated_fraction`` and ``tokens`` are those of the whole store.

    Raises:
        InputError: a bad row under "fail", an id that repeats, a label without a class, data or
            classes that do not fit their fingerprint, a store of another version.
        MachineError: disk full or read-only, another process writing the same store, no network.

    Example:
        >>> import tempfile
        >>> from extractors import load_extractor
        >>> rows = (StreamRow(f"r{i}", "train", f"text {i}", i % 2) for i in range(1000))
        >>> done = extract_stream(rows, load_extractor("toy:text-4"), task="demo",
        ...                       classes=("no", "yes"), data_fingerprint={"made": "here"},
        ...                       cache_dir=Path(tempfile.mkdtemp()))
        >>> done.rows, len(done.store.manifest.shards)
        (1000, 2)
    """
    began = time.perf_counter()
    if shard_rows < 1:
        raise InputError(f"shard_rows must be at least 1, got {shard_rows}")
    check_dtype(dtype)
    folder = store_folder(task, extractor, data_fingerprint, cache_dir, dtype)
    rebuilt = rebuild_manifest(folder)
    stored = _Stored.read(folder, on_bad_row)
    found = stored.manifest
    if found is not None:
        check_classes(FeatureStore(folder, found), classes)

    def open_writer() -> StoreWriter:
        key_parts = fingerprint(extractor, data_fingerprint, dtype)
        new = empty_manifest(extractor, key_parts, task=task, classes=classes, dtype=dtype)
        opened = stack.enter_context(FeatureStore.writer(folder, new))
        check_classes(FeatureStore(folder, opened.manifest), classes)
        return opened

    with ExitStack() as stack:
        writer: StoreWriter | None = None
        if found is None or stored.damaged:
            writer = open_writer()
            stored = _Stored(folder, writer.manifest, on_bad_row)
            writer.drop(stored.damaged)
        seen = KnownIds()
        resumed = 0

        def missing_chunks() -> Iterator[Chunk]:
            nonlocal writer, stored, resumed
            waiting: dict[str, list[StreamRow]] = {}
            for some in _portions(rows, shard_rows, classes):
                again = seen.add([row.id for row in some])
                if again.any():
                    row = some[int(np.argmax(again))]
                    raise repeated(row.id, row.split)
                missing = ~stored.has(some)
                if missing.any() and writer is None:
                    writer = open_writer()
                    if writer.manifest != found:  # another process has written since we looked
                        stored = _Stored(folder, writer.manifest, on_bad_row)
                        writer.drop(stored.damaged)
                        missing = ~stored.has(some)
                resumed += len(some) - int(missing.sum())
                for row, wanted in zip(some, missing, strict=True):
                    if wanted:
                        waiting.setdefault(row.split, []).append(row)
                        if len(waiting[row.split]) == shard_rows:
                            yield _chunk(waiting.pop(row.split))
            for split in list(waiting):
                yield _chunk(waiting.pop(split))

        chunks = missing_chunks()
        first = next(chunks, None)  # before it there is no writer
        if first is not None:
            assert writer is not None
            fill(
                writer, extractor, chain([first], chunks), encode_chunks,
                on_bad_row=on_bad_row, progress=progress,
            )  # fmt: skip
        manifest = found if writer is None else writer.manifest

    assert manifest is not None
    store = FeatureStore(folder, manifest)
    left_out = tuple(row for row in manifest.skipped if seen.contains([row.id])[0])
    kept = len(seen) - len(left_out)
    if len(seen) and not kept:
        raise none_left(len(seen), left_out)
    return Extraction(
        store=store,
        rows=kept,
        dim=store.dim,
        resumed_rows=resumed - len(stored.skipped_before & {row.id for row in left_out}),
        truncated_fraction=store.truncated_fraction(),
        seconds=time.perf_counter() - began,
        skipped=left_out,
        tokens=store.manifest.measured.get("tokens"),
        error=reduced_error(store.manifest),
        rebuilt=rebuilt,
    )


class _Stored:
    """The rows of a store, remembered well enough to be recognised in the stream."""

    def __init__(self, folder: Path, manifest: Manifest | None, on_bad_row: OnBadRow) -> None:
        self._folder = folder
        self._ids, self._facts = KnownIds(), KnownIds()
        self.manifest = manifest
        self.damaged: set[str] = set()
        self.skipped_before: set[str] = set()
        if manifest is None:
            return
        self.manifest, damaged = examine(folder, manifest)
        self.damaged = set(damaged)
        whole = FeatureStore(folder, self.manifest.without(self.damaged))
        for split in whole.splits:
            for block in whole.blocks(split):
                ids = block.ids
                self._ids.add(ids)
                labels = block.labels.tolist()
                facts = zip(ids, labels, strict=True)
                self._facts.add([_fact(name, split, label) for name, label in facts])
        if on_bad_row == "skip":
            self.skipped_before = {row.id for row in self.manifest.skipped}

    @classmethod
    def read(cls, folder: Path, on_bad_row: OnBadRow) -> _Stored:
        """Those of a store as nobody changes it while it is looked at."""
        while (folder / MANIFEST_NAME).exists():
            with suppress(StoreChanged):
                return cls(folder, Manifest.read(folder), on_bad_row)
        return cls(folder, None, on_bad_row)

    def has(self, rows: list[StreamRow]) -> np.ndarray:
        """(n,) bool: which rows need no encoding.

        Raises:
            InputError: a row is stored with another split or label.
        """
        there = self._ids.contains([row.id for row in rows])
        same = self._facts.contains([_fact(row.id, row.split, row.label) for row in rows])
        if (there & ~same).any():
            row = rows[int(np.argmax(there & ~same))]
            stored = "with another split or label than"
            raise changed(row.id, self._folder, (row.split, row.label), stored)
        return there | np.array([row.id in self.skipped_before for row in rows], bool)


def _fact(name: str, split: str, label: int) -> str:
    return f"{split}\0{label}\0{name}"


def _chunk(rows: list[StreamRow]) -> Chunk:
    labels = np.array([row.label for row in rows], np.int64)
    return Chunk(rows[0].split, [row.id for row in rows], [row.input for row in rows], labels)


def _portions(
    rows: Iterable[StreamRow], size: int, classes: tuple[str, ...]
) -> Iterator[list[StreamRow]]:
    """Rows of a stream, checked, with labels that are Python's own integers."""
    stream = iter(rows)
    while chunk := list(islice(stream, size)):
        check_ids([row.id for row in chunk])
        labelled = [row._replace(label=_label(row)) for row in chunk]
        labels = np.array([row.label for row in labelled], np.int64)
        check_labels([row.id for row in labelled], labels, classes)
        yield labelled


def _label(row: StreamRow) -> int:
    try:
        label = operator.index(row.label)
    except TypeError:
        label = None
    if label is None or not -(2**63) <= label < 2**63:
        raise InputError(f"row '{row.id}' has the label {row.label!r:.40}, which is no class index")
    return label

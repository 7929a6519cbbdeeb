"""A data set and a backbone -> a complete feature store, resumable at any moment.

The store is keyed by everything that the numbers depend on, and it grows: rows that are in it are
never encoded again, the missing ones are cut into shards in the order given. So an interrupted
extraction, started again, ends in the store that an uninterrupted one writes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractors.base import Extractor, Rows
from extractors.codec import StoreDtype, check_dtype
from extractors.damage import examine
from extractors.encode import Chunk, OnBadRow, encode_chunks
from extractors.errors import InputError
from extractors.fill import (
    Encode,
    changed,
    check_classes,
    check_labels,
    empty_manifest,
    fill,
    none_left,
    repeated,
)
from extractors.fingerprint import store_key
from extractors.manifest import MANIFEST_NAME, Manifest, SkippedRow
from extractors.names import parse_name
from extractors.rebuild import rebuild_manifest
from extractors.snapshot import StoreChanged
from extractors.store import FeatureStore, StoreWriter, default_cache_dir
from extractors.tokens import histogram_of

if TYPE_CHECKING:
    from extractors.distributed import RayEngine

SHARD_ROWS = 512


@dataclass(frozen=True)
class Extraction:
    """What ``extract`` returns.

    Attributes:
        store: opened for reading; it may hold more rows than were asked for.
        rows: rows asked for that are in the store.
        dim: width of a feature vector.
        resumed_rows: those of ``rows`` that were there before.
        truncated_fraction: share of ``rows`` longer than the backbone reads; 0.0 for images.
        tokens: statistics of the texts among ``rows`` (see ``tokens.py``); None for others.
        error: of features in half precision or int8 against float32 (see ``precision.py``), or
            None.
        seconds: wall time of this call.
        skipped: rows asked for that cannot be encoded.
        rebuilt: shards that a lost or damaged manifest was rebuilt from; 0 where it was whole.
    """

    store: FeatureStore
    rows: int
    dim: int
    resumed_rows: int
    truncated_fraction: float
    seconds: float
    skipped: tuple[SkippedRow, ...]
    tokens: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    rebuilt: int = 0


def fingerprint(
    extractor: Extractor, data_fingerprint: dict[str, Any], dtype: StoreDtype = "float32"
) -> dict[str, Any]:
    """Everything that the stored numbers depend on: data, backbone, and how they are stored."""
    parts: dict[str, Any] = {"data": data_fingerprint, "extractor": extractor.fingerprint()}
    # float32 goes without saying, so that stores older than the choice keep their key.
    return parts if dtype == "float32" else {**parts, "storage": dtype}


def reduced_error(manifest: Manifest) -> dict[str, Any] | None:
    """What computing in less than float32 costs, as measured on the first rows; None: nothing."""
    return manifest.measured.get("autocast") or manifest.measured.get("quantize")


def store_folder(
    task: str,
    extractor: Extractor,
    data_fingerprint: dict[str, Any],
    cache_dir: Path | None = None,
    dtype: StoreDtype = "float32",
) -> Path:
    """Where the store of this data and this backbone lies: ``stores/TASK-BACKBONE-KEY``.

    Data or a model that were renamed have the store that they had: only the key says what is in it.
    """
    key = store_key(fingerprint(extractor, data_fingerprint, dtype))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(task).stem or task).strip("-.")[:60] or "data"
    backbone = parse_name(extractor.name).slug
    stores = (cache_dir or default_cache_dir()).absolute() / "stores"
    folder = stores / f"{name}-{backbone}-{key[:12]}"
    if not folder.exists():
        for other in sorted(stores.glob(f"*-{key[:12]}")):
            with suppress(InputError):
                if Manifest.read(other).key == key:
                    return other
    return folder


def extract(
    splits: Mapping[str, Rows],
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
    on_start: Callable[[int, int], None] | None = None,
    engine: RayEngine | None = None,
) -> Extraction:
    """Fill the feature store with every row that is not in it yet.

    Ctrl-C, a crash or a full disk cost at most the shard in the making. A shard that was altered is
    redone. When nothing is missing the backbone is not loaded and nothing is written.

    Args:
        splits: name -> raw rows; ids are unique over all splits.
        extractor: the backbone.
        task: the data set's name, for people.
        classes: class names by label.
        data_fingerprint: JSON-able identity of the whole data set, not of a subset of its rows.
        cache_dir: holds the stores; None is ``default_cache_dir()``.
        shard_rows: rows per shard; what a crash can cost.
        on_bad_row: "fail" or "skip"; "skip" remembers such rows and does not try them again.
        dtype: how features are stored: "float32", "float16" (half the bytes) or "int8" with a scale
            per row (a quarter); what that loses is in ``store.manifest.storage_error``.
        progress: called with the number of rows done since the last call.
        on_start: called once with (rows asked for, rows already there).
        engine: encodes shards elsewhere; None encodes here. The store is the same.

    Raises:
        InputError: bad rows under "fail", ids that repeat, labels without a class, data or classes
            that do not fit their fingerprint, a store of another version.
        MachineError: disk full or read-only, another process writing the same store, no network.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from extractors import load_extractor
        >>> rows = Rows(ids=["a", "b"], inputs=["good", "bad"], labels=np.array([1, 0]))
        >>> done = extract({"train": rows}, load_extractor("toy:text-4"), task="demo",
        ...                classes=("bad", "good"), data_fingerprint={"sha256": "0"},
        ...                cache_dir=Path(tempfile.mkdtemp()))
        >>> done.rows, done.dim, done.store.read("train").labels.tolist()
        (2, 4, [1, 0])
    """
    began = time.perf_counter()
    if shard_rows < 1:
        raise InputError(f"shard_rows must be at least 1, got {shard_rows}")
    check_dtype(dtype)
    _check_unique(splits)
    for rows in splits.values():
        check_labels(rows.ids, rows.labels, classes)
    folder = store_folder(task, extractor, data_fingerprint, cache_dir, dtype)
    rebuilt = rebuild_manifest(folder)
    store, damaged, present = _stored(folder)
    if store is not None:
        check_classes(store, classes)
    resumed = _check_fit(splits, present, folder)
    total = sum(len(rows) for rows in splits.values())
    skipped = _skipped(store, splits, on_bad_row)
    if on_start is not None:
        on_start(total, resumed)

    if store is None or damaged or resumed + len(skipped) < total:
        key_parts = fingerprint(extractor, data_fingerprint, dtype)
        new = empty_manifest(extractor, key_parts, task=task, classes=classes, dtype=dtype)
        with FeatureStore.writer(folder, new) as writer, ExitStack() as stack:
            check_classes(FeatureStore(folder, writer.manifest), classes)
            missing = _missing(writer, splits, shard_rows, on_bad_row)
            encode: Encode = encode_chunks
            if engine is not None and missing:
                encode = stack.enter_context(engine.encoder(extractor, missing, on_bad_row))
            fill(writer, extractor, missing, encode, on_bad_row=on_bad_row, progress=progress)
            store = FeatureStore(folder, writer.manifest)
        skipped = _skipped(store, splits, on_bad_row)

    left_out = {row.id for row in skipped}
    kept = {split: [i for i in rows.ids if i not in left_out] for split, rows in splits.items()}
    n_kept = sum(len(ids) for ids in kept.values())
    if total and not n_kept:
        raise none_left(total, skipped)
    return Extraction(
        store=store,
        rows=n_kept,
        dim=store.dim,
        resumed_rows=resumed,
        truncated_fraction=store.truncated_fraction(kept),
        seconds=time.perf_counter() - began,
        skipped=skipped,
        tokens=histogram_of(store, kept).statistics(store.manifest.max_length),
        error=reduced_error(store.manifest),
        rebuilt=rebuilt,
    )


def _missing(
    writer: StoreWriter, splits: Mapping[str, Rows], shard_rows: int, on_bad_row: OnBadRow
) -> list[Chunk]:
    """What the store lacks; another process may have written since we last looked."""
    store = FeatureStore(writer.path, writer.manifest)
    if damaged := set(store.damaged_shards()):
        writer.drop(damaged)
    done = set(_present(store, damaged))
    done.update(row.id for row in _skipped(store, splits, on_bad_row))
    chunks = []
    for split, rows in splits.items():
        missing = [i for i, name in enumerate(rows.ids) if name not in done]
        for start in range(0, len(missing), shard_rows):
            some = missing[start : start + shard_rows]
            ids, inputs = [rows.ids[i] for i in some], [rows.inputs[i] for i in some]
            chunks.append(Chunk(split, ids, inputs, rows.labels[some]))
    return chunks


def _check_unique(splits: Mapping[str, Rows]) -> None:
    seen: set[str] = set()
    for split, rows in splits.items():
        for name in rows.ids:
            if name in seen:
                raise repeated(name, split)
            seen.add(name)


def _stored(
    folder: Path,
) -> tuple[FeatureStore | None, set[str], dict[str, tuple[str, int]]]:
    """A store as nobody changes it while it is looked at, its damaged shards, its other rows."""
    while (folder / MANIFEST_NAME).exists():
        manifest, damaged = examine(folder, Manifest.read(folder))
        store = FeatureStore(folder, manifest)
        with suppress(StoreChanged):
            return store, set(damaged), _present(store, set(damaged))
    return None, set(), {}


def _present(store: FeatureStore, damaged: set[str]) -> dict[str, tuple[str, int]]:
    """id -> (split, label) of every row in an undamaged shard."""
    whole = FeatureStore(store.path, store.manifest.without(damaged))
    return {
        name: (split, label)
        for split in whole.splits
        for block in whole.blocks(split)
        for name, label in zip(block.ids, block.labels.tolist(), strict=True)
    }


def _check_fit(
    splits: Mapping[str, Rows], present: Mapping[str, tuple[str, int]], folder: Path
) -> int:
    """How many of the rows are stored, once it is certain that they are the same rows."""
    resumed = 0
    for split, rows in splits.items():
        for name, label in zip(rows.ids, rows.labels.tolist(), strict=True):
            if name in present:
                resumed += 1
                if present[name] != (split, label):
                    stored = f"as {present[name]} but given as"
                    raise changed(name, folder, (split, label), stored)
    return resumed


def _skipped(
    store: FeatureStore | None, splits: Mapping[str, Rows], on_bad_row: OnBadRow
) -> tuple[SkippedRow, ...]:
    """The rows asked for that are known to be bad; under "fail" they are tried again.

    They may have been repaired, and the sentence that stops the work should be today's.
    """
    if store is None or on_bad_row == "fail" or not store.manifest.skipped:
        return ()
    wanted = {split: set(rows.ids) for split, rows in splits.items()}
    return tuple(row for row in store.manifest.skipped if row.id in wanted.get(row.split, ()))

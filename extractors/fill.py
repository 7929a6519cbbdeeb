"""Chunks of rows -> shards of a store, with all that is to be remembered of them.

The one place where rows are appended, wherever they come from and wherever they are encoded; and
what ``extract.py`` and ``stream.py`` refuse in the same words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from extractors.base import Approximate, Extractor
from extractors.encode import Chunk, EncodedRows, OnBadRow, plain_memory_errors
from extractors.errors import BadRow, InputError, MachineError
from extractors.manifest import Manifest, SkippedRow, installed_versions
from extractors.precision import MEASURED_ROWS, measure_error
from extractors.shard import StoredRows
from extractors.store import FeatureStore, StoreWriter
from extractors.tokens import histogram_of


class Encode(Protocol):
    """What encodes chunks in their order: ``encode_chunks``, or an engine elsewhere."""

    def __call__(
        self,
        extractor: Extractor,
        chunks: Iterable[Chunk],
        *,
        on_bad_row: OnBadRow,
        progress: Callable[[int], None] | None,
    ) -> Iterator[tuple[Chunk, EncodedRows]]: ...


def fill(
    writer: StoreWriter,
    extractor: Extractor,
    chunks: Iterable[Chunk],
    encode: Encode,
    *,
    on_bad_row: OnBadRow,
    progress: Callable[[int], None] | None,
) -> None:
    """Encode chunks and append each as a shard, skipped rows and figures about features with it.

    Args:
        writer: of the store; its damaged shards are dropped.
        extractor: the backbone.
        chunks: rows that the store does not have.
        encode: where.
        on_bad_row: "fail" or "skip".
        progress: called with the number of rows done since the last call.

    Raises:
        MachineError: not all chunks came back; those that did are kept.
    """
    seen = histogram_of(FeatureStore(writer.path, writer.manifest))
    taken = done = 0

    def counted() -> Iterator[Chunk]:
        nonlocal taken
        for chunk in chunks:
            taken += 1
            yield chunk

    source = counted()
    clock = time.perf_counter()
    for chunk, encoded in encode(extractor, source, on_bad_row=on_bad_row, progress=progress):
        done += 1
        seconds = time.perf_counter() - clock
        measured = {}
        if not {"autocast", "quantize"} & writer.manifest.measured.keys():
            measured = _measured_error(extractor, chunk.inputs)
        if encoded.tokens is not None:
            seen.add(encoded.tokens)
            measured["tokens"] = seen.statistics(writer.manifest.max_length)
        kept = encoded.kept
        writer.append(
            chunk.split,
            StoredRows(
                list(map(chunk.ids.__getitem__, kept.tolist())),
                chunk.labels[kept],
                encoded.features,
                encoded.tokens,
            ),
            seconds=seconds,
            skipped=[SkippedRow(name, chunk.split, why) for name, why in encoded.skipped.items()],
            measured=measured,
        )
        clock = time.perf_counter()
    if next(source, None) is not None or done < taken:
        raise MachineError(
            f"only {done} shards came back from where they are encoded, and there are more; these "
            "are kept, and the same command continues"
        )


def empty_manifest(
    extractor: Extractor,
    fingerprint: dict[str, Any],
    *,
    task: str,
    classes: tuple[str, ...],
    dtype: str,
) -> Manifest:
    """Of a store that is yet to be filled; the backbone is loaded, if it is not."""
    return Manifest(
        fingerprint=fingerprint,
        task=task,
        backbone=extractor.name,
        modality=extractor.modality,
        dim=extractor.dim,
        classes=tuple(classes),
        max_length=extractor.max_length,
        versions=installed_versions(),
        dtype=dtype,
    )


def check_classes(store: FeatureStore, classes: Sequence[str]) -> None:
    """Refuse a store whose labels mean other classes.

    Raises:
        InputError: they are not those of the store, in its order.
    """
    if tuple(classes) != store.classes:
        raise InputError(
            f"the store {store.path} numbers the classes {_listed(store.classes)}, but "
            f"{_listed(classes)} are asked for: give them as the store has them, or delete that "
            "folder"
        )


def check_labels(ids: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse labels that are no index of a class; without classes every label is one.

    Args:
        ids: n names.
        labels: (n,) integers.
        classes: class names by label.

    Raises:
        InputError: a label that has no class.
    """
    wrong = (labels < 0) | (labels >= len(classes))
    if len(classes) and wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"row '{ids[row]}' has the label {labels[row]}, but labels of {len(classes)} classes "
            f"are 0 to {len(classes) - 1}"
        )


def repeated(name: str, split: str) -> InputError:
    """An id that was there before."""
    return InputError(f"the id '{name}' occurs twice (again in split '{split}')")


def changed(name: str, folder: Path, given: tuple[str, int], stored: str) -> InputError:
    """A row that is stored as another; stored: as what."""
    return InputError(
        f"row '{name}' is stored in {folder} {stored} {given}: the data changed and their "
        "fingerprint did not; delete that folder"
    )


def none_left(total: int, skipped: Sequence[SkippedRow]) -> InputError:
    """Rows asked for of which not one could be encoded."""
    return InputError(f"none of the {total} rows can be encoded; the first: {skipped[0].reason}")


def _listed(names: Sequence[str]) -> str:
    return f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def _measured_error(extractor: Extractor, inputs: Sequence[Any]) -> dict[str, Any]:
    """The error against float32 on some rows, by what causes it; empty where there is none."""
    exact = extractor.exact() if isinstance(extractor, Approximate) else None
    if exact is None:
        return {}
    prepared = []
    for item in inputs[:MEASURED_ROWS]:
        with suppress(BadRow):
            prepared.append(extractor.prepare(item))
    if not prepared:
        return {}
    chosen = extractor.fingerprint().get("options", {})
    with plain_memory_errors(len(prepared)):
        error = measure_error(extractor, exact, prepared)
    return {"quantize" if "quantize" in chosen else "autocast": error}

"""Chunks of rows -> shards of a store, with all that is to be remembered of them.

The one place where rows are appended, wherever they come from and wherever they are encoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from extractors.base import Approximate, Extractor
from extractors.encode import Chunk, EncodedRows, OnBadRow, plain_memory_errors
from extractors.errors import BadRow
from extractors.manifest import SkippedRow
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
    """
    seen = histogram_of(FeatureStore(writer.path, writer.manifest))
    clock = time.perf_counter()
    for chunk, encoded in encode(extractor, chunks, on_bad_row=on_bad_row, progress=progress):
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

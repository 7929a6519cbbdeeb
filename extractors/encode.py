"""Rows in memory -> features in memory: sort by length, encode in batches, restore the order.

A batch is padded to its longest text, so batches of similar length waste little. Images all have
one size and are decoded batch by batch, so that only one batch of pixels is in memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from extractors.base import Extractor
from extractors.errors import BadRow, InputError, MachineError

_DECODE_THREADS = 8
_WINDOWS_AHEAD = 2

OnBadRow = Literal["fail", "skip"]


@dataclass(frozen=True)
class EncodedRows:
    """What ``encode_rows`` returns.

    Attributes:
        kept: (k,) positions in the input of the rows that were encoded, ascending.
        features: (k, dim) float32, finite, in the order of ``kept``.
        tokens: (k,) int32 token counts before truncation; None where there are no tokens.
        skipped: id -> reason of each row that was left out.
    """

    kept: np.ndarray
    features: np.ndarray
    tokens: np.ndarray | None
    skipped: dict[str, str]


def encode_rows(
    extractor: Extractor,
    inputs: Sequence[Any],
    ids: Sequence[str],
    *,
    on_bad_row: OnBadRow = "fail",
    progress: Callable[[int], None] | None = None,
) -> EncodedRows:
    """Encode rows, whatever their order and number.

    Args:
        extractor: the backbone.
        inputs: n raw rows of its modality.
        ids: n names, used in messages and in ``skipped``.
        on_bad_row: "fail" stops at a row that cannot be encoded, "skip" leaves it out.
        progress: called with the number of rows done since the last call.

    Raises:
        InputError: a bad row under "fail", or features that are NaN or infinite.
        MachineError: out of memory.

    Example:
        >>> from extractors import load_extractor
        >>> rows = encode_rows(load_extractor("toy:text-4"), ["b", 7, "a"], ["x", "y", "z"],
        ...                    on_bad_row="skip")
        >>> rows.kept.tolist(), rows.features.shape, rows.skipped
        ([0, 2], (2, 4), {'y': 'text expected, got int (7)'})
    """
    n = len(inputs)
    step = extractor.batch_size
    features = np.empty((n, 0), dtype=np.float32)
    tokens = np.zeros(n, dtype=np.int32) if extractor.modality == "text" else None
    skipped: dict[int, str] = {}

    for start, window in _prepared_windows(extractor, inputs):
        rows: list[int] = []
        prepared: list[Any] = []
        for row, item in enumerate(window, start):
            if not isinstance(item, BadRow):
                rows.append(row)
                prepared.append(item)
            elif on_bad_row == "fail":
                raise InputError(_bad_row(ids[row], str(item))) from item
            else:
                skipped[row] = str(item)
        order = np.arange(len(rows))
        if tokens is not None and rows:
            with plain_memory_errors(step):
                counts = extractor.token_counts(prepared)
            assert counts is not None
            tokens[rows] = counts
            read = counts if extractor.max_length is None else counts.clip(max=extractor.max_length)
            # Longest first: if memory does not suffice, that shows at once.
            order = np.argsort(-read, kind="stable")
        for first in range(0, len(order), step):
            batch = order[first : first + step]
            with plain_memory_errors(len(batch)):
                block = extractor.encode([prepared[i] for i in batch])
            if features.shape[1] == 0:
                features = np.empty((n, block.shape[1]), dtype=np.float32)
            features[[rows[i] for i in batch]] = block
            for i in batch[~np.isfinite(block).all(axis=1)]:
                row, reason = rows[int(i)], f"{extractor.name} gives NaN or infinite features"
                if on_bad_row == "fail":
                    raise InputError(_bad_row(ids[row], reason))
                skipped[row] = reason
            if progress is not None:
                progress(len(batch))
        if progress is not None and len(rows) < len(window):
            progress(len(window) - len(rows))

    kept = np.array([row for row in range(n) if row not in skipped], dtype=np.intp)
    if features.shape[1] == 0 and n:
        features = np.empty((n, extractor.dim), dtype=np.float32)
    return EncodedRows(
        kept,
        features if len(kept) == n else features[kept],
        None if tokens is None else tokens[kept],
        {ids[row]: skipped[row] for row in sorted(skipped)},
    )


def _prepared_windows(
    extractor: Extractor, inputs: Sequence[Any]
) -> Iterator[tuple[int, list[Any]]]:
    """(first position, prepared rows or ``BadRow``) of stretches that are encoded together.

    All texts are one stretch, to be sorted by length. Images come batch by batch; while one batch
    is encoded the next is decoded, since Pillow and torch both work outside Python's lock.
    """

    def prepare(item: Any) -> Any:
        try:
            return extractor.prepare(item)
        except BadRow as error:
            return error

    if extractor.modality != "image" or not len(inputs):
        yield 0, [prepare(item) for item in inputs]
        return
    step = extractor.batch_size
    assert extractor.dim  # the backbone is loaded here, once, and not by every thread
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _DECODE_THREADS)) as pool:
        ahead: deque[tuple[int, list[Future[Any]]]] = deque()
        try:
            for start in range(0, len(inputs), step):
                stretch = inputs[start : start + step]
                ahead.append((start, [pool.submit(prepare, item) for item in stretch]))
                if len(ahead) > _WINDOWS_AHEAD:
                    first, futures = ahead.popleft()
                    yield first, [future.result() for future in futures]
            for first, futures in ahead:
                yield first, [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _bad_row(name: str, reason: str) -> str:
    return (
        f"row '{name}' cannot be encoded: {reason}; repair it, or leave such rows out with "
        "--on-bad-row skip"
    )


@contextmanager
def plain_memory_errors(rows: int) -> Iterator[None]:
    """Turn the several ways of running out of memory into one ``MachineError``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        signs = ("out of memory", "can't allocate memory", "not enough memory")
        if isinstance(error, MemoryError) or any(sign in text for sign in signs):
            raise MachineError(
                f"out of memory while encoding {rows} rows at once: close other programs, or use "
                "a smaller backbone"
            ) from error
        raise

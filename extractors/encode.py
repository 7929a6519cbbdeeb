"""Rows in memory -> features in memory: sort by length, encode in batches, restore the order.

A batch is padded to its longest text, so batches of similar length waste little. Images all have
one size and are decoded batch by batch, so that only one batch of pixels is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from extractors.base import Extractor
from extractors.errors import BadRow, InputError, MachineError

OnBadRow = Literal["fail", "skip"]


@dataclass(frozen=True)
class EncodedRows:
    """What ``encode_rows`` returns.

    Attributes:
        kept: (k,) positions in the input of the rows that were encoded, ascending.
        features: (k, dim) float32, finite, in the order of ``kept``.
        tokens: (k,) int32 token counts before truncation; None for images.
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

    # Texts are small, so all of them are looked at first; pixels are not.
    window = max(n, 1) if extractor.modality == "text" else step
    for start in range(0, n, window):
        rows: list[int] = []
        prepared: list[Any] = []
        for row in range(start, min(start + window, n)):
            try:
                prepared.append(extractor.prepare(inputs[row]))
                rows.append(row)
            except BadRow as error:
                if on_bad_row == "fail":
                    raise InputError(_bad_row(ids[row], str(error))) from error
                skipped[row] = str(error)
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
        if progress is not None and (left_out := min(window, n - start) - len(rows)):
            progress(left_out)

    kept = np.array([row for row in range(n) if row not in skipped], dtype=np.intp)
    if features.shape[1] == 0 and n:
        features = np.empty((n, extractor.dim), dtype=np.float32)
    return EncodedRows(
        kept,
        features if len(kept) == n else features[kept],
        None if tokens is None else tokens[kept],
        {ids[row]: skipped[row] for row in sorted(skipped)},
    )


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

"""Rows in memory -> features in memory: sort by length, encode in batches, restore the order.

A batch is padded to its longest text, so batches of similar length waste little. Images all have
one size and are decoded batch by batch, so that only a few batches of pixels are in memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from extractors.base import Extractor, Parallel, Tokenizing
from extractors.errors import BadRow, InputError, MachineError
from extractors.tokens import batches_of_tokens

_DECODE_THREADS = 8
_IMAGES_TOGETHER = 8
_STRETCHES_AHEAD = 2
_PASSES_AHEAD = 2  # for each thread
_ROWS_ALONE = 3

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


@dataclass(frozen=True)
class Chunk:
    """Rows that are encoded together, and become one shard.

    Attributes:
        split: where they belong.
        ids: n names.
        inputs: n raw rows.
        labels: (n,) class indices.
    """

    split: str
    ids: Sequence[str]
    inputs: Sequence[Any]
    labels: np.ndarray


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
        inputs: n raw rows of its modality; a ``BadRow`` in place of one says why there is none.
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
    chunk = Chunk("", ids, inputs, np.zeros(len(ids), np.int64))
    one = encode_chunks(extractor, [chunk], on_bad_row=on_bad_row, progress=progress)
    return next(iter(one))[1]


def encode_chunks(
    extractor: Extractor,
    chunks: Iterable[Chunk],
    *,
    on_bad_row: OnBadRow = "fail",
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Chunk, EncodedRows]]:
    """Encode one chunk after the other; the texts of the next are tokenised meanwhile.

    Args:
        extractor: the backbone.
        chunks: taken one ahead, and in the thread of the caller. What it raises is raised when the
            chunks before are encoded.
        on_bad_row: as in ``encode_rows``.
        progress: as in ``encode_rows``.

    Raises:
        InputError: as ``encode_rows``.
        MachineError: as ``encode_rows``.
    """
    if on_bad_row not in get_args(OnBadRow):
        raise InputError(f"--on-bad-row is fail or skip, not {on_bad_row!r}")
    with ExitStack() as stack:
        ahead = stack.enter_context(_pool(1))
        passes: _Passes | None = None
        for chunk, ready in _one_ahead(chunks, partial(_tokenized, ahead, extractor)):
            if passes is None:
                passes = stack.enter_context(_Passes.of(extractor, len(chunk.ids)))
            yield chunk, _encode(extractor, chunk, ready, passes, on_bad_row, progress)


def _one_ahead(
    chunks: Iterable[Chunk], begin: Callable[[Chunk], Future[_Rows] | None]
) -> Iterator[tuple[Chunk, Future[_Rows] | None]]:
    """Each chunk with what `begin` made of it, which it does while the chunk before is used."""
    source = iter(chunks)
    waiting: tuple[Chunk, Future[_Rows] | None] | None = None
    while True:
        late: Exception | None = None
        found: tuple[Chunk, Future[_Rows] | None] | None = None
        try:
            chunk = next(source, None)
            found = None if chunk is None else (chunk, begin(chunk))
        except Exception as error:
            late = error
        if waiting is not None:
            yield waiting
        if late is not None:
            raise late
        if found is None:
            return
        waiting = found


class _Rows(NamedTuple):
    """Rows of a chunk, checked and ready for the forward pass."""

    first: int  # position in the chunk
    items: list[Any]  # prepared, or ``BadRow``
    tokens: np.ndarray | None  # (n,) int32 before truncation; 0 for bad rows


def _tokenized(
    ahead: ThreadPoolExecutor, extractor: Extractor, chunk: Chunk
) -> Future[_Rows] | None:
    """The rows of a chunk of texts, in the making; images are decoded when their turn comes."""
    if extractor.modality == "image":
        return None
    return ahead.submit(_read_texts, extractor, chunk.inputs)


def _read_texts(extractor: Extractor, inputs: Sequence[Any]) -> _Rows:
    items = [_prepare(extractor, item) for item in inputs]
    if extractor.modality != "text":
        return _Rows(0, items, None)
    good = [i for i, item in enumerate(items) if not isinstance(item, BadRow)]
    tokens = np.zeros(len(items), np.int32)
    if good:
        prepared = [items[i] for i in good]
        with plain_memory_errors(len(good)):
            if isinstance(extractor, Tokenizing):
                prepared, tokens[good] = extractor.tokenize(prepared)
            else:
                counts = extractor.token_counts(prepared)
                assert counts is not None
                tokens[good] = counts
        for i, item in zip(good, prepared, strict=True):
            items[i] = item
    return _Rows(0, items, tokens)


def _prepare(extractor: Extractor, item: Any) -> Any:
    if isinstance(item, BadRow):
        return item
    try:
        return extractor.prepare(item)
    except BadRow as error:
        return error


def _encode(
    extractor: Extractor,
    chunk: Chunk,
    ready: Future[_Rows] | None,
    passes: _Passes,
    on_bad_row: OnBadRow,
    progress: Callable[[int], None] | None,
) -> EncodedRows:
    n = len(chunk.ids)
    features = np.empty((n, 0), dtype=np.float32)
    tokens: np.ndarray | None = None
    skipped: dict[int, str] = {}

    def take(batch: list[int], block: np.ndarray) -> None:
        nonlocal features
        if features.shape[1] == 0:
            features = np.empty((n, block.shape[1]), dtype=np.float32)
        features[batch] = block
        for k in np.flatnonzero(~np.isfinite(block).all(axis=1)):
            reason = f"{extractor.name} gives NaN or infinite features"
            if on_bad_row == "fail":
                raise InputError(_bad_row(chunk.ids[batch[k]], reason))
            skipped[batch[k]] = reason
        if progress is not None:
            progress(len(batch))

    for stretch in [ready.result()] if ready else _decoded(extractor, chunk.inputs):
        tokens = stretch.tokens
        good = []
        for i, item in enumerate(stretch.items):
            row = stretch.first + i
            if not isinstance(item, BadRow):
                good.append(i)
            elif on_bad_row == "fail":
                raise InputError(_bad_row(chunk.ids[row], str(item))) from item
            else:
                skipped[row] = str(item)
        if progress is not None and len(good) < len(stretch.items):
            progress(len(stretch.items) - len(good))
        for batch in _batches(extractor, np.array(good, np.intp), tokens):
            rows = [stretch.first + int(i) for i in batch]
            for done in passes.submit(rows, [stretch.items[i] for i in batch]):
                take(*done)
    for done in passes.finish():
        take(*done)

    kept = np.array([row for row in range(n) if row not in skipped], dtype=np.intp)
    if features.shape[1] == 0:
        features = np.empty((n, extractor.dim), dtype=np.float32)
    if tokens is None and extractor.modality == "text":
        tokens = np.zeros(n, np.int32)
    return EncodedRows(
        kept,
        features if len(kept) == n else features[kept],
        None if tokens is None else tokens[kept],
        {chunk.ids[row]: skipped[row] for row in sorted(skipped)},
    )


def _batches(
    extractor: Extractor, rows: np.ndarray, tokens: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Rows of one forward pass each; texts longest first, so that lacking memory shows at once."""
    if tokens is not None and len(rows):
        limit = extractor.max_length
        read = tokens[rows] if limit is None else tokens[rows].clip(max=limit)
        if isinstance(extractor, Tokenizing):
            for batch in batches_of_tokens(read, extractor.batch_tokens):
                yield rows[batch]
            return
        rows = rows[np.argsort(-read, kind="stable")]
    step = extractor.batch_size
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


class _Passes:
    """Forward passes, one after the other or several beside each other."""

    def __init__(self, extractor: Extractor, pool: ThreadPoolExecutor | None, most: int) -> None:
        self._extractor, self._pool, self._most = extractor, pool, most
        self._running: deque[tuple[list[int], Future[np.ndarray]]] = deque()

    @classmethod
    @contextmanager
    def of(cls, extractor: Extractor, rows: int) -> Iterator[_Passes]:
        """As many as the device has room for; one for a row or two, which need all cores."""
        if not isinstance(extractor, Parallel) or rows < _ROWS_ALONE:
            yield cls(extractor, None, 0)
            return
        assert extractor.dim  # loaded once, and not by every thread
        with extractor.side_by_side() as threads:
            if threads == 1:
                yield cls(extractor, None, 0)
                return
            with _pool(threads) as pool:
                yield cls(extractor, pool, _PASSES_AHEAD * threads)

    def submit(self, rows: list[int], items: list[Any]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Begin a pass; whatever must be finished before is handed out."""
        if self._pool is None:
            yield rows, self._encode(items)
            return
        self._running.append((rows, self._pool.submit(self._encode, items)))
        while len(self._running) > self._most:
            done, future = self._running.popleft()
            yield done, future.result()

    def finish(self) -> Iterator[tuple[list[int], np.ndarray]]:
        """Wait for all that was begun."""
        while self._running:
            done, future = self._running.popleft()
            yield done, future.result()

    def _encode(self, items: list[Any]) -> np.ndarray:
        with plain_memory_errors(len(items)):
            return self._extractor.encode(items)


def _decoded(extractor: Extractor, inputs: Sequence[Any]) -> Iterator[_Rows]:
    """Images, batch by batch, so that few are in memory as pixels.

    While one batch is encoded the next are decoded: Pillow and torch work outside Python's lock.
    """
    step = max(extractor.batch_size, _IMAGES_TOGETHER)
    assert extractor.dim  # the backbone is loaded here, once, and not by every thread
    # A lone image too: prepared in the caller's thread, it took 2.4 times as long on two busy cores
    # (208 ms for 88), whose OpenMP threads spin between products where they have no second team.
    with _pool(min(os.cpu_count() or 1, _DECODE_THREADS)) as pool:
        ahead: deque[tuple[int, list[Future[Any]]]] = deque()
        for start in range(0, len(inputs), step):
            stretch = inputs[start : start + step]
            ahead.append((start, [pool.submit(_prepare, extractor, item) for item in stretch]))
            if len(ahead) > _STRETCHES_AHEAD:
                first, futures = ahead.popleft()
                yield _Rows(first, [future.result() for future in futures], None)
        for first, futures in ahead:
            yield _Rows(first, [future.result() for future in futures], None)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; whoever leaves waits for what they are at, not for what they have not begun."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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

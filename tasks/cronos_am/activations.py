"""Rows as they are below the unfrozen blocks: computed once, kept on disk, read for every step.

One file of float32 numbers for all rows of a split, one after the other (a text has as many vectors
as tokens), and a JSON file that says what they are. A folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extractors.blocks import CutBackbone
from extractors.errors import MachineError
from extractors.storage import TEMPORARY_PREFIX, make_folder, plain_disk_errors
from tasks.records import to_json

VALUES_NAME, ABOUT_NAME = "values.f32", "activations.json"
_BATCH_TOKENS, _BATCH_IMAGES = 2048, 16


class CachedRows:
    """Rows of one split below the cut.

    Attributes:
        tokens: what ``CutBackbone.read`` gave for texts; n times None for images.
        labels: (n,).
    """

    def __init__(
        self,
        values: np.ndarray,
        offsets: np.ndarray,
        shape: tuple[int, ...],
        tokens: Sequence[Any],
        labels: np.ndarray,
    ) -> None:
        self._values, self._offsets, self._shape = values, offsets, shape
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.labels)

    def length(self, i: int) -> int:
        """Vectors of row i; 1 of an image."""
        return int(self._offsets[i + 1] - self._offsets[i])

    def activations(self, i: int) -> np.ndarray:
        """Of row i, as ``CutBackbone.lower`` gave them."""
        found = self._values[self._offsets[i] : self._offsets[i + 1]]
        return np.array(found if self.tokens[i] is not None else found.reshape(self._shape))

    def batches(self, order: np.ndarray, size: int) -> list[np.ndarray]:
        """Rows in batches of ``size``, those of similar length together; ``order`` is kept else.

        Args:
            order: row numbers, for example shuffled ones.
            size: rows in a batch.
        """
        lengths = np.diff(self._offsets)[order]
        found = []
        # Sorted within stretches of many batches: a batch has little padding, and stays random.
        for start in range(0, len(order), 50 * size):
            stretch = order[start : start + 50 * size]
            stretch = stretch[np.argsort(-lengths[start : start + 50 * size], kind="stable")]
            found += [stretch[i : i + size] for i in range(0, len(stretch), size)]
        return found


def cached_rows(
    cut: CutBackbone,
    inputs: Sequence[Any],
    labels: np.ndarray,
    folder: Path | None,
    *,
    progress: Callable[[int], None] | None = None,
) -> CachedRows:
    """The rows below the cut, from the folder where they are there.

    Args:
        cut: the backbone.
        inputs: n raw rows.
        labels: (n,).
        folder: where they are kept, named by everything they depend on; None: in memory.
        progress: called with the rows done since the last call.

    Raises:
        MachineError: the disk refuses, or has no room.
    """
    text = cut.extractor.modality == "text"
    n = len(inputs)
    tokens: list[Any] = cut.read(inputs) if text else [None] * n
    lengths = np.array([cut.size(row) for row in tokens], np.int64) if text else np.ones(n, int)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    one = cut.lower(cut.read(inputs[:1]))[0]
    width = one.shape[-1] if text else one.size
    about = {"rows": n, "vectors": int(offsets[-1]), "width": width}
    if folder is not None and _is_there(folder, about):
        if progress is not None:
            progress(n)
        values = np.memmap(folder / VALUES_NAME, np.float32, "r", shape=(about["vectors"], width))
        return CachedRows(values, offsets, one.shape, tokens, labels)
    values = _fill(cut, inputs, tokens, lengths, offsets, width, folder, about, progress)
    return CachedRows(values, offsets, one.shape, tokens, labels)


def activation_folder(cache_dir: Path, cut: CutBackbone, ids: Sequence[str], data: Any) -> Path:
    """Where the activations of these rows are kept, named by what they depend on.

    Args:
        cache_dir: of all stores.
        cut: the backbone; its blocks below the cut are as published.
        ids: names of the rows.
        data: the fingerprint of the data set.
    """
    key = [cut.extractor.fingerprint(), len(cut.top), data, list(ids)]
    digest = hashlib.sha256(to_json(key).encode("utf-8", "surrogatepass")).hexdigest()
    return cache_dir / "activations" / digest[:24]


def _is_there(folder: Path, about: dict[str, int]) -> bool:
    try:
        return json.loads((folder / ABOUT_NAME).read_text("utf-8")) == about and (
            (folder / VALUES_NAME).stat().st_size == 4 * about["vectors"] * about["width"]
        )
    except (OSError, ValueError):
        return False


def _fill(
    cut: CutBackbone,
    inputs: Sequence[Any],
    tokens: Sequence[Any],
    lengths: np.ndarray,
    offsets: np.ndarray,
    width: int,
    folder: Path | None,
    about: dict[str, int],
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    shape = (about["vectors"], width)
    if folder is None:
        values = np.empty(shape, np.float32)
        _compute(cut, inputs, tokens, lengths, offsets, values, progress)
        return values
    make_folder(folder.parent)
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{folder.name}")
    size = 4 * shape[0] * width
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise MachineError(
            f"the activations below the unfrozen blocks take {size / 2**30:.1f} GiB and "
            f"{folder.parent} has {free / 2**30:.1f} GiB left: choose another --cache-dir, or use "
            "fewer rows (--train-rows)"
        )
    try:
        with plain_disk_errors(folder.parent):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            values = np.memmap(temporary / VALUES_NAME, np.float32, "w+", shape=shape)
        _compute(cut, inputs, tokens, lengths, offsets, values, progress)
        with plain_disk_errors(folder.parent):
            values.flush()
            (temporary / ABOUT_NAME).write_text(json.dumps(about), "utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return np.memmap(folder / VALUES_NAME, np.float32, "r", shape=shape)


def _compute(
    cut: CutBackbone,
    inputs: Sequence[Any],
    tokens: Sequence[Any],
    lengths: np.ndarray,
    offsets: np.ndarray,
    values: np.ndarray,
    progress: Callable[[int], None] | None,
) -> None:
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        step = max(1, _BATCH_TOKENS // int(lengths[order[start]]))
        batch = order[start : start + (step if tokens[0] is not None else _BATCH_IMAGES)]
        if tokens[0] is not None:
            rows = [tokens[i] for i in batch]
        else:
            rows = cut.read([inputs[i] for i in batch])
        for i, found in zip(batch, cut.lower(rows), strict=True):
            values[offsets[i] : offsets[i + 1]] = found.reshape(-1, values.shape[1])
        start += len(batch)
        if progress is not None:
            progress(len(batch))

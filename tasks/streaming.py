"""Fits on features that memory does not hold: they stay in the store, and are read as needed."""

from __future__ import annotations

from extractors.store import StoredRows
from tasks.extraction import Extracted
from tasks.memory import free_memory
from tasks.splits import take_subset

# Copies of the features that a fit in memory makes: as read, in the order of their content,
# standardised, rotated, in blocks; and those of the linear probe.
_COPIES = 6
_FLOAT32, _FLOAT64 = 4, 8


def is_larger_than_memory(found: Extracted) -> bool:
    """Whether a fit that reads all features at once would take more memory than there is."""
    free = free_memory()
    rows = sum(len(split.ids) for split in found.dataset.splits.values())
    return free is not None and free < _COPIES * _FLOAT32 * rows * found.extraction.dim


def in_memory(
    train: StoredRows, validation: StoredRows, n_classes: int, seed: int
) -> tuple[StoredRows, StoredRows, tuple[str, ...]]:
    """As many rows as there is memory for a linear probe on them, stratified.

    Args:
        train: rows whose features are read as they are needed.
        validation: the same.
        n_classes: C.
        seed: which rows.

    Returns:
        train and validation rows with arrays of features, and what is to be said of it.
    """
    # Rows as read, standardised, laid out anew; targets, scores, probabilities and a gradient.
    row = _FLOAT64 * (2 * train.features.shape[1] + 4 * n_classes)
    n = len(train.ids)
    wanted = row * (n + len(validation.ids))
    free = free_memory()
    share = 1.0 if free is None else min(1.0, free / 2 / wanted)
    few = [
        _some(rows, max(n_classes, int(share * len(rows.ids))), seed)
        for rows in (train, validation)
    ]
    if share == 1:
        return few[0], few[1], ()
    note = (
        f"the linear probe was fitted on {len(few[0].labels)} of {n} train rows, as many as memory "
        "holds; the head on all of them"
    )
    return few[0], few[1], (note,)


def _some(rows: StoredRows, size: int, seed: int) -> StoredRows:
    if size >= len(rows.ids):
        return rows._replace(features=rows.features[:])
    chosen = take_subset(rows.labels, rows.ids, size, seed)
    return rows._replace(
        ids=[rows.ids[i] for i in chosen.tolist()],
        labels=rows.labels[chosen],
        features=rows.features[chosen],
    )

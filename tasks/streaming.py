"""Fits on features that memory does not hold: they stay in the store, and are read as needed."""

from __future__ import annotations

from tasks.extraction import Extracted
from tasks.memory import free_memory

# Copies of the features that a fit in memory makes: as read, in the order of their content,
# standardised, rotated, in blocks; and those of the linear probe.
_COPIES = 6
_FLOAT32 = 4


def is_larger_than_memory(found: Extracted) -> bool:
    """Whether a fit that reads all features at once would take more memory than there is."""
    free = free_memory()
    rows = sum(len(split.ids) for split in found.dataset.splits.values())
    return free is not None and free < _COPIES * _FLOAT32 * rows * found.extraction.dim

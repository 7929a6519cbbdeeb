"""Rows as a source gives them, before labels are numbered and splits are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from extractors.base import Modality

WHOLE = "all"  # the name of the one split of a source that is not divided


@dataclass(frozen=True)
class RawSplit:
    """One split: n row ids, n inputs, n label values, and `where(i)`, row i in words for messages.

    A label is a class name (str), a class number (int) or None where it is missing.
    """

    ids: Sequence[str]
    inputs: Sequence[Any]
    labels: Sequence[Any]
    where: Callable[[int], str]

    def take(self, rows: Sequence[int]) -> RawSplit:
        """The rows of these numbers, in this order."""
        return RawSplit(
            [self.ids[i] for i in rows],
            [self.inputs[i] for i in rows],
            [self.labels[i] for i in rows],
            lambda i: self.where(rows[i]),
        )


@dataclass(frozen=True)
class RawData:
    """What a source holds: splits named train, validation, test (or only WHOLE).

    class_names gives names to integer labels, and fixes the order of the classes, where known.
    """

    name: str
    modality: Modality
    splits: Mapping[str, RawSplit]
    class_names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()


def is_empty(value: Any) -> bool:
    """Whether an input is a text without a letter, which can be encoded and says nothing.

    >>> is_empty(" "), is_empty("a"), is_empty(None)
    (True, False, False)
    """
    return isinstance(value, str) and not value.strip()

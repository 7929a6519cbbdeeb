"""Divide numbered rows into train, validation and test, and take fewer of them where asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extractors.errors import InputError
from tasks.data.raw import WHOLE
from tasks.data.splits import TEST_FRACTION, VALIDATION_FRACTION, hold_out, take_subset


@dataclass(frozen=True)
class NumberedSplit:
    """Rows with numbered labels (n,) and a content digest each.

    targets: (n, C) of 0 and 1 where rows have several labels; `labels` then only stratify.
    """

    ids: Sequence[str]
    inputs: Sequence[Any]
    labels: np.ndarray
    digests: Sequence[bytes]
    targets: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> NumberedSplit:
        """The rows of these numbers, in this order."""
        numbers: list[int] = rows.tolist()
        return NumberedSplit(
            [self.ids[i] for i in numbers],
            [self.inputs[i] for i in numbers],
            self.labels[rows],
            [self.digests[i] for i in numbers],
            None if self.targets is None else self.targets[rows],
        )


def divide(rows: Mapping[str, NumberedSplit]) -> dict[str, NumberedSplit]:
    """Exactly train, validation and test, holding out what is not given."""
    rows = dict(rows)
    train = rows.pop(WHOLE, None) or rows.pop("train")
    if "test" not in rows:
        train, rows["test"] = _halve(train, TEST_FRACTION)
    if "validation" not in rows:
        train, rows["validation"] = _halve(train, VALIDATION_FRACTION)
    return {"train": train, "validation": rows["validation"], "test": rows["test"]}


def _halve(split: NumberedSplit, fraction: float) -> tuple[NumberedSplit, NumberedSplit]:
    held = hold_out(split.labels, split.digests, fraction)
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))


def shrink(
    rows: Mapping[str, NumberedSplit],
    classes: Sequence[str],
    train_rows: int | None,
    test_rows: int | None,
    seed: int,
    carved: bool,
) -> dict[str, NumberedSplit]:
    """Apply --train-rows and --test-rows to rows that are already divided."""
    rows = dict(rows)
    if train_rows is not None:
        learning = ["train", "validation"] if carved else ["train"]
        available = sum(len(rows[name].ids) for name in learning)
        _check_size("--train-rows", train_rows, available)
        taken = {"train": train_rows}
        if carved:
            share = train_rows * len(rows["validation"].ids) / available
            taken["validation"] = max(1, int(share + 0.5))
            taken["train"] = train_rows - taken["validation"]
        if taken["train"] < len(classes):
            raise InputError(
                f"--train-rows {train_rows} leaves {taken['train']} rows to train on, "
                f"fewer than the {len(classes)} classes"
            )
        for name, size in taken.items():
            rows[name] = _subset(rows[name], size, seed)
    if test_rows is not None:
        _check_size("--test-rows", test_rows, len(rows["test"].ids))
        rows["test"] = _subset(rows["test"], test_rows, seed)
    return rows


def _check_size(option: str, wanted: int, available: int) -> None:
    if wanted > available:
        raise InputError(f"{option} {wanted} is more than the {available} rows there are")


def _subset(split: NumberedSplit, size: int, seed: int) -> NumberedSplit:
    return split.take(take_subset(split.labels, split.ids, size, seed))

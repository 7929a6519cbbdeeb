"""Labelled rows for a head that is there already: its classes, not those of the rows, count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from extractors.base import Modality
from extractors.errors import InputError
from tasks.data.classes import choose_classes
from tasks.data.columns import ColumnChoice, settle
from tasks.data.files import find_split_files, our_names
from tasks.data.labels import encode_labels
from tasks.data.load import check_rows
from tasks.data.raw import WHOLE
from tasks.data.registry import TASKS, resolve_data_root
from tasks.data.sources import read_source
from tasks.data.tables import SUFFIXES, Broken, open_table

SPLITS = ("test", WHOLE, "validation", "train")  # the first that is there is taken


@dataclass(frozen=True)
class Labelled:
    """Rows of one split with their labels.

    Attributes:
        name: of the data.
        split: which one; "all" of data that are not divided.
        ids: n names.
        inputs: n raw rows.
        labels: n class names.
        slices: n values of the column that was asked for, or None.
        skipped: (row id, reason) of rows that cannot be used.
        left_out: classes whose rows were not taken.
    """

    name: str
    split: str
    ids: Sequence[str]
    inputs: Sequence[Any]
    labels: Sequence[str]
    slices: Sequence[Any] | None
    skipped: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]


def read_labelled(
    data: str,
    modality: Modality,
    *,
    data_root: Path | None,
    choice: ColumnChoice,
    split: str | None = None,
    by: str | None = None,
    classes: Sequence[str] = (),
    left_out: Sequence[str] = (),
    on_bad_row: str = "fail",
) -> Labelled:
    """Reads one split of any data set.

    Args:
        data: a task's name, a file, a folder, or ``hub:owner/name``.
        modality: of the head.
        data_root: where named tasks are looked for.
        choice: columns that were named.
        split: train, validation or test; None takes test where there is one, otherwise all rows.
        by: a column of the table, for slices.
        classes: take rows of these classes alone (`classes.py`); none: of all but left_out.
        left_out: classes whose rows were left out when the head was fitted.
        on_bad_row: what a row that cannot be used does, "fail" or "skip".

    Raises:
        InputError: rows of another modality, no such split or column, a row without a label.
    """
    raw = read_source(data, resolve_data_root(data_root), choice)
    if raw.modality != modality:
        raise InputError(
            f"{raw.name} holds {raw.modality} rows, this head was fitted on {modality}"
        )
    found = next((name for name in SPLITS if name in raw.splits), None) if split is None else split
    if found is None or found not in raw.splits:
        there = ", ".join("all" if name == WHOLE else name for name in raw.splits)
        raise InputError(f"{raw.name} has no split '{split}'; it has {there}")
    rows = raw.splits[found]
    slices = None if by is None else _column(data, found, by, len(rows.ids))
    checked, skipped = check_rows(replace(raw, splits={found: rows}), on_bad_row)
    names, numbers = encode_labels(checked, raw.class_names)
    labels = numbers[found]
    unusable = {row for row, _ in skipped}
    good = [i for i, row in enumerate(rows.ids) if row not in unusable]
    chosen = choose_classes(names, classes, left_out)
    keep = np.flatnonzero(np.isin(labels, chosen))
    good, labels = [good[i] for i in keep], labels[keep]
    kept = rows.take(good)
    return Labelled(
        name=raw.name,
        split=found,
        ids=kept.ids,
        inputs=kept.inputs,
        labels=[names[i] for i in labels],
        slices=None if slices is None else [slices[i] for i in good],
        skipped=skipped,
        left_out=tuple(name for c, name in enumerate(names) if c not in chosen),
    )


def class_numbers(rows: Labelled, classes: Sequence[str]) -> np.ndarray:
    """Labels as indices (n,) into the head's classes.

    Raises:
        InputError: a label that is none of them.
    """
    index = {name: i for i, name in enumerate(classes)}
    for row, name in zip(rows.ids, rows.labels, strict=True):
        if name not in index:
            shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            raise InputError(
                f"{rows.name}, row '{row}': the label '{name}' is none of the head's classes "
                f"({shown}); --classes takes rows of some classes alone, `convex-heads refit` adds "
                "a class to the head"
            )
    return np.array([index[name] for name in rows.labels], np.int64)


def _column(data: str, split: str, name: str, n: int) -> list[Any]:
    path = Path(data)
    if data in TASKS or not path.exists():
        raise InputError(f"--by {name}: {data} is no file; --by takes a column of a table")
    tables: list[Path] = []
    if path.is_file():
        tables = [path]
    else:
        files = find_split_files(path)
        tables = [
            file
            for found, name in our_names(files).items()
            if name == split
            for file in files[found]
        ]
        if not files:
            tables = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES]
    values: list[Any] = []
    for file in tables:
        table = open_table(file)
        column = table.read(settle(table.names, name, (), "--by", file.name))
        values += [None if isinstance(value, Broken) else value for value in column]
    if len(values) != n:
        raise InputError(f"--by {name}: {data} holds no table with a value for every row")
    return values

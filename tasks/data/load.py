"""Named tasks and a person's own data, as one Dataset with the splits train, validation, test."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from extractors.base import Modality, Rows
from extractors.errors import InputError, worded
from tasks.data.classes import classes_in_words, classes_slug, only_classes
from tasks.data.columns import ColumnChoice
from tasks.data.divide import NumberedSplit, divide, shrink
from tasks.data.labels import (
    encode_label_sets,
    encode_labels,
    gives_several,
    is_missing,
    rarest_label,
)
from tasks.data.raw import WHOLE, RawData, RawSplit, is_empty
from tasks.data.registry import resolve_data_root
from tasks.data.sources import read_source
from tasks.data.tables import Broken

_LOADER_VERSION = 1  # part of the fingerprint: raise it when the same files give other rows


@dataclass(frozen=True)
class Dataset:
    """Raw rows, divided and numbered.

    Attributes:
        name: task name, or the name of the file or folder, or `owner/name[:config]`.
        modality: "text", "image" or "features".
        classes: the C class names; a row's label indexes them, and every class has rows in train.
        splits: Rows under exactly the keys train, validation, test.
        fingerprint: content hash of all rows, labels and splits, before any --train-rows.
        notes: sentences the user should read.
        skipped: (row id, reason) of rows that were dropped.
        digests: sha256 of each row's raw content, by split and in the order of its rows.
        targets: for rows with several labels, (n, C) of 0 and 1 by split, in the order of its rows;
            a row's label in `splits` is then its rarest one, which stratifies. None: one label a
            row.
        left_out_classes: those of the rows that were not asked for.
    """

    name: str
    modality: Modality
    classes: tuple[str, ...]
    splits: dict[str, Rows]
    fingerprint: dict[str, Any]
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    digests: Mapping[str, Sequence[bytes]] = field(default_factory=dict, repr=False)
    targets: Mapping[str, np.ndarray] | None = field(default=None, repr=False)
    left_out_classes: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """For names of folders: the name, and the classes where they are not all."""
        name = re.sub(r"[^\w.-]+", "-", self.name)
        return f"{name}-{classes_slug(self.classes)}" if self.left_out_classes else name


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    data_root: str | os.PathLike[str] | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    features_column: str | None = None,
    classes: Sequence[str] = (),
    train_rows: int | None = None,
    test_rows: int | None = None,
    seed: int = 0,
    on_bad_row: Literal["fail", "skip"] = "fail",
    several_labels: bool = False,
) -> Dataset:
    """Load a named task, a file, a folder, or `hub:owner/name[:config]`.

    Args:
        name_or_path: of a task, a file or a folder.
        data_root: searched for named tasks before the Hub; default: CONVEX_HEADS_DATA.
        text_column: default: found by its usual names, and so are the others.
        image_column: as text_column.
        label_column: as text_column.
        features_column: of vectors that were computed elsewhere.
        classes: take rows of these classes alone, see `tasks.data.classes`; none: of all.
        train_rows: take so many rows, stratified and seeded, after splitting; where the validation
            split was taken from train, this counts both and keeps their ratio.
        test_rows: as train_rows.
        seed: which rows those are (nothing else here is random).
        on_bad_row: "skip" drops rows without a label, or whose input is missing or an empty text,
            and rows of a CSV file with too many or too few cells, and lists them.
        several_labels: take rows whose label is a list of labels; otherwise such data is refused.

    Splits that the data gives are respected. Without a test split, 20% of every class is held out
    by a hash of the row's content; without a validation split, 15% of train the same way.

    Raises InputError for anything the caller can put right, and MachineError where the data would
    have to come over a network that is not there.

    >>> digits = load_task("digits", train_rows=100, test_rows=50)
    >>> {split: len(rows) for split, rows in digits.splits.items()}
    {'train': 85, 'validation': 15, 'test': 50}
    """
    choice = ColumnChoice(text_column, image_column, label_column, features_column)
    for option, size in (("--train-rows", train_rows), ("--test-rows", test_rows)):
        if size is not None and size < 1:
            raise InputError(f"{option} {size}: ask for at least one row")
    raw = read_source(str(name_or_path), resolve_data_root(data_root), choice)
    splits, skipped = check_rows(raw, on_bad_row)
    n_rows = sum(len(split.ids) for split in splits.values())
    splits, left_out = only_classes(splits, raw.class_names, classes)
    sets = None
    if gives_several(splits):
        if not several_labels:
            raise InputError(
                f"the labels of {raw.name} are lists: `convex-heads compare` takes rows with"
                " several labels, everything else one label a row"
            )
        names, sets = encode_label_sets(splits, raw.class_names)
        labels = rarest_label(sets)
    else:
        names, labels = encode_labels(splits, raw.class_names)
    digests = {name: content_digests(split) for name, split in splits.items()}
    rows = {
        name: NumberedSplit(
            split.ids,
            split.inputs,
            labels[name],
            digests[name],
            None if sets is None else sets[name],
        )
        for name, split in splits.items()
    }
    carved = "validation" not in rows
    n_kept = sum(len(split.ids) for split in splits.values())
    _check_classes(names, n_kept)
    rows = divide(rows)
    _check_unseen(rows, names)
    notes = raw.notes + _notes(raw, skipped) + _empty_texts(splits) + _alike(names)
    if classes:
        notes += (f"rows of {classes_in_words(names, left_out)} alone: {n_kept:,} of {n_rows:,}",)
    fingerprint = _fingerprint(rows, names)
    rows = shrink(rows, names, train_rows, test_rows, seed, carved)
    return Dataset(
        name=raw.name,
        modality=raw.modality,
        classes=names,
        splits={name: Rows(list(s.ids), list(s.inputs), s.labels) for name, s in rows.items()},
        fingerprint=fingerprint,
        notes=notes,
        skipped=skipped,
        digests={name: s.digests for name, s in rows.items()},
        targets=None if sets is None else {name: _sets(s) for name, s in rows.items()},
        left_out_classes=left_out,
    )


def _sets(split: NumberedSplit) -> np.ndarray:
    assert split.targets is not None
    return split.targets


def check_rows(
    raw: RawData, on_bad_row: str
) -> tuple[dict[str, RawSplit], tuple[tuple[str, str], ...]]:
    """Refuse or drop rows that have no label, or no input of the right kind.

    Raises InputError with the first such row and how many there are.
    """
    fault, n_empty = None, 0
    skipped: list[tuple[str, str]] = []
    checked = {}
    for name, split in raw.splits.items():
        called = raw.name if name == WHOLE else f"the {name} split of {raw.name}"
        if not len(split.ids):
            raise InputError(f"{called} has no rows")
        good = []
        for i, (value, label) in enumerate(zip(split.inputs, split.labels, strict=True)):
            reason = _fault(value, label, raw.modality)
            if reason is None and is_empty(value):
                n_empty += 1
                reason = "the text is empty" if on_bad_row == "skip" else None
            if reason is None:
                good.append(i)
            else:
                fault = fault or f"{split.where(i)}: {reason}"
                skipped.append((split.ids[i], reason))
        if not good and on_bad_row == "skip":
            raise InputError(
                f"{called} has no rows left after {len(split.ids)} bad ones were dropped"
            )
        checked[name] = split if len(good) == len(split.ids) else split.take(good)
    if fault is not None and on_bad_row == "fail":
        more = f"; rows that cannot be used: {len(skipped):,}" if len(skipped) > 1 else ""
        if n_empty:  # they could be, but are left out with the others
            more += f"; texts that are empty: {n_empty:,}"
        raise InputError(f"{fault}{more} (--on-bad-row skip leaves such rows out)")
    return checked, tuple(skipped)


def _fault(value: Any, label: Any, modality: Modality) -> str | None:
    if isinstance(value, Broken):
        return value.reason
    if isinstance(label, Broken):
        return label.reason
    if is_missing(label):
        return "the label is missing"
    if modality == "text":
        return None if isinstance(value, str) else f"the text is {_kind(value)}, not a string"
    if modality == "features":
        if not isinstance(value, np.ndarray):
            return f"the features are {_kind(value)}, not a vector of numbers"
        if value.ndim != 1:
            return f"the features have shape {value.shape}, not that of a vector"
        return None
    if isinstance(value, Path):
        return None if value.is_file() else f"there is no image file {value}"
    if isinstance(value, bytes | np.ndarray):
        return None if len(value) else "the image is empty"
    return f"the image is {_kind(value)}, not an encoded image or the path of one"


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def content_digests(split: RawSplit) -> list[bytes]:
    """sha256 of each row's content: what the splits and the fingerprint depend on."""
    digests = []
    for value in split.inputs:
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
        elif isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value).tobytes()
        elif isinstance(value, Path):
            try:
                value = value.read_bytes()
            except OSError as error:
                raise InputError(f"cannot read {value}: {error.strerror}") from error
        digests.append(hashlib.sha256(value).digest())
    return digests


def _check_classes(classes: Sequence[str], n_rows: int) -> None:
    if len(classes) < 2:
        raise InputError(
            f"all rows are of one class, '{classes[0]}'; a classifier needs at least two"
        )
    if len(classes) > max(2, n_rows // 2):
        raise InputError(
            f"{len(classes)} classes for {n_rows} rows: is the label column the right one? "
            "Name it with --label-column"
        )


def _check_unseen(rows: Mapping[str, NumberedSplit], classes: Sequence[str]) -> None:
    learnt = _labels_of(rows["train"])
    for name in ("validation", "test"):
        new = sorted(_labels_of(rows[name]) - learnt)
        if new:
            names = ", ".join(f"'{classes[label]}'" for label in new[:5])
            raise InputError(
                f"{name} has the class {names} that train does not have; "
                "a head cannot predict what it never saw: add rows to train or drop them"
            )


def _labels_of(split: NumberedSplit) -> set[int]:
    if split.targets is not None:
        return set(np.flatnonzero(split.targets.any(axis=0)).tolist())
    return set(split.labels.tolist())


def _notes(raw: RawData, skipped: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    if not skipped:
        return ()
    listed = "; ".join(f"{_place(raw, row)} ({reason})" for row, reason in skipped[:3])
    more = f"; and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
    return (f"rows left out because they cannot be used: {len(skipped):,}; {listed}{more}",)


def _place(raw: RawData, row: str) -> str:
    split = next(split for split in raw.splits.values() if row in split.ids)
    return split.where(list(split.ids).index(row))


def _alike(classes: Sequence[str]) -> tuple[str, ...]:
    """Names that a person would take for one."""
    spelt: dict[str, list[str]] = {}
    for name in classes:
        plain = unicodedata.normalize("NFKC", " ".join(name.split())).casefold()
        spelt.setdefault(plain, []).append(name)
    alike = [", ".join(map(_visibly, names)) for names in spelt.values() if len(names) > 1]
    if not alike:
        return ()
    told = "; ".join(alike[:3]) + (f"; and {len(alike) - 3} more" if len(alike) > 3 else "")
    return (f"classes that differ only in case, spaces or codes of letters are different: {told}",)


def _visibly(name: str) -> str:
    """A name as it looks, with its codes where another one looks like it."""
    return repr(name) if unicodedata.is_normalized("NFKC", name) else ascii(name)


def _empty_texts(splits: Mapping[str, RawSplit]) -> tuple[str, ...]:
    """They can be encoded, and teach nothing."""
    places = [(s, i) for s in splits.values() for i, v in enumerate(s.inputs) if is_empty(v)]
    if not places:
        return ()
    split, i = places[0]
    return (
        worded(
            f"texts that are empty: {len(places)}, the first: {split.where(i)} "
            "(--on-bad-row skip leaves them out)"
        ),
    )


def _fingerprint(rows: Mapping[str, NumberedSplit], classes: Sequence[str]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, split in rows.items():
        for i, (row_id, content) in enumerate(zip(split.ids, split.digests, strict=True)):
            own = [int(split.labels[i])]
            if split.targets is not None:
                own = np.flatnonzero(split.targets[i]).tolist()
            told = "\x1f".join(classes[label] for label in own)
            digest.update(f"{name}\0{row_id}\0{told}\0".encode())
            digest.update(content)
    return {
        "loader": _LOADER_VERSION,
        "sha256": digest.hexdigest(),
        "rows": {name: len(split.ids) for name, split in rows.items()},
    }

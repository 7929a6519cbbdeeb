"""Named tasks and a person's own data, as one Dataset with the splits train, validation, test."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from extractors.base import Modality, Rows
from extractors.errors import InputError
from tasks.columns import ColumnChoice
from tasks.files import find_split_files, read_path
from tasks.hub import parse_hub_name, read_hub
from tasks.labels import encode_labels, is_missing, read_class_names
from tasks.raw import WHOLE, RawData, RawSplit
from tasks.registry import (
    TASKS,
    TaskSpec,
    read_digits,
    read_fashion_mnist,
    read_wordnet6,
    resolve_data_root,
)
from tasks.splits import TEST_FRACTION, VALIDATION_FRACTION, hold_out, take_subset

_LOADER_VERSION = 1  # part of the fingerprint: raise it when the same files give other rows


@dataclass(frozen=True)
class Dataset:
    """Raw rows, divided and numbered.

    name: task name, or the name of the file or folder. modality: "text" or "image".
    classes: the C class names; a row's label indexes them, and every class has rows in train.
    splits: Rows under exactly the keys train, validation, test.
    fingerprint: content hash of all rows, labels and splits, before any --train-rows.
    notes: sentences the user should read. skipped: (row id, reason) of rows that were dropped.
    """

    name: str
    modality: Modality
    classes: tuple[str, ...]
    splits: dict[str, Rows]
    fingerprint: dict[str, Any]
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    data_root: str | os.PathLike[str] | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_rows: int | None = None,
    test_rows: int | None = None,
    seed: int = 0,
    on_bad_row: Literal["fail", "skip"] = "fail",
) -> Dataset:
    """Load a named task, a file, a folder, or `hub:owner/name[:config]`.

    data_root: searched for named tasks before the Hub; default: CONVEX_HEADS_DATA.
    text_column, image_column, label_column: default: found by their usual names.
    train_rows, test_rows: take so many rows, stratified and seeded, after splitting; where the
        validation split was taken from train, train_rows counts both and keeps their ratio.
    seed: which rows those are (nothing else here is random).
    on_bad_row: "skip" drops rows without a label, or whose input is missing, and lists them.

    Splits that the data gives are respected. Without a test split, 20% of every class is held out
    by a hash of the row's content; without a validation split, 15% of train the same way.

    Raises InputError for anything the caller can put right, and MachineError where the data would
    have to come over a network that is not there.

    >>> digits = load_task("digits", train_rows=100, test_rows=50)
    >>> {split: len(rows) for split, rows in digits.splits.items()}
    {'train': 85, 'validation': 15, 'test': 50}
    """
    choice = ColumnChoice(text_column, image_column, label_column)
    for option, size in (("--train-rows", train_rows), ("--test-rows", test_rows)):
        if size is not None and size < 1:
            raise InputError(f"{option} {size}: ask for at least one row")
    raw = _read(str(name_or_path), resolve_data_root(data_root), choice)
    splits, skipped = _check_rows(raw.splits, raw.modality, on_bad_row)
    classes, labels = encode_labels(splits, raw.class_names)
    digests = {name: _digests(split) for name, split in splits.items()}
    rows = {
        name: _Split(split.ids, split.inputs, labels[name], digests[name])
        for name, split in splits.items()
    }
    carved = "validation" not in rows
    _check_classes(classes, sum(len(split.ids) for split in splits.values()))
    rows = _divide(rows)
    _check_unseen(rows, classes)
    notes = raw.notes + _notes(rows, skipped)
    fingerprint = _fingerprint(rows, classes)
    rows = _shrink(rows, classes, train_rows, test_rows, seed, carved)
    return Dataset(
        name=raw.name,
        modality=raw.modality,
        classes=classes,
        splits={name: Rows(list(s.ids), list(s.inputs), s.labels) for name, s in rows.items()},
        fingerprint=fingerprint,
        notes=notes,
        skipped=skipped,
    )


@dataclass(frozen=True)
class _Split:
    """Rows with numbered labels (n,) and a content digest each."""

    ids: Sequence[str]
    inputs: Sequence[Any]
    labels: np.ndarray
    digests: Sequence[bytes]

    def take(self, rows: np.ndarray) -> _Split:
        return _Split(
            [self.ids[i] for i in rows],
            [self.inputs[i] for i in rows],
            self.labels[rows],
            [self.digests[i] for i in rows],
        )


def _read(data: str, root: Path | None, choice: ColumnChoice) -> RawData:
    if data in TASKS:
        return read_task(TASKS[data], root, choice)
    if data.startswith("hub:"):
        repository, config = parse_hub_name(data)
        instead = "download it elsewhere and give the folder instead"
        return read_hub(repository.rpartition("/")[2], repository, config, choice, instead)
    path = Path(data).expanduser()
    looks_like_path = path.exists() or path.suffix or len(path.parts) > 1
    if looks_like_path:
        return read_path(path, choice)
    raise InputError(unknown_task(data))


def unknown_task(name: str) -> str:
    """The sentence for a name that is neither a task nor a path.

    >>> unknown_task("imbd").partition("?")[0]
    "there is no task or path 'imbd'; did you mean 'imdb'"
    """
    near = difflib.get_close_matches(name.lower(), TASKS, n=2)
    hint = f" did you mean {' or '.join(repr(task) for task in near)}?" if near else ""
    return (
        f"there is no task or path '{name}';{hint} tasks are {', '.join(TASKS)}; "
        "or give a file, a folder or hub:owner/name"
    )


def read_task(spec: TaskSpec, root: Path | None, choice: ColumnChoice) -> RawData:
    """Read a named task from the installation, from `root/NAME`, or from the Hub."""
    if spec.name == "wordnet6":
        return read_wordnet6()
    if spec.name == "digits":
        return read_digits()
    folder = find_task_folder(spec, root)
    if folder is not None:
        if spec.name == "fashion_mnist" and not find_split_files(folder):
            return read_fashion_mnist(folder, read_class_names(folder))
        return replace(read_path(folder, choice), name=spec.name)
    assert spec.hub is not None
    searched = f"{root} has no {spec.name}/train.parquet" if root else "no --data-root was given"
    instead = (
        f"{searched}: put train.parquet and test.parquet into ROOT/{spec.name} "
        "and give --data-root ROOT"
    )
    wanted = ColumnChoice(
        choice.text or spec.hub.columns.text,
        choice.image or spec.hub.columns.image,
        choice.label or spec.hub.columns.label,
    )
    raw = read_hub(spec.name, spec.hub.repository, None, wanted, instead)
    return replace(raw, class_names=spec.classes or raw.class_names)


def find_task_folder(spec: TaskSpec, root: Path | None) -> Path | None:
    """`root/NAME` where it holds the task's files, else None."""
    folder = root / spec.name if root is not None else None
    if folder is None or not folder.is_dir():
        return None
    idx = spec.name == "fashion_mnist" and any(folder.glob("*-ubyte.gz"))
    return folder if idx or find_split_files(folder) else None


def _check_rows(
    splits: Mapping[str, RawSplit], modality: Modality, on_bad_row: str
) -> tuple[dict[str, RawSplit], tuple[tuple[str, str], ...]]:
    """Refuse or drop rows that have no label, or no input of the right kind."""
    skipped: list[tuple[str, str]] = []
    checked = {}
    for name, split in splits.items():
        if not len(split.ids):
            raise InputError(f"the {_called(name)} has no rows")
        good = []
        for i, (value, label) in enumerate(zip(split.inputs, split.labels, strict=True)):
            reason = _fault(value, label, modality)
            if reason is None:
                good.append(i)
            elif on_bad_row == "fail":
                raise InputError(f"{split.where(i)}: {reason} (--on-bad-row skip drops such rows)")
            else:
                skipped.append((split.ids[i], reason))
        if not good:
            raise InputError(
                f"the {_called(name)} has no rows left after {len(split.ids)} bad ones were dropped"
            )
        checked[name] = split if len(good) == len(split.ids) else _keep(split, good)
    return checked, tuple(skipped)


def _keep(split: RawSplit, rows: Sequence[int]) -> RawSplit:
    return RawSplit(
        [split.ids[i] for i in rows],
        [split.inputs[i] for i in rows],
        [split.labels[i] for i in rows],
        lambda i: split.where(rows[i]),
    )


def _fault(value: Any, label: Any, modality: Modality) -> str | None:
    if is_missing(label):
        return "the label is missing"
    if modality == "text":
        return None if isinstance(value, str) else f"the text is {_kind(value)}, not a string"
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


def _digests(split: RawSplit) -> list[bytes]:
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


def _divide(rows: Mapping[str, _Split]) -> dict[str, _Split]:
    """Exactly train, validation and test, holding out what is not given."""
    rows = dict(rows)
    train = rows.pop(WHOLE, None) or rows.pop("train")
    if "test" not in rows:
        train, rows["test"] = _halve(train, TEST_FRACTION)
    if "validation" not in rows:
        train, rows["validation"] = _halve(train, VALIDATION_FRACTION)
    return {"train": train, "validation": rows["validation"], "test": rows["test"]}


def _halve(split: _Split, fraction: float) -> tuple[_Split, _Split]:
    held = hold_out(split.labels, split.digests, fraction)
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))


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


def _check_unseen(rows: Mapping[str, _Split], classes: Sequence[str]) -> None:
    learnt = set(rows["train"].labels.tolist())
    for name in ("validation", "test"):
        new = sorted(set(rows[name].labels.tolist()) - learnt)
        if new:
            names = ", ".join(f"'{classes[label]}'" for label in new[:5])
            raise InputError(
                f"{name} has the class {names} that train does not have; "
                "a head cannot predict what it never saw: add rows to train or drop them"
            )


def _notes(rows: Mapping[str, _Split], skipped: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    notes = []
    if skipped:
        listed = ", ".join(f"{row} ({reason})" for row, reason in skipped[:3])
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        notes.append(f"{len(skipped)} bad rows dropped: {listed}{more}")
    seen = set(rows["train"].digests) | set(rows["validation"].digests)
    repeated = sum(digest in seen for digest in rows["test"].digests)
    if repeated:
        notes.append(
            f"{repeated} of the {len(rows['test'].ids)} test inputs are also in train or validation"
        )
    return tuple(notes)


def _fingerprint(rows: Mapping[str, _Split], classes: Sequence[str]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, split in rows.items():
        for row_id, label, content in zip(split.ids, split.labels, split.digests, strict=True):
            digest.update(f"{name}\0{row_id}\0{classes[label]}\0".encode())
            digest.update(content)
    return {
        "loader": _LOADER_VERSION,
        "sha256": digest.hexdigest(),
        "rows": {name: len(split.ids) for name, split in rows.items()},
    }


def _shrink(
    rows: Mapping[str, _Split],
    classes: Sequence[str],
    train_rows: int | None,
    test_rows: int | None,
    seed: int,
    carved: bool,
) -> dict[str, _Split]:
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


def _subset(split: _Split, size: int, seed: int) -> _Split:
    return split.take(take_subset(split.labels, split.ids, size, seed))


def _called(split: str) -> str:
    return "data" if split == WHOLE else f"{split} split"

"""From the label values a file holds to class numbers 0..C-1 and their names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extractors.errors import InputError
from tasks.data.raw import RawSplit
from tasks.data.tables import Broken

_LISTS = (list, tuple, np.ndarray)
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)(\.0*)?\Z")  # "007" is a code, another one than "7"


def read_class_names(folder: Path) -> list[str] | None:
    """The names in `folder/classes.json`, a list by label index; None when there is no such file.

    Raises InputError when the file is not a list of different strings.
    """
    path = folder / "classes.json"
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f'{path} must be a JSON list of class names, such as ["neg", "pos"]')
    if len(set(names)) != len(names):
        raise InputError(f"{path} gives the same name to two classes")
    return names


def is_missing(label: Any) -> bool:
    """True for a label that is not there: None, NaN, or an empty or 'nan' cell of a text file.

    >>> [is_missing(value) for value in (None, float("nan"), "", "NaN", 0, "none")]
    [True, True, True, True, False, False]
    """
    if isinstance(label, str):
        return label.strip().lower() in ("", "nan")
    if isinstance(label, float):
        return math.isnan(label)
    return label is None or isinstance(label, Broken)


def row_weights(class_weight: str | None, labels: np.ndarray) -> np.ndarray:
    """(n,) of mean 1: n / (C n_c) for a row of class c where "balanced", else all alike.

    >>> row_weights("balanced", np.array([0, 0, 0, 1])).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
    """
    from sklearn.utils import compute_sample_weight

    return compute_sample_weight(None if class_weight == "none" else class_weight, labels)


def encode_labels(
    splits: Mapping[str, RawSplit], class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Number the classes of all splits together.

    No label may be missing any more. Integers (also those a text file spells out) index
    `class_names` where they are given, and otherwise name themselves, in numerical order; names
    are ordered as in `class_names`, otherwise alphabetically. Classes without any row are left out.

    Returns the class names (C of them) and per split an int64 array of numbers in 0..C-1. Raises
    InputError for a decimal label, a number beyond `class_names`, or a name that is not in it.

    >>> split = RawSplit(["a", "b"], ["x", "y"], ["1", "0"], where=str)
    >>> encode_labels({"train": split}, ["neg", "pos"])
    (('neg', 'pos'), {'train': array([1, 0])})
    """
    values = [label for split in splits.values() for label in split.labels]
    key, sort_key = _keys(values, class_names)
    keys = {name: _apply(key, split) for name, split in splits.items()}
    present = sorted({k for column in keys.values() for k in column}, key=sort_key)
    index = {k: i for i, k in enumerate(present)}
    encoded = {
        name: np.array([index[k] for k in column], dtype=np.int64) for name, column in keys.items()
    }
    return tuple(str(k) for k in present), encoded


def gives_several(splits: Mapping[str, RawSplit]) -> bool:
    """Whether a row's label is a list of labels: True as soon as one is."""
    return any(isinstance(v, _LISTS) for split in splits.values() for v in split.labels)


def encode_label_sets(
    splits: Mapping[str, RawSplit], class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The same for rows with any number of labels each, none too.

    Returns the names (C of them) and per split a matrix (n, C) of 0 and 1. Raises InputError as
    `encode_labels` does, and for a row whose label is no list, or that names a label twice.

    >>> split = RawSplit(["a", "b"], ["x", "y"], [["red", "round"], ["round"]], where=str)
    >>> names, sets = encode_label_sets({"train": split}, None)
    >>> names, sets["train"].tolist()
    (('red', 'round'), [[1, 1], [0, 1]])
    """
    single: dict[str, RawSplit] = {}
    rows: dict[str, list[int]] = {}
    for name, split in splits.items():
        flat, of = [], []
        for i, labels in enumerate(split.labels):
            if not isinstance(labels, _LISTS):
                raise InputError(
                    f"{split.where(i)}: the label is '{labels}' where other rows have a list of"
                    " labels; give every row a list"
                )
            labels = np.asarray(labels).tolist() if isinstance(labels, np.ndarray) else labels
            if len(set(map(str, labels))) < len(labels):
                raise InputError(
                    f"{split.where(i)} names a label twice: {list(labels)}; give the names or"
                    " numbers of its labels, not zeros and ones"
                )
            for label in labels:
                if is_missing(label):
                    raise InputError(f"{split.where(i)}: one of its labels is missing")
            flat += labels
            of += [i] * len(labels)
        rows[name] = of
        single[name] = RawSplit(
            ["" for _ in flat], flat, flat, lambda k, of=of, split=split: split.where(of[k])
        )
    names, numbers = encode_labels(single, class_names)
    sets = {}
    for name, split in splits.items():
        sets[name] = np.zeros((len(split.labels), len(names)), np.uint8)
        sets[name][rows[name], numbers[name]] = 1
    return names, sets


def rarest_label(sets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each row the label of it that fewest rows have, by which splits are stratified.

    Rows without a label count to the most frequent one.

    >>> rarest_label({"train": np.array([[1, 1], [0, 1], [0, 0]])})
    {'train': array([0, 1, 1])}
    """
    frequency = sum(s.sum(axis=0, dtype=np.int64) for s in sets.values())
    cost = {name: np.where(s > 0, frequency, np.iinfo(np.int64).max) for name, s in sets.items()}
    most = int(np.argmax(frequency))
    return {
        name: np.where(s.any(axis=1), cost[name].argmin(axis=1), most).astype(np.int64)
        for name, s in sets.items()
    }


def _keys(
    values: Sequence[Any], class_names: Sequence[str] | None
) -> tuple[Callable[[Any], Any], Callable[[Any], Any] | None]:
    """What identifies the class of a label, and what orders the classes."""
    integers = _all_integers(values)
    if class_names is None:
        return (_number if integers else _name), None
    position = {name: i for i, name in enumerate(class_names)}
    # A number that is stored as one is an index, also where names are spelt with digits.
    by_name = not integers or all(isinstance(v, str) and v in position for v in values)

    def name_of(label: Any) -> str:
        if by_name and _name(label) in position:
            return _name(label)
        if by_name:
            raise InputError(f"label '{label}' is not one of the {len(position)} class names")
        if 0 <= _number(label) < len(class_names):
            return class_names[_number(label)]
        raise InputError(
            f"label {label} has no name; there are names for 0 to {len(class_names) - 1}"
        )

    return name_of, position.__getitem__


def _apply(key: Callable[[Any], Any], split: RawSplit) -> list[Any]:
    keys = []
    for i, label in enumerate(split.labels):
        try:
            keys.append(key(label))
        except InputError as error:
            raise InputError(f"{split.where(i)}: {error}") from None
    return keys


def _all_integers(values: Sequence[Any]) -> bool:
    return all(
        (isinstance(v, int) and not isinstance(v, bool))
        or (isinstance(v, float) and v.is_integer())
        or (isinstance(v, str) and _INTEGER.match(v.strip()) is not None)
        for v in values
    )


def _number(label: Any) -> int:
    # "1.0" is what a spreadsheet or a data frame with a gap in the column writes for 1.
    return int(label.split(".")[0]) if isinstance(label, str) else int(label)


def _name(label: Any) -> str:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, str | int):
        return str(label)
    kind = (
        f"the decimal number {label}" if isinstance(label, float) else f"a {type(label).__name__}"
    )
    raise InputError(f"the label is {kind}; a label is a class name or a class number")

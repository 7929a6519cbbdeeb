"""Rows of the classes that a person named, such as one pair of the ten of CIFAR-10."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from extractors.errors import InputError
from tasks.labels import encode_labels, gives_several, is_missing
from tasks.raw import RawSplit

_SHOWN = 12


def only_classes(
    splits: Mapping[str, RawSplit], class_names: Sequence[str] | None, wanted: Sequence[str]
) -> dict[str, RawSplit]:
    """The rows of these classes, and those without a label, which are somebody else's to judge.

    Args:
        splits: rows with label values; those of a class keep their order.
        class_names: as `tasks.labels.encode_labels` takes them.
        wanted: names of classes, each by itself or several with commas; none: all rows are taken.

    Raises:
        InputError: a class that is not there, labels that are lists, a split without such a row.

    >>> split = RawSplit(["a", "b", "c"], ["x", "y", "z"], [0, 1, 2], where=str)
    >>> only_classes({"train": split}, ["cat", "dog", "ship"], ["cat,ship"])["train"].ids
    ['a', 'c']
    """
    if not wanted:
        return dict(splits)
    if gives_several(splits):
        raise InputError("--classes is for rows of one label, and these have lists of them")
    named = {name: [not is_missing(label) for label in s.labels] for name, s in splits.items()}
    labelled = {name: s.take(np.flatnonzero(named[name]).tolist()) for name, s in splits.items()}
    names, numbers = encode_labels(labelled, class_names)
    chosen = pick_classes(names, wanted)
    kept = {}
    for name, split in splits.items():
        keep = ~np.array(named[name], bool)
        keep[~keep] = np.isin(numbers[name], chosen)
        kept[name] = split.take(np.flatnonzero(keep).tolist())
        if not len(kept[name].ids):
            raise InputError(
                f"{name} has no row of the classes {_listed([names[c] for c in chosen])}"
            )
    return kept


def pick_classes(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Numbers of the classes that were named, ascending.

    What is itself a name is taken whole, also with a comma in it; anything else is several names
    with commas between them. Capitals and spaces around a name do not count where only one class
    can be meant.

    Raises:
        InputError: no such class, or the same one twice.

    >>> pick_classes(["tench, Tinca tinca", "cock", "hen"], ["HEN,cock", "tench, Tinca tinca"])
    [0, 1, 2]
    """
    whole = {name for name in wanted if name in names}
    parts = [[name] if name in whole else name.split(",") for name in wanted]
    found: list[int] = []
    for name in (part.strip() for each in parts for part in each):
        number = _number(names, name)
        if number in found:
            raise InputError(f"--classes names the class '{names[number]}' twice")
        found.append(number)
    return sorted(found)


def _number(names: Sequence[str], name: str) -> int:
    if name in names:
        return list(names).index(name)
    alike = [i for i, each in enumerate(names) if each.strip().lower() == name.lower()]
    if len(alike) == 1:
        return alike[0]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise InputError(f"--classes: there is no class '{name}'; there are {_listed(names)}{hint}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > _SHOWN else shown

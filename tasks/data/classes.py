"""Rows of the classes that a person named, such as one pair of the ten of CIFAR-10."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extractors.errors import InputError, worded
from tasks.data.labels import encode_labels, gives_several, is_missing
from tasks.data.raw import RawSplit

_SHOWN = 12
_LONGEST_SLUG = 40


def only_classes(
    splits: Mapping[str, RawSplit],
    class_names: Sequence[str] | None,
    wanted: Sequence[str],
    left_out: Sequence[str] = (),
) -> tuple[dict[str, RawSplit], tuple[str, ...]]:
    """The rows of some classes, and those without a label, which are somebody else's to judge.

    Args:
        splits: rows with label values; those of a class keep their order.
        class_names: as `tasks.data.labels.encode_labels` takes them.
        wanted: names of classes, each by itself or several with commas; none: all but left_out.
        left_out: names of classes as they are.

    Returns:
        The rows, and the names of the classes that were left out.

    Raises:
        InputError: a class that is not there, labels that are lists, a split without such a row.

    >>> split = RawSplit(["a", "b", "c"], ["x", "y", "z"], [0, 1, 2], where=str)
    >>> kept, others = only_classes({"train": split}, ["cat", "dog", "ship"], ["cat,ship"])
    >>> kept["train"].ids, others
    (['a', 'c'], ('dog',))
    """
    if not (wanted or left_out):
        return dict(splits), ()
    if gives_several(splits):
        if not wanted:
            return dict(splits), ()
        raise InputError("--classes is for rows of one label, and these have lists of them")
    named = {name: [not is_missing(label) for label in s.labels] for name, s in splits.items()}
    labelled = {name: s.take(np.flatnonzero(named[name]).tolist()) for name, s in splits.items()}
    names, numbers = encode_labels(labelled, class_names)
    chosen = choose_classes(names, wanted, left_out)
    kept = {}
    for name, split in splits.items():
        keep = ~np.array(named[name], bool)
        keep[~keep] = np.isin(numbers[name], chosen)
        kept[name] = split.take(np.flatnonzero(keep).tolist())
        if not len(kept[name].ids):
            raise InputError(
                f"{name} has no row of the classes {_listed([names[c] for c in chosen])}"
            )
    return kept, tuple(name for c, name in enumerate(names) if c not in chosen)


def choose_classes(
    names: Sequence[str], wanted: Sequence[str], left_out: Sequence[str]
) -> list[int]:
    """Numbers of the classes to take: those that are wanted, or all that were not left out.

    Raises:
        InputError: as `pick_classes`, or no class remains.

    >>> choose_classes(["cat", "dog", "ship"], [], ["dog"])
    [0, 2]
    """
    if wanted:
        return pick_classes(names, wanted)
    chosen = [c for c, name in enumerate(names) if name not in left_out]
    if not chosen:
        raise InputError(
            f"all rows are of classes that were left out when the head was fitted "
            f"({_listed(names)}); --classes takes rows of these all the same"
        )
    return chosen


def left_out_before(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes whose rows were left out when a head was fitted, from what its artefact says.

    >>> left_out_before({"record": {"left_out_classes": ["dog"]}}), left_out_before({})
    (('dog',), ())
    """
    record = facts.get("record")
    told = record.get("left_out_classes") if isinstance(record, Mapping) else None
    if not isinstance(told, list) or not all(isinstance(name, str) for name in told):
        return ()
    return tuple(told)


def left_out_note(classes: Sequence[str]) -> str:
    """Said where rows were left out that nobody named this time.

    >>> left_out_note(["dog", "ship"])
    "rows of 'dog', 'ship' are left out, as when the head was fitted; classes names others"
    """
    return worded(
        f"rows of {_listed(classes)} are left out, as when the head was fitted; "
        "--classes names others"
    )


def classes_in_words(names: Sequence[str], left_out: Sequence[str]) -> str:
    """The classes that were taken; of many the first.

    >>> classes_in_words(["cat", "dog"], ["ship"])
    'the classes cat, dog'
    >>> classes_in_words([f"c{i}" for i in range(30)], ["x"] * 47)
    '30 of 77 classes (c0, c1, c2, c3, c4, ...)'
    """
    if len(names) <= _SHOWN:
        return f"the classes {', '.join(names)}"
    return f"{len(names)} of {len(names) + len(left_out)} classes ({', '.join(names[:5])}, ...)"


def classes_slug(classes: Sequence[str]) -> str:
    """For names of folders: each selection of classes has its own.

    >>> classes_slug(["airplane", "automobile"]), classes_slug(["tench, Tinca tinca", "cock"])
    ('airplane+automobile', 'tench-Tinca-tinca+cock-32bd2423')
    """
    named = "+".join(classes)
    short = re.sub(r"[^A-Za-z0-9._+-]+", "-", named).strip("-.")[:_LONGEST_SLUG]
    if short == named and named.count("+") == len(classes) - 1:
        return short
    return f"{short}-{hashlib.sha256(chr(0).join(classes).encode()).hexdigest()[:8]}"


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

"""What the check for leaks found, in words: for the screen, the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_EXAMPLES = 2
_CHARACTERS = 60
_PAIRS = ("test_in_train", "test_in_validation", "validation_in_train", "within_train")


def leaks_in_words(leaks: Mapping[str, Any]) -> str:
    """One sentence about the object that ``LeakReport.as_record`` gives.

    >>> pairs = ("test_in_train", "test_in_validation", "validation_in_train", "within_train")
    >>> leaks = dict.fromkeys(pairs, {"exact": 0, "near": 0}) | {
    ...     "checked": {"train": 700, "validation": 100, "test": 200}, "similarity": 0.99,
    ...     "complete": True, "other_label": 0, "dropped": {"train": 0, "validation": 0}}
    >>> leaks_in_words(leaks)
    'no duplicates between the splits or within train'
    >>> leaks_in_words(leaks | {"test_in_train": {"exact": 3, "near": 1}})
    '4 of 200 test rows are in train too (3 exact, 1 near)'
    >>> leaks_in_words(leaks | {"within_train": {"exact": 1, "near": 0}})
    '1 of 700 train rows repeats an earlier one (1 exact)'
    """
    checked = leaks["checked"]
    n = {name: leaks[name]["exact"] + leaks[name]["near"] for name in _PAIRS}
    be = {name: "is" if n[name] == 1 else "are" for name in _PAIRS}
    repeat = "repeats" if n["within_train"] == 1 else "repeat"
    test = f"{checked['test']:,} test rows"
    validation = f"{checked['validation']:,} validation rows"
    what = {
        "test_in_train": f"of {test} {be['test_in_train']} in train too",
        "test_in_validation": f"of {test} {be['test_in_validation']} in validation too",
        "validation_in_train": f"of {validation} {be['validation_in_train']} in train too",
        "within_train": f"of {checked['train']:,} train rows {repeat} an earlier one",
    }
    parts = []
    for name, words in what.items():
        exact, near = leaks[name]["exact"], leaks[name]["near"]
        if n[name]:
            parts.append(f"{n[name]:,} {words} ({_kinds(exact, near)})")
    said = "; ".join(parts) or "no duplicates between the splits or within train"
    if leaks["other_label"]:
        have = "has another label than its twin"
        if leaks["other_label"] > 1:
            have = "have another label than their twins"
        said += f"; {leaks['other_label']:,} of these rows {have}"
    if leaks["similarity"] is None:
        said += (
            "; only exact ones were looked for, since the features of ordinary rows are as close "
            "to each other as near duplicates"
        )
    if not leaks["complete"]:
        said += "; with so many rows the search is by an index, which can miss some"
    left_out = {split: n for split, n in leaks["dropped"].items() if n}
    if left_out:
        dropped = " and ".join(f"{n:,} {split} rows" for split, n in left_out.items())
        if sum(left_out.values()) == 1:
            said += f"; {dropped.removesuffix('s')} was left out for it"
        else:
            said += f"; {dropped} were left out for it"
    return said


def _kinds(exact: int, near: int) -> str:
    return ", ".join(f"{n:,} {kind}" for n, kind in ((exact, "exact"), (near, "near")) if n)


def examples_in_words(
    leaks: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Two pairs of rows, those between test and train first.

    Args:
        leaks: the object that ``LeakReport.as_record`` gives.
        inputs: split -> id -> raw row; texts are shown, cut to a line. None shows ids alone.

    >>> examples_in_words({"examples": [{"row": "t/1", "split": "test", "twin": "r/9",
    ...     "twin_split": "train", "similarity": 0.9934, "same_label": False}]})
    ['t/1 (test) and r/9 (train): near, cosine 0.9934, another label']
    """
    said = []
    for pair in leaks["examples"][:_EXAMPLES]:
        ends = []
        for row, split in ((pair["row"], pair["split"]), (pair["twin"], pair["twin_split"])):
            raw = (inputs or {}).get(split, {}).get(row)
            shown = f" {_shortened(raw)}" if isinstance(raw, str) else ""
            ends.append(f"{row} ({split}){shown}")
        exact = pair["similarity"] == 1
        kind = "exact" if exact else f"near, cosine {pair['similarity']:.4f}"
        label = "" if pair["same_label"] else ", another label"
        said.append(f"{ends[0]} and {ends[1]}: {kind}{label}")
    return said


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return f"'{text}'" if len(text) <= _CHARACTERS else f"'{text[:_CHARACTERS]}...'"

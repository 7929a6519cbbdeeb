"""Which column holds the text or the image, and which the label."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from extractors.base import Modality
from extractors.errors import InputError

TEXT_COLUMNS = ("text", "sentence", "review")
IMAGE_COLUMNS = ("image",)
LABEL_COLUMNS = ("label", "labels", "class")


@dataclass(frozen=True)
class ColumnChoice:
    """The columns a person named; None means: find it.

    Raises InputError when both a text and an image column are named.
    """

    text: str | None = None
    image: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.image is not None:
            raise InputError(
                f"--text-column {self.text} and --image-column {self.image} exclude each other; "
                "a head is fitted on one kind of input"
            )


@dataclass(frozen=True)
class Columns:
    """The columns to read."""

    modality: Modality
    input: str
    label: str | None


def find_columns(
    names: Sequence[str], choice: ColumnChoice, source: str, *, labelled: bool = True
) -> Columns:
    """Settle the columns of `source` (a file's name, for messages) from its column `names`.

    A named column must exist. Otherwise the first of text, sentence, review, or image, and the
    first of label, labels, class is taken, whatever the case of its letters. `labelled=False`
    (new rows to predict) asks for no label column.

    >>> find_columns(["id", "Review", "label"], ColumnChoice(), "reviews.csv")
    Columns(modality='text', input='Review', label='label')
    """
    label = None
    if labelled:
        label = _settle(names, choice.label, LABEL_COLUMNS, "--label-column", source)
    if choice.image is not None:
        image = _settle(names, choice.image, IMAGE_COLUMNS, "--image-column", source)
        return Columns("image", image, label)
    if choice.text is not None:
        text = _settle(names, choice.text, TEXT_COLUMNS, "--text-column", source)
        return Columns("text", text, label)
    text = _first(names, TEXT_COLUMNS)
    image = _first(names, IMAGE_COLUMNS)
    if text is not None and image is not None:
        raise InputError(
            f"{source} has a column '{text}' and a column '{image}'; "
            f"say --text-column {text} or --image-column {image}"
        )
    if text is not None:
        return Columns("text", text, label)
    if image is not None:
        return Columns("image", image, label)
    raise InputError(
        f"{source} has no column {_or(TEXT_COLUMNS + IMAGE_COLUMNS)}; "
        f"name one with --text-column or --image-column; its columns are {_list(names)}"
    )


def _settle(
    names: Sequence[str], chosen: str | None, usual: Sequence[str], option: str, source: str
) -> str:
    if chosen is None:
        found = _first(names, usual)
        if found is None:
            raise InputError(
                f"{source} has no column {_or(usual)}; "
                f"name one with {option}; its columns are {_list(names)}"
            )
        chosen = found
    if chosen not in names:
        near = difflib.get_close_matches(chosen, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"{source} has no column '{chosen}'; its columns are {_list(names)}{hint}")
    if list(names).count(chosen) > 1:
        raise InputError(f"{source} has two columns called '{chosen}'; rename one of them")
    return chosen


def _first(names: Sequence[str], usual: Sequence[str]) -> str | None:
    for wanted in usual:
        if wanted in names:
            return wanted
        for name in names:
            if name.lower() == wanted:
                return name
    return None


def _or(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:-1]) + " or " + quoted[-1] if len(quoted) > 1 else quoted[0]


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 12 else shown

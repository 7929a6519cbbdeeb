"""Which column holds the text, the image or the features, and which the label."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from extractors.base import Modality
from extractors.errors import InputError
from extractors.pairs import PAIR_SEPARATOR

TEXT_COLUMNS = ("text", "sentence", "review")
IMAGE_COLUMNS = ("image",)
FEATURES_COLUMNS = ("features", "embedding", "embeddings", "vector", "x")
LABEL_COLUMNS = ("label", "labels", "class")
PAIR_MARK = "+"  # between the names of two columns of texts
_ARRAY_LABEL_COLUMNS = (*LABEL_COLUMNS, "y")  # beside features, the habit of arrays


@dataclass(frozen=True)
class ColumnChoice:
    """The columns a person named; None means: find it.

    before: those of the rows that a saved head was fitted on; where nothing is named they are taken
    if they are there. Raises InputError when columns of two kinds of input are named.
    """

    text: str | None = None
    image: str | None = None
    label: str | None = None
    features: str | None = None
    before: ColumnChoice | None = None

    def __post_init__(self) -> None:
        kinds = {"text": self.text, "image": self.image, "features": self.features}
        named = [f"--{kind}-column {name}" for kind, name in kinds.items() if name is not None]
        if len(named) > 1:
            raise InputError(
                f"{' and '.join(named)} exclude each other; a head is fitted on one kind of input"
            )

    def among(self, names: Sequence[str]) -> ColumnChoice:
        """The same with what `before` says of a file with these columns.

        >>> ColumnChoice(before=ColumnChoice(text="Comment", label="Mood")).among(["Comment"]).text
        'Comment'
        """
        if self.before is None:
            return self

        plain = {_plain(name) for name in names}

        def there(column: str | None) -> str | None:
            if column is None or _plain(column) in plain:
                return column
            pair = column.split(PAIR_MARK)
            return column if all(_plain(part) in plain for part in pair) else None

        label = self.label or there(self.before.label)
        if self.text or self.image or self.features:
            return ColumnChoice(self.text, self.image, label, self.features)
        kept = (there(self.before.text), there(self.before.image), there(self.before.features))
        return ColumnChoice(kept[0], kept[1], label, kept[2])


def columns_before(facts: Mapping[str, Any]) -> ColumnChoice | None:
    """The columns that were named when a head was fitted, from what its artefact says.

    >>> columns_before({"columns": {"text": "Comment", "label": 3}})
    ColumnChoice(text='Comment', image=None, label=None, features=None, before=None)
    """
    told = facts.get("columns")
    if not isinstance(told, Mapping):
        return None
    named = [told.get(kind) for kind in ("text", "image", "label", "features")]
    text, image, label, features = (name if isinstance(name, str) else None for name in named)
    inputs = [name for name in (text, image, features) if name is not None]
    return None if len(inputs) > 1 else ColumnChoice(text, image, label, features)


@dataclass(frozen=True)
class Columns:
    """The columns to read; `pair` where two columns of texts make one input."""

    modality: Modality
    input: str
    label: str | None
    pair: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.label in self.inputs:
            raise InputError(
                f"the column '{self.label}' is both what is read and the label: name two columns, "
                f"with --{self.modality}-column and --label-column"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that inputs are made of."""
        return self.pair or (self.input,)

    def read_input(self, read: Callable[[str], Sequence[Any]]) -> list[Any]:
        """Values of the input, by a function that gives those of a column; pairs as one text.

        >>> pair = Columns("text", "q+a", "label", ("q", "a"))
        >>> pair.read_input({"q": ["Who?", None], "a": ["Me.", "You."]}.__getitem__)
        ['Who? [SEP] Me.', None]
        """
        if self.pair is None:
            return list(read(self.input))
        first, second = (read(name) for name in self.pair)
        return [
            f"{a}{PAIR_SEPARATOR}{b}" if isinstance(a, str) and isinstance(b, str) else None
            for a, b in zip(first, second, strict=True)
        ]


def find_columns(
    names: Sequence[str], choice: ColumnChoice, source: str, *, labelled: bool = True
) -> Columns:
    """Settle the columns of `source` (a file's name, for messages) from its column `names`.

    A named column must exist; `question+answer` names two whose texts are put together. Otherwise
    the first of text, sentence, review, or image, and the first of label, labels, class is taken.
    Where there is neither text nor image, it is the first of features, embedding, embeddings,
    vector, x, with a label that may also be y. Case and spaces around a name do not count.
    `labelled=False` (new rows to predict) asks for no label column. A refusal names what was looked
    for, the columns of `choice.before` first.

    >>> find_columns(["id", "Review", "label"], ColumnChoice(), "reviews.csv")
    Columns(modality='text', input='Review', label='label', pair=None)
    """
    before = choice.before or ColumnChoice()
    remembered = tuple(filter(None, (before.text, before.image, before.features)))
    labels_before = () if before.label is None else (before.label,)
    choice = choice.among(names)
    features = choice.features
    if features is None and choice.text is None and choice.image is None:
        raw = _first(names, TEXT_COLUMNS + IMAGE_COLUMNS) is not None
        features = None if raw else _first(names, FEATURES_COLUMNS)
    label = None
    if labelled:
        usual = labels_before + (LABEL_COLUMNS if features is None else _ARRAY_LABEL_COLUMNS)
        kinds = (choice.text, choice.image, features, choice.label)
        if not any(kinds) and not _first(names, (*TEXT_COLUMNS, *IMAGE_COLUMNS, *usual)):
            raise InputError(
                f"{source} has neither a column "
                f"{_or((*remembered, *TEXT_COLUMNS, *IMAGE_COLUMNS))} nor one "
                f"{_or((*labels_before, *LABEL_COLUMNS))}; name both with --text-column (or "
                "--image-column, --features-column) and --label-column; its columns are "
                f"{_list(names)}"
            )
        label = settle(names, choice.label, usual, "--label-column", source)
    if features is not None:
        features = settle(names, features, FEATURES_COLUMNS, "--features-column", source)
        return Columns("features", features, label)
    if choice.image is not None:
        image = settle(names, choice.image, IMAGE_COLUMNS, "--image-column", source)
        return Columns("image", image, label)
    if choice.text is not None and choice.text not in names and PAIR_MARK in choice.text:
        parts = [part.strip() for part in choice.text.split(PAIR_MARK)]
        if len(parts) != 2 or not all(parts):
            raise InputError(
                f"--text-column {choice.text}: name one column, or two with a "
                f"'{PAIR_MARK}' between them"
            )
        parts = [settle(names, part, TEXT_COLUMNS, "--text-column", source) for part in parts]
        return Columns("text", choice.text, label, (parts[0], parts[1]))
    if choice.text is not None:
        text = settle(names, choice.text, TEXT_COLUMNS, "--text-column", source)
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
        f"{source} has no column "
        f"{_or((*remembered, *TEXT_COLUMNS, *IMAGE_COLUMNS, FEATURES_COLUMNS[0]))}; "
        "name one with --text-column, --image-column or --features-column; its columns are "
        f"{_list(names)}"
    )


def settle(
    names: Sequence[str], chosen: str | None, usual: Sequence[str], option: str, source: str
) -> str:
    """The one of the columns `names` of `source` that `option` chose, or else the first usual one.

    Raises:
        InputError: there is none, or there are two of them.

    >>> settle(["id", "Review "], "review", (), "--text-column", "reviews.csv")
    'Review '
    """
    if chosen is None:
        found = _first(names, usual)
        if found is None:
            raise InputError(
                f"{source} has no column {_or(usual)}; "
                f"name one with {option}; its columns are {_list(names)}"
            )
        chosen = found
    if chosen not in names:
        alike = [name for name in names if _plain(name) == _plain(chosen)]
        if len(alike) == 1:
            return alike[0]
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
            if _plain(name) == wanted:
                return name
    return None


def _plain(name: str) -> str:
    return name.strip().lower()


def _or(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:-1]) + " or " + quoted[-1] if len(quoted) > 1 else quoted[0]


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(name if name.isidentifier() else f"'{name}'" for name in names[:12])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 12 else shown

"""What a pipeline answers about rows, from their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import islice
from numbers import Integral, Number
from typing import Any, cast

import numpy as np

from extractors.base import Modality
from extractors.encode import EncodedRows
from extractors.errors import InputError
from tasks.artefact import Head


def answers_of(
    head: Head,
    rows: EncodedRows,
    ids: Sequence[str],
    *,
    top_k: int | None = None,
    features: bool = False,
    certificate: bool = False,
) -> list[dict[str, Any]]:
    """One answer a row: ``{"label": name, "score": probability}`` and what is asked for.

    Args:
        head: raw features -> probabilities.
        rows: features (n, d), and the reasons of rows that have none, for which the answer is
            ``{"label": None, "score": None, "skipped": reason}``.
        ids: what the rows are called there.
        top_k: so many of the most probable classes too.
        features: the row's features too.
        certificate: the radius too within which no change of the features changes the label.
    """
    good = iter(_answers(head, rows.features, top_k, features, certificate))
    return [
        {"label": None, "score": None, "skipped": rows.skipped[row]}
        if row in rows.skipped
        else next(good)
        for row in ids
    ]


def _answers(
    head: Head, X: np.ndarray, top_k: int | None, features: bool, certificate: bool
) -> list[dict[str, Any]]:
    if not len(X):
        return []
    p = head.predict_proba(X)
    answers: list[dict[str, Any]] = [
        {"label": head.classes[row.argmax()], "score": float(row.max())} for row in p
    ]
    if top_k is not None:
        for answer, row in zip(answers, p, strict=True):
            best = np.argsort(-row, kind="stable")[:top_k]
            answer["top_k"] = [{"label": head.classes[c], "score": float(row[c])} for c in best]
    if features:
        for answer, x in zip(answers, X, strict=True):
            answer["features"] = x
    if certificate:
        from convex_heads import robustness_radius

        radii = robustness_radius(cast(Any, head.network), X)
        for answer, radius in zip(answers, radii, strict=True):
            answer["robustness_radius"] = float(radius)
    return answers


def many(items: Any, modality: Modality) -> Sequence[Any] | None:
    """What was given as rows; None if it is a single one.

    Rows have an order and a length: a list, an array, a column of a table. Text, bytes and a
    mapping are single, and so is an array of pixels or of one vector's numbers. Raises InputError
    for what can be neither, whatever is to be done about bad rows.

    >>> many("fine", "text"), many(["fine"], "text"), many(np.array(["fine"]), "text")
    (None, ['fine'], [np.str_('fine')])
    >>> many(np.zeros((4, 6, 3), np.uint8), "image"), len(many(np.zeros((2, 5)), "features"))
    (None, 2)
    """
    if modality == "features":
        try:
            array = np.asarray(items)
        except ValueError:  # rows of several widths, or what is no vector among them
            return list(items)
        if array.ndim == 0:
            raise _no_item(items, modality)
        return None if array.ndim == 1 else cast(Sequence[Any], array)
    if isinstance(items, np.ndarray):
        one = 0 if items.dtype.kind in "OU" else 3  # axes of a single item: pixels have some
        return None if items.ndim <= one else list(items)
    single = isinstance(items, str | bytes | bytearray | memoryview | Mapping)
    table = hasattr(items, "columns")
    if single or table or not (hasattr(items, "__getitem__") and hasattr(items, "__len__")):
        images = not table and not isinstance(items, Mapping | Set | Number | None)
        if not (isinstance(items, str) if modality == "text" else images):
            raise _no_item(items, modality)
        return None
    return list(items) if hasattr(items, "iloc") else items  # a column counts from its own labels


_WANTED = {
    "text": ("text", "a text, or a list of them"),
    "image": ("image", "a path, encoded bytes or pixels, or a list of such"),
    "features": ("vector of features", "an array of numbers, of one row or of several"),
}


def _no_item(items: Any, modality: Modality) -> InputError:
    kind, wanted = _WANTED[modality]
    column = ", such as one of its columns" if hasattr(items, "columns") else ""
    return InputError(f"{type(items).__name__} is no {kind}: give {wanted}{column}")


def check_top_k(top_k: Any) -> None:
    """Raises InputError for what is no number of classes; None passes."""
    if top_k is None:
        return
    if not isinstance(top_k, Integral) or top_k < 1:
        raise InputError(f"top_k is {top_k!r}: must be a whole number, of at least one class")


def streamed(
    items: Iterator[Any], answers: Callable[[Sequence[Any], int], list[dict[str, Any]]], rows: int
) -> Iterator[dict[str, Any]]:
    """Answers in the order of the items, a batch of so many rows at a time.

    answers: of a batch, and the number of items before it.

    >>> list(streamed(iter("abc"), lambda batch, before: [{"label": before} for _ in batch], 2))
    [{'label': 0}, {'label': 0}, {'label': 2}]
    """
    before = 0
    while batch := list(islice(items, rows)):
        yield from answers(batch, before)
        before += len(batch)

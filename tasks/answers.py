"""What a pipeline answers about rows, from their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np

from tasks.artefact import Head


def answers_of(
    head: Head,
    X: np.ndarray,
    *,
    top_k: int | None = None,
    features: bool = False,
    certificate: bool = False,
) -> list[dict[str, Any]]:
    """One answer a row: ``{"label": name, "score": probability}`` and what is asked for.

    Args:
        head: raw features -> probabilities.
        X: (n, d).
        top_k: so many of the most probable classes too.
        features: the row of X too.
        certificate: the radius too within which no change of the features changes the label.
    """
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


def streamed(
    items: Iterator[Any], answers: Callable[[Sequence[Any]], list[dict[str, Any]]], rows: int
) -> Iterator[dict[str, Any]]:
    """Answers in the order of the items, a batch of so many rows at a time.

    >>> list(streamed(iter("abc"), lambda batch: [{"label": len(batch)} for _ in batch], 2))
    [{'label': 2}, {'label': 2}, {'label': 1}]
    """
    while batch := list(islice(items, rows)):
        yield from answers(batch)

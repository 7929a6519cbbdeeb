"""What the data would gain from: labels to look at again, classes that are hard, rows that repeat.

Made after everything has been measured, from what is on disk; nothing here changes a figure of the
comparison. Rows are named by their ids and never shown; showing them is the report's business.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.comparison.draws import folds
from tasks.comparison.label_errors import Suspects, nearest_neighbours, suspects, together

__all__ = ["LabelledRows", "confusion", "hardest_labels", "label_errors", "label_errors_csv"]

MOST_SHOWN = 50
_MOST_CONFUSED = 20
_LARGEST_CONFUSION = 100  # classes


@dataclass(frozen=True)
class LabelledRows:
    """Rows with names.

    Attributes:
        ids: of n rows.
        splits: of each.
        labels: (n,) integers.
        features: (n, d).
        digests: of the raw rows; equal rows have equal ones.
    """

    ids: Sequence[str]
    splits: Sequence[str]
    labels: NDArray[np.int64]
    features: NDArray[np.floating]
    digests: Sequence[bytes]


def label_errors(
    pool: LabelledRows,
    test: LabelledRows,
    classes: Sequence[str],
    *,
    head: str | None = None,
    pool_probabilities: NDArray[np.floating] | None = None,
    test_probabilities: NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """Rows whose label is probably wrong, of the pool and of test.

    Args:
        pool: rows that were trained on and chosen by; at most 20,000 of them are examined.
        test: the test rows; those examined in the pool are their neighbours.
        classes: C names.
        head: title of the method that the probabilities come from; None: neighbours alone.
        pool_probabilities: (n, C) out of sample, NaN where there are none.
        test_probabilities: (m, C).

    Returns:
        {examined, head, neighbours, suspected: {pool, test}, rows}, rows the surest first, each
        {row, split, label, suggested, ratio, given_probability, suggested_probability, agree,
        neighbour, neighbour_label}: `ratio` is that of the two probabilities, `agree` of the
        neighbours have the given label, and `neighbour` is the id of the nearest row.

    Example:
        >>> X = np.array([[0.0, 1], [0.1, 1], [0, 1.1], [1, 0], [1, 0.1], [1.1, 0]], np.float32)
        >>> def rows(split, y): return LabelledRows(
        ...     [f"{split}/{i}" for i in range(6)], [split] * 6, np.array(y), X,
        ...     [bytes([i]) for i in range(6)])
        >>> found = label_errors(rows("train", [0, 0, 0, 1, 1, 1]),
        ...                      rows("test", [0, 1, 0, 1, 1, 1]), ("no", "yes"))
        >>> [(row["row"], row["label"], row["suggested"]) for row in found["rows"]]
        [('test/1', 'yes', 'no')]
    """
    C = len(classes)
    examined = np.flatnonzero(folds(pool.labels, pool.digests) >= 0)
    features, labels = np.asarray(pool.features)[examined], pool.labels[examined]
    near = nearest_neighbours(features, labels, C)
    near_test = nearest_neighbours(
        features, labels, C, queries=np.asarray(test.features), query_labels=test.labels
    )
    p, p_test = near.shares, near_test.shares
    if head is not None and pool_probabilities is not None and test_probabilities is not None:
        p = together(p, pool_probabilities[examined])
        p_test = together(p_test, test_probabilities)
    else:
        head = None
    found: list[dict[str, Any]] = []
    counts = {}
    for name, rows, at, q, around in (
        ("pool", pool, examined, p, near),
        ("test", test, np.arange(len(test.labels)), p_test, near_test),
    ):
        s: Suspects = suspects(q, rows.labels[at])
        counts[name] = len(s.rows)
        for k, other, ratio in zip(
            s.rows.tolist(), s.suggested.tolist(), s.ratio.tolist(), strict=True
        ):
            row, nearest = int(at[k]), int(examined[around.nearest[k]])
            given = int(rows.labels[row])
            found.append(
                {
                    "row": rows.ids[row],
                    "split": rows.splits[row],
                    "label": classes[given],
                    "suggested": classes[other],
                    "ratio": round(ratio, 3),
                    "given_probability": round(float(q[k, given]), 4),
                    "suggested_probability": round(float(q[k, other]), 4),
                    "agree": int(around.agree[k]),
                    "neighbour": pool.ids[nearest],
                    "neighbour_split": pool.splits[nearest],
                    "neighbour_label": classes[pool.labels[nearest]],
                }
            )
    found.sort(key=lambda row: -row["ratio"])
    return {
        "examined": {"pool": len(examined), "test": len(test.labels)},
        "head": head,
        "neighbours": near.asked,
        "suspected": counts,
        "rows": found,
    }


def label_errors_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """All suspected rows as a CSV table; ids and labels, no texts."""
    out = io.StringIO()
    names: tuple[str, ...] = (
        "row",
        "split",
        "label",
        "suggested",
        "ratio",
        "given_probability",
        "suggested_probability",
        "agree",
        "neighbour",
        "neighbour_split",
        "neighbour_label",
    )
    table: Any = csv.DictWriter(out, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()


def confusion(
    probabilities: Sequence[NDArray[np.floating]],
    labels: NDArray[np.integer],
    classes: Sequence[str],
    title: str,
) -> dict[str, Any]:
    """Which classes are hard, and what they are mistaken for.

    Args:
        probabilities: (n, C) of each of K seeds.
        labels: (n,) of the test rows.
        classes: C names.
        title: of the method.

    Returns:
        {method, classes, pairs, counts}: classes from the hardest on, each {name, rows, precision,
        recall, f1, mistaken, mistaken_rows}; pairs are the most frequent mistakes {label,
        predicted, rows}; counts is the matrix (C, C), labels down and predictions across, mean
        over seeds, None with over 100 classes.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
        >>> found = confusion([p], np.array([0, 0, 1, 1]), ("no", "yes"), "kNN")
        >>> [(c["name"], c["recall"]) for c in found["classes"]], found["counts"]
        ([('yes', 0.5), ('no', 1.0)], [[2.0, 0.0], [1.0, 1.0]])
    """
    C = len(classes)
    counts = np.zeros((C, C))
    for p in probabilities:
        np.add.at(counts, (labels, p.argmax(axis=1)), 1 / len(probabilities))
    right, rows, said = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    mistakes = counts - np.diag(right)
    recall = right / np.maximum(rows, 1e-12)
    f1 = 2 * right / np.maximum(rows + said, 1e-12)
    order = [int(c) for c in np.argsort(f1, kind="stable") if rows[c] > 0]
    table = []
    for c in order:
        other = int(mistakes[c].argmax())
        table.append(
            {
                "name": classes[c],
                "rows": round(rows[c]),
                "precision": None if said[c] == 0 else round(float(right[c] / said[c]), 4),
                "recall": round(float(recall[c]), 4),
                "f1": round(float(f1[c]), 4),
                "mistaken": classes[other] if mistakes[c, other] else None,
                "mistaken_rows": round(float(mistakes[c, other]), 1),
            }
        )
    largest = np.argsort(-mistakes, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [
        {
            "label": classes[k // C],
            "predicted": classes[k % C],
            "rows": round(float(mistakes.flat[k]), 1),
            "share": round(float(mistakes.flat[k] / rows[k // C]), 4),
        }
        for k in largest.tolist()
        if mistakes.flat[k] > 0
    ]
    return {
        "method": title,
        "classes": table,
        "pairs": pairs,
        "counts": np.round(counts, 2).tolist() if C <= _LARGEST_CONFUSION else None,
    }


def hardest_labels(
    said: Sequence[NDArray[np.bool_]],
    targets: NDArray[Any],
    classes: Sequence[str],
    title: str,
) -> dict[str, Any]:
    """The same for rows with several labels, each label on its own.

    Args:
        said: (n, C) what each of K seeds predicts.
        targets: (n, C) of 0 and 1.
        classes: C names.
        title: of the method.

    Example:
        >>> said = np.array([[True, False], [True, True]])
        >>> found = hardest_labels([said], np.array([[1, 0], [1, 0]]), ("red", "round"), "kNN")
        >>> [(c["name"], c["rows"], c["precision"], c["recall"]) for c in found["classes"]]
        [('red', 2, 1.0, 1.0)]
    """
    Y, P = targets > 0, np.stack(said)
    right = (P & Y).sum(axis=(0, 1)) / len(P)
    rows, predicted = Y.sum(axis=0), P.sum(axis=(0, 1)) / len(P)
    f1 = 2 * right / np.maximum(rows + predicted, 1e-12)
    return {
        "method": title,
        "classes": [
            {
                "name": classes[c],
                "rows": int(rows[c]),
                "precision": None
                if predicted[c] == 0
                else round(float(right[c] / predicted[c]), 4),
                "recall": round(float(right[c] / rows[c]), 4),
                "f1": round(float(f1[c]), 4),
                "mistaken": None,
                "mistaken_rows": 0.0,
            }
            for c in np.argsort(f1, kind="stable").tolist()
            if rows[c] > 0
        ],
        "pairs": [],
        "counts": None,
    }

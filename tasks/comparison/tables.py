"""Tables of a comparison as text, for the page, the Markdown file and the screen alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tasks.methods import METHODS
from tasks.records import CompareRecord

__all__ = [
    "Table",
    "certified_curves",
    "class_table",
    "confused_table",
    "curve_of",
    "duplicate_table",
    "label_error_table",
    "label_errors_in_words",
    "largest",
    "trust_rows",
    "trust_table",
]

_MOST_CLASSES = 15


class Table(NamedTuple):
    """Header and lines; `ends` are the (split, row id) that each line is about."""

    header: list[str]
    lines: list[list[str]]
    ends: list[list[tuple[str, str]]] = []  # noqa: RUF012


def trust_rows(record: CompareRecord) -> list[Mapping[str, Any]]:
    """Of the first backbone at its largest size, a line for each method that has curves."""
    return [row for row in largest(record) if row["selective"] is not None]


def largest(record: CompareRecord) -> list[Mapping[str, Any]]:
    """Of `record.trust`, the lines of the first backbone at its largest size."""
    if not record.trust:
        return []
    same = ("backbone", "shots", "train_rows")
    first = [row for row in record.rows if row["backbone"] == record.backbones[0]]
    most = max(first, key=lambda row: row["n_train"])
    return [row for row in record.trust if all(row[key] == most[key] for key in same)]


def trust_table(record: CompareRecord) -> Table | None:
    """NLL and ECE before and after the temperature, and accuracy when it may abstain or is hit."""
    rows = trust_rows(record)
    if not rows:
        return None
    header = ["method", "NLL", "ECE, %"]
    calibrated = any(row["temperature"] is not None for row in rows)
    if calibrated:
        header += ["NLL before", "ECE before, %", "temperature"]
    header += ["acc. on surest 80%", "on surest 50%", "acc. with noise 0.5", "certified radius"]
    lines = []
    for row in rows:
        line = [METHODS[row["method"]].title, f"{row['nll']:.3f}", f"{100 * row['ece']:.1f}"]
        if calibrated:
            line += [f"{row['uncalibrated_nll']:.3f}", f"{100 * row['uncalibrated_ece']:.1f}"]
            t = row["temperature"]
            line.append("" if t is None else f"{t:.2f}")
        line += [_at(row["selective"], "coverage", 0.8), _at(row["selective"], "coverage", 0.5)]
        line.append(_at(row["noise"], "sigma", 0.5))
        certified = row["certified"]
        radius = None if certified is None else certified["median_radius"]
        line.append("" if radius is None else f"{radius:.3g}")
        lines.append(line)
    return Table(header, lines)


def _at(curve: Mapping[str, Any] | None, x: str, value: float) -> str:
    if curve is None:
        return ""
    return f"{100 * curve['accuracy'][list(curve[x]).index(value)]:.1f}"


def class_table(record: CompareRecord) -> Table | None:
    """The hardest classes."""
    found = record.advice.get("confusion")
    if not found:
        return None
    lines = [
        [
            c["name"],
            f"{c['rows']:,}",
            "" if c["precision"] is None else f"{100 * c['precision']:.1f}",
            f"{100 * c['recall']:.1f}",
            f"{100 * c['f1']:.1f}",
            "" if c["mistaken"] is None else f"{c['mistaken']} ({c['mistaken_rows']:g})",
        ]
        for c in found["classes"][:_MOST_CLASSES]
    ]
    header = ["class", "test rows", "precision, %", "recall, %", "F1, %", "mistaken for (rows)"]
    return Table(header, lines)


def confused_table(record: CompareRecord) -> Table | None:
    """The most frequent mistakes."""
    found = record.advice.get("confusion")
    if not found or not found["pairs"]:
        return None
    lines = [
        [p["label"], p["predicted"], f"{p['rows']:g}", f"{100 * p['share']:.1f}"]
        for p in found["pairs"][:_MOST_CLASSES]
    ]
    return Table(["label", "predicted", "test rows", "% of the class"], lines)


def label_error_table(record: CompareRecord) -> Table | None:
    """Rows whose label is probably wrong, the surest first."""
    found = record.advice.get("label_errors")
    if not found or not found["rows"]:
        return None
    asked = found["neighbours"]
    lines = [
        [
            row["row"],
            row["split"],
            row["label"],
            row["suggested"],
            f"{row['ratio']:,.3g}",
            f"{row['agree']} of {asked}",
            f"{row['neighbour']} ({row['neighbour_label']})",
        ]
        for row in found["rows"]
    ]
    header = [
        "row",
        "split",
        "label",
        "rather",
        "times as probable",
        "neighbours agree",
        "nearest row",
    ]
    ends = [
        [(row["split"], row["row"]), (row["neighbour_split"], row["neighbour"])]
        for row in found["rows"]
    ]
    return Table(header, lines, ends)


def label_errors_in_words(record: CompareRecord) -> str:
    """How they were found and how many."""
    found = record.advice.get("label_errors")
    if not found:
        return ""
    examined, suspected = found["examined"], found["suspected"]
    who = f"their {found['neighbours']} nearest rows"
    if found["head"] is not None:
        who += f" and the {found['head']}, fitted without them,"
    total = sum(suspected.values())
    if not total:
        return (
            f"Of {examined['pool']:,} rows to train and choose and {examined['test']:,} test rows"
            f" none has a label that {who} clearly speak against."
        )
    return (
        f"{suspected['pool']:,} of {examined['pool']:,} rows to train and choose and"
        f" {suspected['test']:,} of {examined['test']:,} test rows have a label that {who} speak"
        " against: another class is at least three times as probable. These are rows to look at and"
        " not rows to drop, since many of them are merely hard."
        + (
            f" The {len(found['rows'])} surest are below, all"
            if total > len(found["rows"])
            else " All"
        )
        + " are in label_errors.csv."
    )


def duplicate_table(record: CompareRecord) -> Table | None:
    """Pairs of rows that are the same or nearly."""
    if record.leaks is None or not record.leaks["examples"]:
        return None
    lines, ends = [], []
    for pair in record.leaks["examples"]:
        exact = pair["similarity"] == 1
        lines.append(
            [
                pair["row"],
                pair["split"],
                pair["twin"],
                pair["twin_split"],
                "exact" if exact else f"{pair['similarity']:.4f}",
                "same" if pair["same_label"] else "another",
            ]
        )
        ends.append([(pair["split"], pair["row"]), (pair["twin_split"], pair["twin"])])
    return Table(["row", "split", "twin", "in", "cosine", "label"], lines, ends)


def curve_of(
    rows: Sequence[Mapping[str, Any]], name: str, x: str
) -> dict[str, tuple[list[float], list[float]]]:
    """By title, x and accuracy of those rows that have the curve."""
    found = {}
    for row in rows:
        if row[name] is not None:
            title = METHODS[row["method"]].title
            found[title] = (list(row[name][x]), list(row[name]["accuracy"]))
    return found


def certified_curves(
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[list[float], list[float]]]:
    """Certified accuracy where it has not fallen to nothing; radius 0 is at the axis' left end."""
    found = {}
    for title, (radius, accuracy) in curve_of(rows, "certified", "radius").items():
        r, a = np.array(radius), np.array(accuracy)
        last = int(np.flatnonzero(a > 0.001).max(initial=1)) + 2
        found[title] = (r[1:last].tolist(), a[1:last].tolist())
    return found

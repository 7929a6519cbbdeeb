"""The sections of a comparison's page that hold figures and tables of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tasks.comparison.figures import (
    MOST_CLASSES,
    confusion_figure,
    curves_figure,
    lines_figure,
    reliability_grid,
    seconds_figure,
)
from tasks.comparison.tables import (
    Table,
    certified_curves,
    class_table,
    confused_table,
    curve_of,
    duplicate_table,
    label_error_table,
    label_errors_in_words,
    largest,
    trust_rows,
    trust_table,
)
from tasks.comparison.words import TRUST, hardest_in_words, repeats_in_words, same_place
from tasks.methods import METHODS
from tasks.records import CompareRecord
from tasks.reports.figures import convergence_figure, has_lines, path_figure

if TYPE_CHECKING:
    from tasks.comparison.samples import Samples

# Of the convex head and its rival as in every report; the others keep out of their way.
_OURS, _REFERENCE, _OTHERS = "#0b6e75", "#b4540a", "#57606a"
_FEWEST_ANSWERED = 20  # rows that an accuracy is drawn for
# For lines that must be told apart.
_LINES = ("#6f42c1", "#0969da", "#bf3989", "#4d7c0f", "#953800", "#57606a", "#8b7500", "#1f6f43")


def pairs_table(record: CompareRecord, where: Mapping[str, Any]) -> list[list[str]]:
    """Every two methods of one backbone and training size: difference and p-values, as text."""

    def p(value: float | None) -> str:
        return "" if value is None else f"{value:.2g}"

    return [
        [
            METHODS[pair["first"]].title,
            METHODS[pair["second"]].title,
            f"{100 * pair['difference']:+.2f}",
            "{:+.2f} to {:+.2f}".format(*(100 * end for end in pair["interval"])),
            p(pair["rows_p"]),
            p(pair["rows_holm"]),
            p(pair["mcnemar_p"]),
            p(pair["permutation_p"]),
            METHODS[pair["better"]].title if pair["better"] else "",
        ]
        for pair in record.pairs
        if same_place(pair, where)
    ]


def _colour(method: str) -> str:
    return {"convex": _OURS, "linear": _REFERENCE}.get(method, _OTHERS)


def seconds_section(rows: Sequence[Mapping[str, Any]], number: int) -> Any:
    """The figure of accuracy against seconds of one backbone and training size."""
    svg = seconds_figure(
        [row["title"] for row in rows],
        [row["seconds_warm"] for row in rows],
        [row["test_accuracy"] for row in rows],
        [row["interval"] for row in rows],
        [_colour(row["method"]) for row in rows],
        what="whole sets of labels right, %" if "test_micro_f1" in rows[0] else "test accuracy, %",
    )
    # One page holds several of them, and an id names one thing.
    return Markup(svg.replace("seconds-", f"seconds{number}-"))


def curves_section(record: CompareRecord) -> Any:
    """Accuracy against training size on the first backbone; empty with one size."""
    first = [row for row in record.rows if row["backbone"] == record.backbones[0]]
    few = any(row["shots"] is not None for row in first)
    points: dict[str, list[tuple[int, float, float, float]]] = {}
    colours: dict[str, str] = {}
    for row in sorted(first, key=lambda row: row["n_train"]):
        size = row["shots"] if few else row["n_train"]
        points.setdefault(row["title"], []).append((size, row["test_accuracy"], *row["interval"]))
        colours[row["title"]] = _line_colour(row["method"])
    if max(map(len, points.values())) < 2:
        return ""
    quantity = "training rows of every class" if few else "training rows"
    return Markup(curves_figure(points, colours, quantity))


def _line_colour(method: str) -> str:
    others = [name for name in METHODS if name not in ("convex", "linear")]
    own = {"convex": _OURS, "linear": _REFERENCE}
    return own.get(method) or _LINES[others.index(method) % len(_LINES)]


def trust_section(record: CompareRecord) -> dict[str, Any] | None:
    """Figures and table about probabilities, noise and radii; None without them."""
    rows, table = trust_rows(record), trust_table(record)
    if table is None:
        return None
    colours = {METHODS[row["method"]].title: _line_colour(row["method"]) for row in rows}
    answered = {}
    for title, (x, y) in curve_of(rows, "selective", "coverage").items():
        enough = [share * record.n_test >= _FEWEST_ANSWERED for share in x]
        answered[title] = tuple(
            [v for v, e in zip(values, enough, strict=True) if e] for values in (x, y)
        )
    found: dict[str, Any] = {
        "table": table,
        "words": TRUST,
        "bins": Markup(reliability_grid({METHODS[row["method"]].title: row for row in rows})),
        "selective": Markup(
            lines_figure(
                {title: ([100 * share for share in x], y) for title, (x, y) in answered.items()},
                colours,
                name="selective",
                quantity="rows answered, the surest first, %",
            )
        ),
        "noise": "",
        "certified": "",
        "noise_rows": 0,
    }
    noise, certified = curve_of(rows, "noise", "sigma"), certified_curves(rows)
    if noise:
        found["noise"] = Markup(
            lines_figure(
                noise, colours, name="noise", quantity="noise, standard deviations of a feature"
            )
        )
        found["noise_rows"] = int(next(row["noise"]["rows"] for row in rows if row["noise"]))
    if certified:
        found["certified"] = Markup(
            lines_figure(
                certified,
                colours,
                name="certified",
                quantity="length of the change, standardised features",
                what="certified accuracy, %",
                logarithmic=True,
            )
        )
    return found


def training_section(record: CompareRecord) -> dict[str, Any] | None:
    """Path and convergence of the head; None where no head with a certificate was compared."""
    rows = [row for row in largest(record) if row["path"]]
    own = [row for row in rows if row["method"] == "convex"]
    if not own:
        return None
    row = own[0]
    solves = [
        (
            each["solve"],
            [
                {"passes": p, "seconds": s, "relative_gap": 1.0 if g is None else g}
                for p, s, g in zip(
                    each["passes"], each["seconds"], each["relative_gap"], strict=True
                )
            ],
        )
        for each in row["convergence"]
        if each["passes"]
    ]
    same = ("method", "backbone", "shots", "train_rows")
    chosen = next(r["chosen"] for r in record.rows if all(r[key] == row[key] for key in same))
    path = [
        {
            **point,
            "difference_error": math.nan
            if point["difference_error"] is None
            else point["difference_error"],
        }
        for point in row["path"]
    ]
    return {
        "path": Markup(path_figure(path, chosen["beta"], 1.0)) if len(path) > 1 else "",
        "convergence": Markup(convergence_figure(solves, row["tolerance"]))
        if has_lines(solves)
        else "",
        "gap": f"{chosen['relative_gap']:.1e}",
        "tolerance": f"{row['tolerance']:.0e}",
    }


def data_section(record: CompareRecord, samples: Samples | None) -> dict[str, Any]:
    """Tables about classes and rows, and the figure of the confusion matrix."""
    found = record.advice.get("confusion")
    figure = ""
    if found and found["counts"] is not None and record.n_classes <= MOST_CLASSES:
        figure = Markup(confusion_figure(found["counts"], record.classes))

    def shown(table: Table | None) -> list[list[dict[str, Any]]]:
        """What each line's rows look like; empty without samples."""
        if table is None or samples is None:
            return []
        return [
            [
                {
                    "id": row,
                    "text": samples.text(split, row),
                    "image": samples.thumbnail(split, row),
                }
                for split, row in ends
            ]
            for ends in table.ends
        ]

    errors, repeats = label_error_table(record), duplicate_table(record)
    return {
        "confusion": figure,
        "hardest": hardest_in_words(record),
        "classes": class_table(record),
        "confused": confused_table(record),
        "errors": errors,
        "errors_shown": shown(errors),
        "errors_words": label_errors_in_words(record),
        "repeats": repeats,
        "repeats_shown": shown(repeats),
        "repeats_words": repeats_in_words(record),
        "samples": samples is not None,
    }

"""A finished comparison for people: one self-contained HTML page, and the same as Markdown.

Everything said here is in the record; nothing is computed but rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.console import duration
from tasks.leak_words import examples_in_words, leaks_in_words
from tasks.ledger import write_whole
from tasks.methods import METHODS
from tasks.records import CompareRecord

__all__ = ["table_of", "where_in_words", "write_markdown", "write_report"]

# Of the convex head and its rival as in every report; the others keep out of their way.
_OURS, _REFERENCE, _OTHERS = "#0b6e75", "#b4540a", "#57606a"
# For lines that must be told apart.
_LINES = ("#6f42c1", "#0969da", "#bf3989", "#4d7c0f", "#953800", "#57606a", "#8b7500", "#1f6f43")


def write_report(directory: str | Path, record: CompareRecord) -> Path:
    """Write ``report.html``: one page, no scripts, nothing loaded from elsewhere."""
    from tasks.report import templates

    sections = []
    for number, said in enumerate(record.verdict):
        rows = _rows_of(record, said)
        header, lines = table_of(record, said)
        sections.append(
            {
                "where": where_in_words(record, said),
                "text": said["text"],
                "header": header,
                "lines": [
                    {"method": row["method"], "cells": line}
                    for row, line in zip(rows, lines, strict=True)
                ],
                "pairs": _pairs(record, said),
                "figure": _seconds_figure(rows, number),
                "notes": [f"{row['title']}: {note}" for row in rows for note in row["notes"]],
            }
        )
    text = (
        templates(html=True)
        .get_template("comparison.html.j2")
        .render(
            r=record,
            sections=sections,
            curves=_curves(record),
            methods=_methods(record),
            facts=_facts(record),
            protocol=_protocol(record),
            permutation=2 / 2 ** len(record.seeds),
        )
    )
    path = Path(directory) / "report.html"
    write_whole(path, text)
    return path


def write_markdown(directory: str | Path, record: CompareRecord) -> Path:
    """Write ``report.md``: verdict, table and protocol, to be pasted into a README."""
    out = [f"# {record.task}: what is worth its time\n"]
    for said in record.verdict:
        where = where_in_words(record, said)
        if where:
            out.append(f"## {where}\n")
        out += [f"- {_plain(sentence)}" for sentence in said["text"]]
        header, lines = table_of(record, said)
        out.append("\n| " + " | ".join(header) + " |")
        out.append("|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|")
        out += ["| " + " | ".join(map(_plain, line)) + " |" for line in lines]
        out.append("")
    out.append(_plain(_protocol(record)) + "\n")
    out.append(f"Made by `{record.command}`.\n")
    path = Path(directory) / "report.md"
    write_whole(path, "\n".join(out))
    return path


def table_of(record: CompareRecord, where: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of one backbone and training size, as text."""
    unbalanced = record.unbalanced
    header = ["method", "test accuracy, %", "+-", "95% interval"]
    header += ["macro F1, %", "balanced, %"] if unbalanced else []
    header += ["NLL", "ECE, %", "s cold", "s warm", "MB", "settings", "parameters"]
    lines = []
    for row in _rows_of(record, where):
        low, high = row["interval"]
        line = [
            row["title"],
            f"{100 * row['test_accuracy']:.2f}",
            f"{100 * row['standard_error']:.2f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
        ]
        if unbalanced:
            line += [f"{100 * row[k]:.1f}" for k in ("test_macro_f1", "test_balanced_accuracy")]
        line += [
            f"{row['test_nll']:.3f}",
            f"{100 * row['test_ece']:.1f}",
            "" if row["seconds_cold"] is None else f"{row['seconds_cold']:.1f}",
            f"{row['seconds_warm']:.1f}",
            f"{row['peak_rss_mb']:,.0f}",
            str(row["settings_tried"]),
            f"{row['parameters']:,}",
        ]
        lines.append(line)
    return header, lines


def where_in_words(record: CompareRecord, where: Mapping[str, Any]) -> str:
    """Which backbone and training size, as far as there are several."""
    said = []
    if len(record.backbones) > 1:
        said.append(str(where["backbone"]))
    if where["shots"] is not None:
        said.append(f"{where['shots']} training rows of every class")
    elif len({w["train_rows"] for w in record.verdict}) > 1:
        rows = where["train_rows"]
        said.append("all training rows" if rows is None else f"{rows:,} training rows")
    return ", ".join(said)


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(a[key] == b[key] for key in ("backbone", "shots", "train_rows"))


def _rows_of(record: CompareRecord, where: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in record.rows if _same(row, where)]


def _pairs(record: CompareRecord, where: Mapping[str, Any]) -> list[list[str]]:
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
        if _same(pair, where)
    ]


def _colour(method: str) -> str:
    return {"convex": _OURS, "linear": _REFERENCE}.get(method, _OTHERS)


def _seconds_figure(rows: Sequence[Mapping[str, Any]], number: int) -> Any:
    from markupsafe import Markup

    from tasks.figures import seconds_figure

    svg = seconds_figure(
        [row["title"] for row in rows],
        [row["seconds_warm"] for row in rows],
        [row["test_accuracy"] for row in rows],
        [row["interval"] for row in rows],
        [_colour(row["method"]) for row in rows],
    )
    # One page holds several of them, and an id names one thing.
    return Markup(svg.replace("seconds-", f"seconds{number}-"))


def _curves(record: CompareRecord) -> Any:
    """Accuracy against training size on the first backbone; empty with one size."""
    from markupsafe import Markup

    from tasks.figures import curves_figure

    first = [row for row in record.rows if row["backbone"] == record.backbones[0]]
    few = any(row["shots"] is not None for row in first)
    points: dict[str, list[tuple[int, float, float, float]]] = {}
    colours: dict[str, str] = {}
    for row in sorted(first, key=lambda row: row["n_train"]):
        size = row["shots"] if few else row["n_train"]
        points.setdefault(row["title"], []).append((size, row["test_accuracy"], *row["interval"]))
        others = [name for name in METHODS if name not in ("convex", "linear")]
        colours[row["title"]] = {"convex": _OURS, "linear": _REFERENCE}.get(
            row["method"]
        ) or _LINES[others.index(row["method"]) % len(_LINES)]
    if max(map(len, points.values())) < 2:
        return ""
    quantity = "training rows of every class" if few else "training rows"
    return Markup(curves_figure(points, colours, quantity))


def _methods(record: CompareRecord) -> list[tuple[str, str, str]]:
    """Title, what it is, and what was chosen in the first seed, of every method in the table."""
    found = {}
    for row in record.rows:
        chosen = ", ".join(f"{name} {_short(value)}" for name, value in row["chosen"].items())
        about = METHODS[row["method"]].about
        found.setdefault(row["method"], (row["title"], about, chosen))
    return list(found.values())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _protocol(record: CompareRecord) -> str:
    K = len(record.seeds)
    few = any(row["shots"] is not None for row in record.rows)
    held = (
        "at most 4 further rows of every class choose"
        if few
        else f"{record.validation_fraction:.0%} of them choose and the others train"
    )
    temperature = record.calibrate == "temperature"
    calibrated = ", and a temperature for its probabilities," if temperature else ""
    return (
        f"{K} seed{'s' if K > 1 else ''}: for each, {held} among {record.n_pool:,} rows, drawn"
        " anew, and so are gates and first weights. Every method chooses its settings"
        f"{calibrated} on those validation rows; the {record.n_test:,} test rows are read once,"
        " after that. Accuracies are means over seeds; +- is the standard error and the"
        " interval is 95%, over seeds and test rows together (bootstrap). Better means: the exact"
        " test over test rows (McNemar's, for several seeds), corrected by Holm, is below 0.05,"
        " and the interval of the difference does not hold zero. Seconds include"
        " tuning and not the extraction of features;"
        " warm is without compiling."
    )


def _facts(record: CompareRecord) -> list[tuple[str, str]]:
    shown = ", ".join(record.classes[:20])
    more = f", and {record.n_classes - 20} more" if record.n_classes > 20 else ""
    small, large = record.class_share
    facts = [
        ("data", f"{record.task} ({record.modality})"),
        ("rows", f"{record.n_pool:,} to train and choose, {record.n_test:,} test"),
        ("classes", f"{record.n_classes}: {shown}{more}"),
        ("class shares", f"{small:.1%} to {large:.1%} of the test rows"),
        ("backbone", "; ".join(record.backbones) + "; frozen"),
        ("features", f"extracted in {duration(record.seconds['extract_all_runs'])} in all"),
    ]
    if record.truncated_fraction is not None:
        cut = f"{record.truncated_fraction:.1%} of the texts are longer than the backbone reads"
        facts.append(("truncation", cut if record.truncated_fraction else "no text was cut"))
    if record.leaks is not None:
        said = [leaks_in_words(record.leaks), *examples_in_words(record.leaks)]
        facts.append(("duplicates", "; ".join(said)))
    facts.append(("seeds", f"{record.seeds[0]} to {record.seeds[-1]}"))
    return facts


def _plain(text: str) -> str:
    return text.replace("|", "\\|")

"""A finished comparison for people: one self-contained HTML page, and the same as Markdown.

Everything said here is in the record; nothing is computed but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.comparison_tables import (
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
from tasks.console import duration
from tasks.leak_words import leaks_in_words
from tasks.ledger import write_whole
from tasks.methods import METHODS, SEVERAL_LABELS
from tasks.records import CompareRecord

if TYPE_CHECKING:
    from tasks.samples import Samples

__all__ = ["table_of", "where_in_words", "write_markdown", "write_report"]

# Of the convex head and its rival as in every report; the others keep out of their way.
_OURS, _REFERENCE, _OTHERS = "#0b6e75", "#b4540a", "#57606a"
_FEWEST_ANSWERED = 20  # rows that an accuracy is drawn for
_MARKDOWN_LINES, _FEWEST_SHOWN = 15, 15
_TRUST = (
    "NLL and ECE are of the test rows, after the temperature that validation rows chose. A method"
    " that answers only the rows it is surest of should be right more often on them. Noise is"
    " Gaussian, in standard deviations of each feature. The certified radius is the median over"
    " test rows of the length, in standardised features, below which no change of the features can"
    " change the answer: proven, for methods that have such a proof."
)
# For lines that must be told apart.
_LINES = ("#6f42c1", "#0969da", "#bf3989", "#4d7c0f", "#953800", "#57606a", "#8b7500", "#1f6f43")


def write_report(
    directory: str | Path, record: CompareRecord, samples: Samples | None = None
) -> Path:
    """Write ``report.html``: one page, no scripts, nothing loaded from elsewhere.

    Args:
        directory: an existing one.
        record: of the comparison.
        samples: rows to show beside their ids; None shows none.
    """
    from tasks.report import templates

    sections = []
    for number, said in enumerate(_in_order(record)):
        rows = _rows_of(record, said)
        header, lines = table_of(record, said)
        sections.append(
            {
                "where": where_in_words(record, said),
                "main": _is_main(record, said),
                "text": said["text"],
                "header": header,
                "table": Table(header, lines),
                "lines": [
                    {"method": row["method"], "cells": line}
                    for row, line in zip(rows, lines, strict=True)
                ],
                "pairs": _pairs(record, said),
                "figure": _seconds_figure(rows, number) if _is_main(record, said) else "",
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
            trust=_trust(record),
            training=_training(record),
            data=_data(record, samples),
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
    for said in _in_order(record):
        where = where_in_words(record, said)
        if where:
            out.append(f"## {where}\n")
        out += [f"- {_plain(sentence)}" for sentence in said["text"]]
        header, lines = table_of(record, said)
        out += ["", *_markdown_table(header, lines), ""]
    tables = (
        ("Can the probabilities be relied on", trust_table(record), _TRUST),
        ("Hardest classes", class_table(record), _hardest(record)),
        ("Most frequent mistakes", confused_table(record), ""),
        ("Labels to look at", label_error_table(record), label_errors_in_words(record)),
        ("Rows that repeat", duplicate_table(record), _repeats(record)),
    )
    for title, table, said in tables:
        if table is None and not said:
            continue
        out.append(f"## {title}\n")
        if said:
            out.append(f"{_plain(said)}\n")
        if table is not None:
            shown = table.lines[:_MARKDOWN_LINES]
            out += [*_markdown_table(table.header, shown), ""]
            if len(table.lines) > len(shown):
                more = len(table.lines) - len(shown)
                out.append(f"{more} more are in report.html.\n")
    out.append(_plain(_protocol(record)) + "\n")
    out.append(f"Made by `{record.command}`.\n")
    path = Path(directory) / "report.md"
    write_whole(path, "\n".join(out))
    return path


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    numbers = [all(_is_number(line[k]) for line in lines) for k in range(len(header))]
    rule = ["---:" if number and k else "---" for k, number in enumerate(numbers)]
    return [
        "| " + " | ".join(header) + " |",
        "|" + "|".join(rule) + "|",
        *("| " + " | ".join(map(_plain, line)) + " |" for line in lines),
    ]


def _is_number(text: str) -> bool:
    return not text or text[0].isdigit() or (text[0] in "+-" and text[1:2].isdigit())


def table_of(record: CompareRecord, where: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of one backbone and training size, as text."""
    accuracy = "whole sets right, %" if record.several_labels else "test accuracy, %"
    header = ["method", accuracy, "+-", "95% interval"]
    more: dict[str, str] = {}
    if record.several_labels:
        more = {
            "test_micro_f1": "micro F1, %",
            "test_macro_f1": "macro F1, %",
            "test_average_precision": "average precision, %",
        }
    elif record.unbalanced:
        more = {"test_macro_f1": "macro F1, %", "test_balanced_accuracy": "balanced, %"}
    header += more.values()
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
        line += [f"{100 * row[key]:.1f}" for key in more]
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


def _is_main(record: CompareRecord, where: Mapping[str, Any]) -> bool:
    """Whether this is the largest training size of its backbone."""
    most = max(r["n_train"] for r in record.rows if r["backbone"] == where["backbone"])
    return _rows_of(record, where)[0]["n_train"] == most


def _in_order(record: CompareRecord) -> list[Mapping[str, Any]]:
    """The verdicts, those of the largest training sizes first."""
    return sorted(record.verdict, key=lambda said: not _is_main(record, said))


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

    from tasks.comparison_figures import seconds_figure

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


def _curves(record: CompareRecord) -> Any:
    """Accuracy against training size on the first backbone; empty with one size."""
    from markupsafe import Markup

    from tasks.comparison_figures import curves_figure

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


def _trust(record: CompareRecord) -> dict[str, Any] | None:
    """Figures and table about probabilities, noise and radii; None without them."""
    from markupsafe import Markup

    from tasks.comparison_figures import lines_figure, reliability_grid

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
        "words": _TRUST,
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


def _training(record: CompareRecord) -> dict[str, Any] | None:
    """Path and convergence of the head; None where no head with a certificate was compared."""
    from markupsafe import Markup

    from tasks.figures import convergence_figure, path_figure

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
        "convergence": Markup(convergence_figure(solves, row["tolerance"])) if solves else "",
        "gap": f"{chosen['relative_gap']:.1e}",
        "tolerance": f"{row['tolerance']:.0e}",
    }


def _data(record: CompareRecord, samples: Samples | None) -> dict[str, Any]:
    """Tables about classes and rows, and the figure of the confusion matrix."""
    from markupsafe import Markup

    from tasks.comparison_figures import MOST_CLASSES, confusion_figure

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
        "hardest": _hardest(record),
        "classes": class_table(record),
        "confused": confused_table(record),
        "errors": errors,
        "errors_shown": shown(errors),
        "errors_words": label_errors_in_words(record),
        "repeats": repeats,
        "repeats_shown": shown(repeats),
        "repeats_words": _repeats(record),
        "samples": samples is not None,
    }


def _hardest(record: CompareRecord) -> str:
    found = record.advice.get("confusion")
    if not found:
        return ""
    few = f"The {_FEWEST_SHOWN} hardest of" if record.n_classes > _FEWEST_SHOWN else "All"
    seeds = f", mean over {len(record.seeds)} seeds" if len(record.seeds) > 1 else ""
    return f"{few} {record.n_classes} classes by F1; {found['method']}, test rows{seeds}."


def _repeats(record: CompareRecord) -> str:
    if record.leaks is None:
        return ""
    said = leaks_in_words(record.leaks)
    return said[0].upper() + said[1:] + "."


def _methods(record: CompareRecord) -> list[tuple[str, str, str]]:
    """Title, what it is, and what was chosen in the first seed, of every method in the table."""
    found = {}
    for row in record.rows:
        chosen = ", ".join(f"{name} {_short(value)}" for name, value in row["chosen"].items())
        about = METHODS[row["method"]].about
        if record.several_labels:
            about = SEVERAL_LABELS[row["method"]]
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
    temperature = record.calibrate == "temperature" and not record.several_labels
    sets = ""
    if record.several_labels:
        sets = (
            " Rows have several labels: accuracy is the share of rows whose whole set of labels is"
            " right, macro F1 and average precision are means over labels, and NLL and ECE are of"
            " single labels. Every method chooses a threshold for all labels, by micro F1, on the"
            " validation rows."
        )
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
        f" warm is without compiling.{sets}"
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
        facts.append(("duplicates", leaks_in_words(record.leaks)))
    facts.append(("seeds", f"{record.seeds[0]} to {record.seeds[-1]}"))
    return facts


def _plain(text: str) -> str:
    return text.replace("|", "\\|")

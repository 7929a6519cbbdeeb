"""A finished comparison for people: one self-contained HTML page, and the same as Markdown.

Everything said here is in the record; nothing is computed but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.comparison.ledger import write_whole
from tasks.comparison.sections import (
    curves_section,
    data_section,
    pairs_table,
    seconds_section,
    training_section,
    trust_section,
)
from tasks.comparison.tables import (
    Table,
    class_table,
    confused_table,
    duplicate_table,
    label_error_table,
    label_errors_in_words,
    trust_table,
)
from tasks.comparison.words import (
    TRUST,
    facts_in_words,
    hardest_in_words,
    in_order,
    is_main,
    methods_in_words,
    protocol_in_words,
    repeats_in_words,
    rows_of,
    table_of,
    where_in_words,
)
from tasks.records import CompareRecord
from tasks.reports.figures import as_file

if TYPE_CHECKING:
    from tasks.comparison.samples import Samples

__all__ = ["write_markdown", "write_report"]

_MARKDOWN_LINES = 15


def write_report(
    directory: str | Path, record: CompareRecord, samples: Samples | None = None
) -> Path:
    """Write ``report.html``: one page, no scripts, nothing loaded from elsewhere.

    Its first figure, accuracy against seconds, is written beside it as an SVG file too.

    Args:
        directory: an existing one.
        record: of the comparison.
        samples: rows to show beside their ids; None shows none.
    """
    from tasks.reports.pages import templates

    sections = []
    for number, said in enumerate(in_order(record)):
        rows = rows_of(record, said)
        header, lines = table_of(record, said)
        sections.append(
            {
                "where": where_in_words(record, said),
                "main": is_main(record, said),
                "text": said["text"],
                "header": header,
                "table": Table(header, lines),
                "lines": [
                    {"method": row["method"], "cells": line}
                    for row, line in zip(rows, lines, strict=True)
                ],
                "pairs": pairs_table(record, said),
                "figure": seconds_section(rows, number) if is_main(record, said) else "",
                "notes": [f"{row['title']}: {note}" for row in rows for note in row["notes"]],
            }
        )
    text = (
        templates(html=True)
        .get_template("comparison.html.j2")
        .render(
            r=record,
            sections=sections,
            curves=curves_section(record),
            trust=trust_section(record),
            training=training_section(record),
            data=data_section(record, samples),
            methods=methods_in_words(record),
            facts=facts_in_words(record),
            protocol=protocol_in_words(record),
            permutation=2 / 2 ** len(record.seeds),
        )
    )
    figure = next((section["figure"] for section in sections if section["figure"]), "")
    if figure:
        write_whole(Path(directory) / "accuracy_seconds.svg", as_file(str(figure)))
    path = Path(directory) / "report.html"
    write_whole(path, text)
    return path


def write_markdown(directory: str | Path, record: CompareRecord) -> Path:
    """Write ``report.md``: verdict, table and protocol, to be pasted into a README."""
    out = [f"# {record.task}: what is worth its time\n"]
    for said in in_order(record):
        where = where_in_words(record, said)
        if where:
            out.append(f"## {where}\n")
        out += [f"- {_plain(sentence)}" for sentence in said["text"]]
        header, lines = table_of(record, said)
        out += ["", *_markdown_table(header, lines), ""]
    tables = (
        ("Can the probabilities be relied on", trust_table(record), TRUST),
        ("Hardest classes", class_table(record), hardest_in_words(record)),
        ("Most frequent mistakes", confused_table(record), ""),
        ("Labels to look at", label_error_table(record), label_errors_in_words(record)),
        ("Rows that repeat", duplicate_table(record), repeats_in_words(record)),
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
    out.append(_plain(protocol_in_words(record)) + "\n")
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


def _plain(text: str) -> str:
    return text.replace("|", "\\|")

"""What a report of a comparison says in words, and its table as text.

Everything is in the record; nothing is computed but rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.console import duration
from tasks.data.leak_words import leaks_in_words
from tasks.methods import METHODS, SEVERAL_LABELS
from tasks.records import CompareRecord

_FEWEST_SHOWN = 15
TRUST = (
    "NLL and ECE are of the test rows, after the temperature that validation rows chose. A method"
    " that answers only the rows it is surest of should be right more often on them. Noise is"
    " Gaussian, in standard deviations of each feature. The certified radius is the median over"
    " test rows of the length, in standardised features, below which no change of the features can"
    " change the answer: proven, for methods that have such a proof."
)


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


def is_main(record: CompareRecord, where: Mapping[str, Any]) -> bool:
    """Whether this is the largest training size of its backbone."""
    most = max(r["n_train"] for r in record.rows if r["backbone"] == where["backbone"])
    return rows_of(record, where)[0]["n_train"] == most


def in_order(record: CompareRecord) -> list[Mapping[str, Any]]:
    """The verdicts, those of the largest training sizes first."""
    return sorted(record.verdict, key=lambda said: not is_main(record, said))


def same_place(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two lines are of the same backbone and training size."""
    return all(a[key] == b[key] for key in ("backbone", "shots", "train_rows"))


def rows_of(record: CompareRecord, where: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines of one backbone and training size."""
    return [row for row in record.rows if same_place(row, where)]


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
    for row in rows_of(record, where):
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


def hardest_in_words(record: CompareRecord) -> str:
    """What stands above the table of classes; empty without one."""
    found = record.advice.get("confusion")
    if not found:
        return ""
    few = f"The {_FEWEST_SHOWN} hardest of" if record.n_classes > _FEWEST_SHOWN else "All"
    seeds = f", mean over {len(record.seeds)} seeds" if len(record.seeds) > 1 else ""
    return f"{few} {record.n_classes} classes by F1; {found['method']}, test rows{seeds}."


def repeats_in_words(record: CompareRecord) -> str:
    """What the leak check found; empty where it was left out."""
    if record.leaks is None:
        return ""
    said = leaks_in_words(record.leaks)
    return said[0].upper() + said[1:] + "."


def methods_in_words(record: CompareRecord) -> list[tuple[str, str, str]]:
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


def protocol_in_words(record: CompareRecord) -> str:
    """How the figures came about."""
    K = len(record.seeds)
    few = any(row["shots"] is not None for row in record.rows)
    pool = f"the {record.n_pool:,} rows that are not test rows"
    drawn = (
        f"training rows are drawn anew from {pool}, at most 4 further rows of every class choose"
        if few
        else f"{pool} are divided anew, {record.validation_fraction:.0%} choose and the others"
        " train"
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
        f"{K} seed{'s' if K > 1 else ''}. For each, {drawn}, and gates and first weights are drawn"
        " anew. Every method chooses its settings"
        f"{calibrated} on those validation rows; the {record.n_test:,} test rows are read once,"
        " after that. Accuracies are means over seeds; +- is the standard error and the"
        " interval is 95%, over seeds and test rows together (bootstrap). Better means: the exact"
        " test over test rows (McNemar's, for several seeds), corrected by Holm, is below 0.05,"
        " and the interval of the difference does not hold zero. Seconds include"
        " tuning and not the extraction of features;"
        " cold is the first fit of a process, warm, of which the sentences speak, without"
        f" compiling.{sets}"
    )


def facts_in_words(record: CompareRecord) -> list[tuple[str, str]]:
    """Name and value of what a reader should know of the data."""
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

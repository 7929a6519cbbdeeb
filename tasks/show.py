"""Results for people (tables on stdout) and for scripts (one JSON object on stdout)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.console import WIDE, duration, passes_in_words
from tasks.data.leak_words import leaks_in_words
from tasks.records import (
    CompareRecord,
    EvaluateRecord,
    ExportRecord,
    ExtractRecord,
    FitRecord,
    RefitRecord,
    to_json,
)
from tasks.screen import columns_of, fitting, make_table, print_table, say
from tasks.show_artefact import artefact_lines

if TYPE_CHECKING:
    from tasks.cronos_am.finetune import FinetuneRecord
    from tasks.data.sources import TaskInfo
    from tasks.doctor import Check
    from tasks.info import Inspection


_MOST_SKIPPED = 10  # lines of rows that were left out


def show_json(result: Any) -> None:
    """Print one JSON object on stdout."""
    print(to_json(result))


def show_fit(record: FitRecord) -> None:
    """Both heads side by side, what is proven, where things are, and what to try next."""
    kinds = f"{record.n_train:,} train, {record.n_validation:,} validation, {record.n_test:,} test"
    print(
        f"\n{record.task}: {kinds} rows, {record.n_classes} classes; {record.dim} features of "
        f"{record.backbone} ({duration(record.seconds.get('extract', 0.0))})\n"
    )
    table = make_table("", "test accuracy", "95% interval", "seconds", "relative gap")
    table.add_row(
        "convex head",
        f"{record.test_accuracy:.4f}",
        _interval(record.test_accuracy_interval),
        f"{record.seconds.get('fit', 0.0):.1f}",
        f"{record.relative_gap:.1e}",
    )
    table.add_row(
        "linear probe",
        f"{record.linear_probe_test_accuracy:.4f}",
        _interval(record.linear_probe_test_accuracy_interval),
        f"{record.seconds.get('baseline', 0.0):.1f}",
        "",
    )
    print_table(table)
    head5, probe5 = record.test_top5_accuracy, record.linear_probe_test_top5_accuracy
    if head5 is not None and probe5 is not None:
        print(f"top-5 accuracy: convex head {head5:.4f}, linear probe {probe5:.4f}")
    _show_features(record)
    _show_skipped(record)
    if record.leaks is not None:
        say(f"duplicates: {leaks_in_words(record.leaks)}")
    examples = {"text": '--text "..."', "image": "--input FOLDER_OF_IMAGES"}
    example = examples.get(record.modality, "--input FEATURES.npy")
    print(f"artefact  {record.artefact}")
    print(f"report    {Path(record.artefact) / 'report.html'}")
    print(f"next      convex-heads predict {shlex.quote(record.artefact)} {example}")
    print(f"          convex-heads serve {shlex.quote(record.artefact)}")


def show_finetune(record: FinetuneRecord) -> None:
    """The rounds, then what `fit` shows."""
    table = make_table("round", "half-step", "objective", "validation", "seconds", "")
    for line in record.rounds:
        table.add_row(
            str(line["round"]),
            line["half"],
            f"{line['objective']:.4f}",
            f"{line['validation_accuracy']:.4f}",
            f"{line['seconds']:.1f}",
            "" if line["kept"] else "rolled back",
        )
    print_table(table)
    print(
        f"frozen backbone: test accuracy {record.frozen_test_accuracy:.4f}; top "
        f"{record.unfreeze} of {record.n_blocks} blocks trained: {record.test_accuracy:.4f}"
    )
    show_fit(record)


def show_comparison(record: CompareRecord) -> None:
    """The verdict, the table of every training size, and where things are."""
    from tasks.comparison.words import table_of, where_in_words

    for said in record.verdict:
        where = where_in_words(record, said)
        print(f"\n{record.task}{', ' + where if where else ''}")
        for sentence in said["text"]:
            say(f"  {sentence}", "  ")
        header, lines = table_of(record, said)
        shown = fitting(header, lines)
        table = make_table(*header[:shown])
        for line in lines:
            table.add_row(*line[:shown])
        print_table(table)
        if shown < len(header):
            print(f"in the report too: {', '.join(header[shown:])}")
    found = sum(record.advice.get("label_errors", {}).get("suspected", {}).values())
    if found:
        print(f"labels    {Path(record.out) / 'label_errors.csv'}: {found:,} to look at")
    print(f"records   {Path(record.out) / 'records.jsonl'}")
    print(f"table     {Path(record.out) / 'report.md'}")
    print(f"report    {record.report}")


def _show_features(record: ExtractRecord | FitRecord) -> None:
    """What is to be known of the features: their lengths, what was cut, what rounding cost."""
    if record.tokens and record.tokens["max"] > 1:  # a module of one's own counts none
        t = record.tokens
        print(
            f"tokens in a text: half have up to {t['median']:,}, 95% up to {t['p95']:,}, the "
            f"longest {t['max']:,}"
        )
    if record.modality == "text" and record.truncated_fraction is not None:
        lost = ""
        if record.tokens and record.tokens["tokens_lost"]:
            share = record.tokens["tokens_lost"] / record.tokens["tokens"]
            lost = f", {_share(share)} of all tokens lost; --long-text windows reads them"
        print(truncation(record.truncated_fraction) + lost)
    if record.autocast_error:
        e = record.autocast_error
        how = "int8" if "quantize" in record.feature_options else "half precision"
        print(
            f"{how} differs from float32 by {e['mean']:.1e} on average and {e['max']:.1e} "
            f"at most (relative, {e['rows']} rows)"
        )


def _show_skipped(record: ExtractRecord | FitRecord) -> None:
    if not record.skipped_rows:
        return
    print(f"rows left out because they could not be used: {record.skipped_rows:,}")
    for name, reason in record.skipped[:_MOST_SKIPPED]:
        print(f"  {name}: {reason}")
    if (more := record.skipped_rows - _MOST_SKIPPED) > 0:
        print(f"  and {more:,} more; --json lists the first hundred")


def _share(fraction: float) -> str:
    return "under 0.1%" if fraction < 0.001 else f"{fraction:.1%}"


def truncation(fraction: float) -> str:
    """The share of texts that were cut, never rounded to nothing.

    >>> truncation(0.0), truncation(0.3456)
    ('no text was truncated', '34.6% of the texts were truncated')
    >>> truncation(0.00001)
    'under 0.1% of the texts were truncated'
    """
    if fraction == 0:
        return "no text was truncated"
    return f"{_share(fraction)} of the texts were truncated"


def show_extract(record: ExtractRecord) -> None:
    """How many rows the store has, and where it is."""
    new = record.rows - record.resumed_rows
    print(f"{record.task}: {record.rows:,} rows of {record.dim} features by {record.backbone}")
    print(f"{new:,} new in {duration(record.seconds)}, {record.resumed_rows:,} were there before")
    _show_features(record)
    _show_skipped(record)
    print(f"store  {record.store}")


def show_evaluation(record: EvaluateRecord) -> None:
    """The figures with their intervals, then a line for every slice."""
    where = "" if record.split == "all" else f", {record.split} split"
    print(f"\n{record.data}{where}: {record.n:,} rows, {len(record.classes)} classes\n")
    names = ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece")
    table = make_table("", "value", "95% interval")
    for name in names:
        interval = getattr(record, f"{name}_interval")
        table.add_row(name.replace("_", " "), f"{getattr(record, name):.4f}", _interval(interval))
    print_table(table)
    if record.slices:
        table = make_table(str(record.by), "rows", "accuracy", "95% interval", "macro F1", "ECE")
        for part in record.slices:
            table.add_row(
                part["slice"],
                f"{part['n']:,}",
                f"{part['accuracy']:.4f}",
                _interval(part["accuracy_interval"]),
                f"{part['macro_f1']:.4f}",
                f"{part['ece']:.4f}",
            )
        print_table(table)
    if record.classes_without_rows:
        shown = ", ".join(record.classes_without_rows[:10])
        print(f"classes of the head that no row has: {shown}")


def show_refit(record: RefitRecord) -> None:
    """How many rows came, what became of the objective, and of the test rows."""
    n = record.n
    new = f"; new classes: {', '.join(record.new_classes)}" if record.new_classes else ""
    print(f"\n{n['train_before']:,} + {n['train_new']:,} training rows{new}")
    print(
        f"objective {record.primal_before:.6g} before, {record.primal:.6g} after, relative gap "
        f"{record.relative_gap:.1e}, {passes_in_words(record.passes)}"
    )
    table = make_table("test rows", "rows", "accuracy")
    lines = [("all", n["test_before"] + n["test_new"], record.test_accuracy)]
    if record.test_accuracy_before_rows_old_head is not None:
        was = record.test_accuracy_before_rows_old_head
        lines.append(("of the first fit, old head", n["test_before"], was))
    if record.test_accuracy_before_rows is not None:
        lines.append(("of the first fit", n["test_before"], record.test_accuracy_before_rows))
    if record.test_accuracy_new_rows is not None:
        lines.append(("new", n["test_new"], record.test_accuracy_new_rows))
    for name, rows, accuracy in lines:
        table.add_row(name, f"{rows:,}", f"{accuracy:.4f}")
    print_table(table)
    print(f"artefact  {record.artefact}")


def show_export(record: ExportRecord) -> None:
    """Where the file is, what goes in and comes out, and how closely it agrees."""
    opset = "" if record.opset is None else f", opset {record.opset}"
    kilobytes = record.bytes / 1e3
    size = f"{kilobytes:.0f} kB" if kilobytes < 1000 else f"{kilobytes / 1e3:.1f} MB"
    print(f"{record.out}  {size}, {record.format}{opset}")
    print(f"inputs    {', '.join(record.inputs)} (any batch)")
    for path in record.beside:
        print(f"beside    {path}: how these are made")
    print(f"outputs   {', '.join(record.outputs)}")
    print(f"checked   probabilities differ from the head's by {record.max_difference:.1e} at most")


def show_tasks(tasks: Sequence[TaskInfo]) -> None:
    """One line per named task."""
    table = make_table("task", "input", "classes", "rows", "at hand", "from", "what")
    for task in tasks:
        rows = " + ".join(f"{n:,} {split}" for split, n in task.rows.items())
        at_hand = "yes" if task.at_hand else "no"
        table.add_row(
            task.name, task.modality, str(task.n_classes), rows, at_hand, task.source, task.about
        )
    print_table(table)


def show_inspection(found: Inspection) -> None:
    """What a store is, a fact a line, or what of an artefact fits a screen; --json has all."""
    table = make_table("", "", header=False)
    if found.kind == "artefact":
        print(f"{found.path} is an artefact, whole")
        for name, said in artefact_lines(found):
            if said:
                table.add_row(name, said)
        print_table(table)
        return
    told: set[str] = set()
    for key, value in found.facts.items():
        if key == "skipped":
            for name, reason in value:
                table.add_row(f"  {name}", reason)
            continue
        if isinstance(value, Mapping) and value:
            table.add_row(key, "")
            for name, part in value.items():
                if name not in told:  # the record repeats the certificate
                    table.add_row(f"  {name}", in_words(part))
            told |= set(value)
        else:
            table.add_row(key, in_words(value))
        told.add(key)
    print(f"{found.path} is a store")
    print_table(table)


def in_words(value: Any) -> str:
    """A fact on a line.

    >>> in_words([0.123456789, "a"]), in_words({"fit": 8.0, "leaks": None}), in_words([{}, {}])
    ('0.123457, a', 'fit 8, leaks none', '2 entries (--json shows more)')
    """
    if value is None or (isinstance(value, Mapping | list | tuple) and not value):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        if any(isinstance(part, Mapping) for part in value):
            entries = "1 entry" if len(value) == 1 else f"{len(value)} entries"
            return f"{entries} (--json shows more)"
        more = f", ... ({len(value):,} in all)" if len(value) > 12 else ""
        return ", ".join(in_words(part) for part in value[:12]) + more
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show_checks(checks: Sequence[Check]) -> None:
    """One line per check; advice only where something is wrong."""
    width = max(len(check.name) for check in checks)
    columns = columns_of(sys.stdout)
    indent = " " * (width + 11 if columns is None or columns >= WIDE else 4)

    for check in checks:
        say(f"{check.status:<7}  {check.name:<{width}}  {check.found}", indent)
        if check.advice:
            say(f"{indent}-> {check.advice}", indent)


def _interval(interval: Sequence[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"

"""What a report and a model card tell of a fit, in words and from its record alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.console import duration
from tasks.data.leak_words import examples_in_words, leaks_in_words
from tasks.records import FitRecord
from tasks.reports.card import shown_backbone

_MOST_SKIPPED = 20  # rows left out that are named


def certificate_in_words(record: FitRecord) -> str:
    """What the certificate says, in two sentences."""
    if not np.isfinite(record.relative_gap):
        return (
            "There is no certificate for this head: no lower bound on its training objective could"
            " be computed. Its accuracy is measured on the test rows all the same."
        )
    return (
        "Training this head is a convex problem, and its dual gives a lower bound on the objective"
        " of every head with these gates and this beta, whoever trains it and however long: this"
        f" head's objective is {record.primal:.4g}, the bound {record.dual:.4g}, so no further"
        f" training can lower it by more than {_percent(record.relative_gap)}."
        " This is a statement about the training objective and not about the accuracy on new data,"
        " which is measured on the test rows."
    )


def proven_columns(record: FitRecord) -> list[tuple[str, str]]:
    """Columns of the card's table of what is proven."""
    columns = [
        ("objective", f"{record.primal:.6g}"),
        ("lower bound", f"{record.dual:.6g}"),
        ("relative gap", f"{record.relative_gap:.2g}"),
        ("beta / beta_max", f"{record.beta / record.beta_max:.3g}"),
    ]
    if record.activation == "relu" and record.cone_violation is not None:
        columns.append(("cone violation", f"{record.cone_violation:.2g}"))
    if record.pattern_violation is not None:
        columns.append(("pattern violation", violation_in_words(record.pattern_violation)))
    return columns


def violation_in_words(value: float | None) -> str:
    """A pattern violation, never rounded to the 1 that it lies above or below.

    >>> violation_in_words(1.26), violation_in_words(1.0000234), violation_in_words(0.998)
    ('1.26', '1 + 2.3e-05', '1 - 2.0e-03')
    """
    if value is None:
        return ""
    near = value != 1 and abs(value - 1) < 0.01
    return f"1 {'+' if value > 1 else '-'} {abs(value - 1):.1e}" if near else f"{value:.3g}"


def frozen_in_words(record: FitRecord) -> str:
    """What fine-tuning has changed on the test rows; empty where there was none."""
    accuracy = getattr(record, "frozen_test_accuracy", None)
    if accuracy is None:
        return ""
    before = f"The convex head on the frozen backbone gets {accuracy:.2%} of the test rows right"
    if not changed_weights(record):
        return f"{before}; fine-tuning was tried, and no round of it is kept."
    top, blocks = getattr(record, "unfreeze", 0), getattr(record, "n_blocks", 0)
    return (
        f"{before}; with the top {top} of {blocks} blocks trained it is {record.test_accuracy:.2%}."
    )


def calibration_in_words(record: FitRecord) -> str:
    """What was done to the scores of both before they became probabilities."""
    head, probe = record.calibration_temperature, record.linear_probe_temperature
    if head is not None and probe is not None:
        return (
            "Both are calibrated: scores are divided by a temperature chosen on validation rows, "
            f"{head:.3g} for the head and {probe:.3g} for the probe."
        )
    if probe is not None:
        return (
            "The head's squared loss has no temperature; the probe's scores are divided by "
            f"{probe:.3g}, chosen on validation rows."
        )
    if head is not None:
        return (
            f"The head's scores are divided by {head:.3g}, a temperature chosen on validation "
            "rows; the probe is not calibrated."
        )
    return "Both are as they were fitted, not calibrated."


def _left_out(record: FitRecord) -> str:
    """Rows that could not be used, with the reason of each."""
    listed = "; ".join(f"{name} ({reason})" for name, reason in record.skipped[:_MOST_SKIPPED])
    more = record.skipped_rows - _MOST_SKIPPED
    return f"{listed}; and {more:,} more" if more > 0 else listed


def facts_of(record: FitRecord, *, named: bool = False) -> list[tuple[str, str]]:
    """Name and value of what a reader must know of the data and the backbone.

    named: rows that were left out are.
    """
    shown = record.classes[:20]
    more = f", and {len(record.classes) - len(shown)} more" if len(record.classes) > 20 else ""
    facts = [
        ("data", f"{record.task} ({record.modality})"),
        (
            "rows",
            f"{record.n_train:,} training, {record.n_validation:,} validation,"
            f" {record.n_test:,} test",
        ),
        ("classes", f"{record.n_classes}: {', '.join(shown)}{more}"),
        (
            "backbone",
            f"{shown_backbone(record.backbone)}, {_trained(record)}, {record.dim} features",
        ),
    ]
    if record.feature_options:
        chosen = ", ".join(f"{name} {value}" for name, value in record.feature_options.items())
        facts.append(("chosen features", chosen))
    if record.autocast_error:
        mean, most = record.autocast_error["mean"], record.autocast_error["max"]
        error = f"{mean:.1e} from float32 on average, {most:.1e} at most (relative)"
        int8 = "quantize" in (record.feature_options or {})
        facts.append(("int8" if int8 else "half precision", error))
    if record.truncated_fraction is not None:
        share = _percent(record.truncated_fraction)
        cut = f"{share} of the texts are longer than the backbone reads, and were cut"
        facts.append(("truncation", cut if record.truncated_fraction else "no text was cut"))
    if record.skipped_rows:
        facts.append(("left out", f"{record.skipped_rows:,} rows that could not be used"))
        if named:
            facts.append(("they are", _left_out(record)))
    if record.leaks is not None:
        said = [leaks_in_words(record.leaks), *examples_in_words(record.leaks)]
        facts.append(("duplicates", "; ".join(said)))
    if "extract" in record.seconds:
        facts.append(("features", _features(record.seconds)))
    facts.append(("memory", f"{record.peak_rss_mb:,.0f} MB at the most"))
    facts.append(("seed", str(record.seed)))
    return facts


def _trained(record: FitRecord) -> str:
    changed = changed_weights(record)
    return f"{changed:,} weights of its top blocks fine-tuned" if changed else "frozen"


def changed_weights(record: FitRecord) -> int:
    """Weights of the backbone that fine-tuning has changed."""
    return getattr(record, "changed_parameters", 0)


def _percent(fraction: float) -> str:
    """A share in per cent with two significant digits, never rounded to nothing."""
    return f"{100 * fraction:.2g} %"


def _features(seconds: Mapping[str, float]) -> str:
    """What the features cost, in this run and in all runs that filled the store."""
    total = seconds.get("extract_all_runs", seconds["extract"])
    if seconds["extract"] >= total:
        return f"extracted in {duration(seconds['extract'])}"
    return f"extracted in {duration(total)} in all, {duration(seconds['extract'])} in this run"

"""A finished fit for people: one self-contained HTML page and a Hugging Face model card.

Everything said here is computed from the record and the test probabilities; nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.console import duration
from tasks.data.leak_words import examples_in_words, leaks_in_words
from tasks.fit_head import solve_name
from tasks.metrics import Metrics, PairedTest, evaluate, mcnemar, reliability
from tasks.records import FitRecord
from tasks.reports.card import a_text, card_metadata, revision_facts, rows_in_words, shown_backbone
from tasks.reports.pages import templates

__all__ = ["write_model_card", "write_report"]

_OF_THE_RUN = ("features", "memory")  # facts that the report tells, and a card need not

_LEVEL = 0.05  # of the paired test
_MOST_CLASSES = 30  # rows of the table of classes; with more, the hardest ones


@dataclass(frozen=True)
class _Verdict:
    text: str
    colour: str


def write_report(
    directory: str | Path,
    record: FitRecord,
    *,
    labels: ArrayLike,
    head_probabilities: ArrayLike,
    probe_probabilities: ArrayLike,
) -> Path:
    """Write ``report.html`` into a directory: one page, no scripts, nothing loaded from elsewhere.

    Args:
        directory: an existing one.
        record: of the fit.
        labels: (n_test,) integers.
        head_probabilities: (n_test, n_classes) of the convex head, as deployed (calibrated).
        probe_probabilities: (n_test, n_classes) of the linear probe, the same rows.

    Returns:
        The file written.

    Raises:
        ValueError: the arrays do not fit together, or are not those that the record tells of.
    """
    y = np.asarray(labels)
    p_head, p_probe = np.asarray(head_probabilities), np.asarray(probe_probabilities)
    head, probe = evaluate(p_head, y), evaluate(p_probe, y)
    for name, found, told in (
        ("head", head.accuracy, record.test_accuracy),
        ("linear probe", probe.accuracy, record.linear_probe_test_accuracy),
    ):
        if abs(found - told) > 1e-6:
            raise ValueError(
                f"these probabilities of the {name} have accuracy {found:.6f}, the record says"
                f" {told:.6f}: give those of the same rows and the same fit"
            )
    paired = mcnemar(p_head.argmax(axis=1) == y, p_probe.argmax(axis=1) == y)
    text = (
        templates(html=True)
        .get_template("report.html.j2")
        .render(
            r=record,
            backbone=shown_backbone(record.backbone),
            verdict=_verdict(head, probe, paired, fine_tuned=_changed(record) > 0),
            measured=_measured(record, head, probe),
            fine_tuned=_changed(record) > 0,
            frozen=_frozen(record),
            calibration=_calibration(record),
            violation=_violation(record.pattern_violation),
            certificate=_certificate(record),
            facts=_facts(record),
            classes=_classes(record.classes, y, p_head.argmax(axis=1), p_probe.argmax(axis=1)),
            figures=_figures(record, head, probe, y, p_head, p_probe),
        )
    )
    path = Path(directory) / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def write_model_card(
    directory: str | Path, record: FitRecord, comparison: Mapping[str, Any] | None = None
) -> Path:
    """Write ``README.md``, the model card that the Hugging Face Hub shows, into a directory.

    Args:
        directory: an existing one.
        record: of the fit.
        comparison: of ``read_comparison``; None: the card has the linear probe alone.

    Returns:
        The file written.
    """
    text = (
        templates(html=False)
        .get_template("model_card.md.j2")
        .render(
            r=record,
            comparison=comparison,
            backbone=shown_backbone(record.backbone),
            fine_tuned=_changed(record) > 0,
            frozen=_frozen(record),
            metadata=card_metadata(
                record.modality,
                record.backbone,
                (record.task,),
                (record.command,),
                accuracy=record.test_accuracy,
                macro_f1=record.test_macro_f1,
            ),
            certificate=_certificate(record),
            columns=_proven(record),
            facts=[
                *(fact for fact in _facts(record) if fact[0] not in _OF_THE_RUN),
                *revision_facts(Path(directory)),
            ],
            modality=record.modality,
            a_text=a_text(Path(directory)),
            rows_are=rows_in_words(record.modality),
            dim=record.dim,
            n_classes=record.n_classes,
            commands=[record.command] if record.command else [],
        )
    )
    path = Path(directory) / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _verdict(
    head: Metrics, probe: Metrics, paired: PairedTest, *, fine_tuned: bool = False
) -> _Verdict:
    """Which of the two is better, if these rows can tell."""
    ours, its = ("convex head", "linear probe")
    if fine_tuned:
        ours, its = f"{ours} on the fine-tuned features", f"{its} on the frozen ones"
    accuracies = f"{head.accuracy:.1%} against {probe.accuracy:.1%} of {head.n:,} test rows"
    test = (
        f"{paired.only_first} rows only the head gets right, {paired.only_second} only the probe;"
        f" exact McNemar test, p = {paired.p_value:.2g}"
    )
    if paired.p_value >= _LEVEL:
        return _Verdict(
            f"No difference in accuracy between the {ours} and the {its} is shown:"
            f" {accuracies} ({test}).",
            "line",
        )
    if paired.only_first > paired.only_second:
        return _Verdict(
            f"The {ours} is more accurate than the {its}: {accuracies} ({test}).",
            "head",
        )
    return _Verdict(
        f"The {ours} loses: it is less accurate than the {its}, {accuracies} ({test})."
        " On this data, use the linear probe.",
        "probe",
    )


def _certificate(record: FitRecord) -> str:
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


def _measured(record: FitRecord, head: Metrics, probe: Metrics) -> list[dict[str, str]]:
    def row(name: str, *values: str) -> dict[str, str]:
        return dict(zip(("name", "head", "probe"), (name, *values), strict=True))

    both = (head, probe)
    shares = [m.top5_accuracy for m in both if m.top5_accuracy is not None]
    top5 = [f"{100 * share:.2f}" for share in shares] if len(shares) == 2 else None
    seconds = (record.seconds.get("fit"), record.seconds.get("baseline"))
    return [
        row("accuracy, %", *(f"{100 * m.accuracy:.2f}" for m in both)),
        *([] if top5 is None else [row("top-5 accuracy, %", *top5)]),
        row("95 % interval", *("{:.1f} to {:.1f}".format(*_hundred(m)) for m in both)),
        row("balanced accuracy, %", *(f"{100 * m.balanced_accuracy:.2f}" for m in both)),
        row("macro F1, %", *(f"{100 * m.macro_f1:.2f}" for m in both)),
        row("NLL, nats", *(f"{m.nll:.3f}" for m in both)),
        row("ECE, %", *(f"{100 * m.ece:.1f}" for m in both)),
        row("seconds, tuning included", *("" if s is None else f"{s:.1f}" for s in seconds)),
    ]


def _hundred(metrics: Metrics) -> tuple[float, float]:
    low, high = metrics.accuracy_interval
    return 100 * low, 100 * high


def _proven(record: FitRecord) -> list[tuple[str, str]]:
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
        columns.append(("pattern violation", _violation(record.pattern_violation)))
    return columns


def _violation(value: float | None) -> str:
    """A pattern violation, never rounded to the 1 that it lies above or below.

    >>> _violation(1.26), _violation(1.0000234), _violation(0.998)
    ('1.26', '1 + 2.3e-05', '1 - 2.0e-03')
    """
    if value is None:
        return ""
    near = value != 1 and abs(value - 1) < 0.01
    return f"1 {'+' if value > 1 else '-'} {abs(value - 1):.1e}" if near else f"{value:.3g}"


def _frozen(record: FitRecord) -> str:
    """What fine-tuning has changed on the test rows; empty where there was none."""
    accuracy = getattr(record, "frozen_test_accuracy", None)
    if accuracy is None:
        return ""
    before = f"The convex head on the frozen backbone gets {accuracy:.2%} of the test rows right"
    if not _changed(record):
        return f"{before}; fine-tuning was tried, and no round of it is kept."
    top, blocks = getattr(record, "unfreeze", 0), getattr(record, "n_blocks", 0)
    return (
        f"{before}; with the top {top} of {blocks} blocks trained it is {record.test_accuracy:.2%}."
    )


def _calibration(record: FitRecord) -> str:
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


def _facts(record: FitRecord) -> list[tuple[str, str]]:
    """Name and value of what a reader must know of the data and the backbone."""
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
    if record.leaks is not None:
        said = [leaks_in_words(record.leaks), *examples_in_words(record.leaks)]
        facts.append(("duplicates", "; ".join(said)))
    if "extract" in record.seconds:
        facts.append(("features", _features(record.seconds)))
    facts.append(("memory", f"{record.peak_rss_mb:,.0f} MB at the most"))
    facts.append(("seed", str(record.seed)))
    return facts


def _classes(
    names: Sequence[str],
    y: NDArray[np.int64],
    head: NDArray[np.int64],
    probe: NDArray[np.int64],
) -> dict[str, Any]:
    """The table of classes; with very many classes, those with the lowest recall."""
    from sklearn.metrics import confusion_matrix

    every = np.arange(len(names))
    table = confusion_matrix(y, head, labels=every)  # rows: what it is; columns: what was said
    right, support, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    probe_right = confusion_matrix(y, probe, labels=every).diagonal()
    mistakes = table - np.diag(right)
    caption = "In %. Precision and recall are those of the convex head."
    order = every
    if len(names) > _MOST_CLASSES:
        order = np.argsort(right / np.maximum(support, 1), kind="stable")[:_MOST_CLASSES]
        caption += f" The {_MOST_CLASSES} of {len(names)} classes that it recalls worst."
    rows = []
    for c in map(int, order):
        other = int(mistakes[c].argmax())
        rows.append(
            {
                "name": names[c],
                "support": f"{support[c]:,}",
                "precision": _rate(right[c], predicted[c]),
                "recall": _rate(right[c], support[c]),
                "probe_recall": _rate(probe_right[c], support[c]),
                "mistaken": f"{names[other]} ({mistakes[c, other]})" if mistakes[c].any() else "",
            }
        )
    return {"caption": caption, "rows": rows}


def _figures(
    record: FitRecord,
    head: Metrics,
    probe: Metrics,
    y: NDArray[np.int64],
    p_head: NDArray[np.floating],
    p_probe: NDArray[np.floating],
) -> dict[str, Any]:
    from markupsafe import Markup

    from tasks.reports.figures import (
        FEWEST_ROWS,
        accuracy_figure,
        convergence_figure,
        has_lines,
        path_figure,
        reliability_figure,
    )
    from tasks.reports.round_figure import rounds_figure

    names = ("convex head", "linear probe")
    accuracy = accuracy_figure(
        names,
        (head.accuracy, probe.accuracy),
        (head.accuracy_interval, probe.accuracy_interval),
    )
    bins = reliability_figure(names, (reliability(p_head, y), reliability(p_probe, y)))
    path = path_figure(record.path, record.beta, record.beta_max) if len(record.path) > 1 else ""
    rounds = getattr(record, "rounds", ())  # of fine-tuning
    solves = _solves(record) if record.history else []
    convergence = convergence_figure(solves, record.tolerance) if has_lines(solves) else ""
    return {
        "accuracy": Markup(accuracy),
        "path": Markup(path),
        "convergence": Markup(convergence),
        "reliability": Markup(bins),
        "rounds": Markup(rounds_figure(rounds) if len(rounds) > 1 else ""),
        "fewest": FEWEST_ROWS,
    }


def _solves(record: FitRecord) -> list[tuple[str, Sequence[Mapping[str, float]]]]:
    """Name and history of every solve: the points of the path, then the final one."""
    path = [(solve_name(p["beta"] / record.beta_max), p["history"]) for p in record.path]
    return [*path, ("final", record.history)]


def _trained(record: FitRecord) -> str:
    changed = _changed(record)
    return f"{changed:,} weights of its top blocks fine-tuned" if changed else "frozen"


def _changed(record: FitRecord) -> int:
    """Weights of the backbone that fine-tuning has changed."""
    return getattr(record, "changed_parameters", 0)


def _rate(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""


def _percent(fraction: float) -> str:
    """A share in per cent with two significant digits, never rounded to nothing."""
    return f"{100 * fraction:.2g} %"


def _features(seconds: Mapping[str, float]) -> str:
    """What the features cost, in this run and in all runs that filled the store."""
    total = seconds.get("extract_all_runs", seconds["extract"])
    if seconds["extract"] >= total:
        return f"extracted in {duration(seconds['extract'])}"
    return f"extracted in {duration(total)} in all, {duration(seconds['extract'])} in this run"

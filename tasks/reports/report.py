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

from tasks.fit_head import solve_name
from tasks.metrics import Metrics, PairedTest, evaluate, mcnemar, reliability
from tasks.records import FitRecord
from tasks.reports.card import a_text, card_metadata, revision_facts, rows_in_words, shown_backbone
from tasks.reports.facts import (
    calibration_in_words,
    certificate_in_words,
    changed_weights,
    facts_of,
    frozen_in_words,
    proven_columns,
    violation_in_words,
)
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
            verdict=_verdict(head, probe, paired, fine_tuned=changed_weights(record) > 0),
            measured=_measured(record, head, probe),
            fine_tuned=changed_weights(record) > 0,
            frozen=frozen_in_words(record),
            calibration=calibration_in_words(record),
            violation=violation_in_words(record.pattern_violation),
            certificate=certificate_in_words(record),
            facts=facts_of(record, named=len(record.skipped) > 0),
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
            fine_tuned=changed_weights(record) > 0,
            frozen=frozen_in_words(record),
            metadata=card_metadata(
                record.modality,
                record.backbone,
                (record.task,),
                (record.command,),
                accuracy=record.test_accuracy,
                macro_f1=record.test_macro_f1,
            ),
            certificate=certificate_in_words(record),
            columns=proven_columns(record),
            facts=[
                *(fact for fact in facts_of(record) if fact[0] not in _OF_THE_RUN),
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


def _rate(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""

"""The figure of an alternation: objective and accuracies of its half-steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.reports.figures import HEAD, PROBE, as_svg, new_figure


def rounds_figure(history: Sequence[Mapping[str, Any]]) -> str:
    """The joint objective, and accuracies on training and validation rows, against seconds.

    Filled marks are head half-steps, hollow ones block half-steps; a cross was rolled back. The
    legend says so.

    Args:
        history: lines as ``tasks.cronos_am.alternate`` keeps them.

    Example:
        >>> line = {"half": "head", "kept": True, "objective": 0.5, "tried": 0.5, "seconds": 1.0}
        >>> line |= {"train_accuracy": 0.9, "validation_accuracy": 0.8}
        >>> rounds_figure([line, line | {"half": "block"}]).startswith("<svg")
        True
    """
    seconds, total = [], 0.0
    for line in history:
        total += line["seconds"]
        seconds.append(total)
    figure, (top, bottom) = new_figure(height=4.0, rows=2)
    top.plot(seconds, [line["objective"] for line in history], color=HEAD, lw=1)
    for x, line in zip(seconds, history, strict=True):
        if not line["kept"]:
            top.plot(x, line["tried"], "x", color=PROBE, ms=5)
            continue
        fill = HEAD if line["half"] == "head" else "white"
        top.plot(x, line["objective"], "o", color=HEAD, mfc=fill, ms=5)
    for label, marker, colour, fill in (
        ("head half-step", "o", HEAD, HEAD),
        ("block half-step", "o", HEAD, "white"),
        ("rolled back", "x", PROBE, PROBE),
    ):
        if marker == "o" or not all(line["kept"] for line in history):
            top.plot([], [], marker, color=colour, mfc=fill, ms=5, label=label)
    top.legend(frameon=False)
    top.set_ylabel("joint objective")
    for name, key, colour in (
        ("train", "train_accuracy", PROBE),
        ("validation", "validation_accuracy", HEAD),
    ):
        values = [100 * line[key] for line in history]
        bottom.plot(seconds, values, "o-", color=colour, ms=3, label=name)
    bottom.set_ylabel("accuracy, %")
    bottom.set_xlabel("seconds")
    bottom.legend(frameon=False)
    return as_svg(figure, "rounds", "Joint objective and accuracies of the half-steps")

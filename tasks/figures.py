"""The figures of a report, as SVG text to stand inside an HTML page.

Drawn at the width of a telephone, with text kept as text: legible there without zooming, sharp
everywhere else.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.metrics import Reliability

HEAD, PROBE = "#0b6e75", "#b4540a"  # told apart also by the colour-blind, and in grey
FEWEST_ROWS = 10  # in a bin of the reliability diagram; the accuracy of fewer is noise
_INK, _GRID = "#24292f", "#d8dee4"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text, not outlines: smaller, selectable, found by a search
    "svg.hashsalt": "convex-heads",  # the same figure has the same bytes
    # Comes with matplotlib and runs wide: the page may set any other font in its place.
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def accuracy_figure(
    names: Sequence[str], accuracies: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> str:
    """Test accuracies with their intervals, one line each, on a shared axis.

    Points and not bars: a bar would have to start at zero and hide what there is to see.

    Args:
        names: of the methods, top to bottom.
        accuracies: fractions of 1.
        intervals: (low, high) around each.

    Example:
        >>> svg = accuracy_figure(["head"], [0.9], [(0.85, 0.93)])
        >>> svg.startswith("<svg") and "90.0" in svg
        True
    """
    figure, (axes,) = _new(height=0.55 + 0.45 * len(names))
    for row, (accuracy, (low, high)) in enumerate(zip(accuracies, intervals, strict=True)):
        colour = (HEAD, PROBE)[row % 2]
        axes.plot([100 * low, 100 * high], [row, row], color=colour, lw=7, alpha=0.3)
        axes.plot(100 * accuracy, row, "o", color=colour, ms=7)
        axes.annotate(
            f"{100 * accuracy:.1f}",
            (100 * accuracy, row),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=colour,
            weight="bold",
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    axes.set_xlabel("test accuracy in %, with 95 % interval")
    return _svg(figure, "accuracy", "Test accuracy of both heads with 95 % intervals")


def path_figure(path: Sequence[Mapping[str, float]], beta: float, beta_max: float) -> str:
    """Validation accuracy and relative gap along the regularisation path; the choice is marked.

    Args:
        path: points with beta, validation_accuracy and relative_gap.
        beta: the chosen one, in the units of the path.
        beta_max: the smallest beta whose head is zero.

    Example:
        >>> point = {"beta": 0.1, "validation_accuracy": 0.9, "relative_gap": 1e-3}
        >>> "beta" in path_figure([point, point | {"beta": 0.2}], 0.1, 1.0)
        True
    """
    points = sorted(path, key=lambda point: -point["beta"])
    x = [point["beta"] / beta_max for point in points]
    figure, (top, bottom) = _new(height=3.3, rows=2)
    top.plot(x, [100 * point["validation_accuracy"] for point in points], "o-", color=HEAD, ms=4)
    top.set_ylabel("validation acc., %")
    # A gap of zero has no place on a logarithmic axis; float32 does not tell it from this.
    gaps = [max(point["relative_gap"], 1e-9) for point in points]
    bottom.plot(x, gaps, "o-", color=HEAD, ms=4)
    bottom.set_yscale("log")
    # Whole decades, so that there are at least two plain labels.
    bottom.set_ylim(
        10 ** math.floor(math.log10(min(gaps)) - 0.01),
        10 ** math.ceil(math.log10(max(gaps)) + 0.01),
    )
    bottom.set_ylabel("relative gap")
    bottom.set_xlabel("beta / beta_max: less regularised to the right")
    for axes in (top, bottom):
        axes.set_xscale("log")
        axes.axvline(beta / beta_max, color=PROBE, lw=1, ls="--")
    if len(x) > 1:
        bottom.invert_xaxis()
    top.annotate(
        "chosen",
        (beta / beta_max, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        color=PROBE,
    )
    return _svg(figure, "path", "Validation accuracy and relative gap against beta")


def reliability_figure(names: Sequence[str], bins: Sequence[Reliability]) -> str:
    """Accuracy against confidence: on the diagonal, a probability of 80 % is right 80 % of times.

    Args:
        names: of the methods.
        bins: of each, from `tasks.metrics.reliability`.

    Example:
        >>> from tasks.metrics import reliability
        >>> "head" in reliability_figure(["head"], [reliability([[0.9, 0.1]], [0])])
        True
    """
    figure, (top, bottom) = _new(height=3.9, rows=2, ratios=(3, 1))
    top.plot([0, 100], [0, 100], color=_INK, lw=0.8, ls=":")
    lowest = 100.0
    for i, (name, r) in enumerate(zip(names, bins, strict=True)):
        colour, marker = ((HEAD, "o"), (PROBE, "s"))[i % 2]
        there = r.counts >= FEWEST_ROWS
        label = f"{name}, ECE {100 * r.ece:.1f} %"
        confidence, accuracy = 100 * r.confidence[there], 100 * r.accuracy[there]
        lowest = min([lowest, *confidence])
        top.plot(confidence, accuracy, marker + "-", color=colour, ms=4, lw=1, label=label)
        centres = 100 * (r.edges[:-1] + r.edges[1:]) / 2
        shares = 100 * r.counts / r.counts.sum()
        bottom.step(centres, shares, where="mid", color=colour, lw=1)
    top.legend(loc="lower right", frameon=False)
    top.set_xlim(max(0.0, lowest - 10), 102)
    top.set_ylabel("accuracy in the bin, %")
    bottom.set_ylabel("rows, %")
    bottom.set_xlabel("probability of the predicted class, %")
    return _svg(figure, "reliability", "Reliability diagram of both heads")


def _new(
    height: float, rows: int = 1, ratios: Sequence[float] | None = None
) -> tuple[Figure, list]:
    """A figure of its own (no pyplot, whose figures and settings are global)."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.9, height), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=ratios)
    return figure, list(np.ravel(axes))


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element whose ids do not meet those of the page's other figures."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1).strip()

"""The figures of a report, as SVG text to stand inside an HTML page.

Drawn at the width of a telephone, with text kept as text: legible there without zooming, sharp
everywhere else.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.metrics import Reliability

HEAD, PROBE = "#0b6e75", "#b4540a"  # told apart also by the colour-blind, and in grey
FEWEST_ROWS = 10  # in a bin of the reliability diagram; the accuracy of fewer is noise
_MOST_GATES = 64  # lines in the figure of the path; a few kilobytes for every ten
INK, _GRID = "#24292f", "#d8dee4"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text, not outlines: smaller, selectable, found by a search
    "svg.hashsalt": "convex-heads",  # the same figure has the same bytes
    # Comes with matplotlib and runs wide: the page may set any other font in its place.
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
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
    figure, (axes,) = new_figure(height=0.55 + 0.45 * len(names))
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
    return as_svg(figure, "accuracy", "Test accuracy of both heads with 95 % intervals")


def path_figure(path: Sequence[Mapping[str, Any]], beta: float, beta_max: float) -> str:
    """Validation loss, accuracy and the norms of the gates' weights against beta; the choice.

    The band is the standard error of the loss's difference from the lowest: where it reaches down
    to the dotted line, the validation rows cannot tell a head from the best one.

    Args:
        path: points with beta, validation_loss, difference_error, validation_accuracy and
            gate_norms, the always-on gate first.
        beta: the chosen one, in the units of the path.
        beta_max: the smallest beta whose head is zero.

    Example:
        >>> point = {"beta": 0.1, "validation_loss": 0.3, "difference_error": 0.01}
        >>> point |= {"validation_accuracy": 0.9, "gate_norms": [1.0, 0.2]}
        >>> "beta" in path_figure([point, point | {"beta": 0.2}], 0.1, 1.0)
        True
    """
    points = sorted(path, key=lambda point: -point["beta"])
    x = [point["beta"] / beta_max for point in points]
    loss = np.array([point["validation_loss"] for point in points])
    error = np.array([point["difference_error"] for point in points])
    error[~np.isfinite(error)] = np.nan  # of a single row
    norms = np.array([point["gate_norms"] for point in points])
    # Logarithmic, so that the many small gates are seen beside the linear one; a gate that is off
    # has no line. Below a thousandth of the largest norm there is nothing worth seeing.
    norms = np.where(norms > 1e-3 * norms.max(), norms, np.nan)
    figure, (top, middle, bottom) = new_figure(height=5.0, rows=3, ratios=(4, 3, 4))
    top.fill_between(x, loss - error, loss + error, color=HEAD, alpha=0.2, lw=0)
    top.plot(x, loss, "o-", color=HEAD, ms=4)
    top.axhline(loss.min(), color=INK, lw=0.8, ls=":")
    top.set_ylabel("validation loss, nats")
    middle.plot(x, [100 * point["validation_accuracy"] for point in points], "o-", color=HEAD, ms=4)
    middle.set_ylabel("validation acc., %")
    largest = np.argsort(-np.nan_to_num(norms[:, 1:]).max(axis=0), kind="stable")[:_MOST_GATES]
    for gate in largest:
        bottom.plot(x, norms[:, 1 + gate], "-", color=HEAD, lw=0.7, alpha=0.5)
    bottom.plot(x, norms[:, 0], "o-", color=INK, ms=3, lw=1.5)
    bottom.set_yscale("log")
    bottom.set_ylabel("norm of a gate's weights")
    bottom.set_xlabel("beta / beta_max: less regularised to the right")
    on = np.flatnonzero(np.isfinite(norms[:, 0]))
    if len(on):
        bottom.annotate(
            "always-on gate",
            (x[on[-1]], norms[on[-1], 0]),
            xytext=(0, 4),  # above: the other gates are below
            textcoords="offset points",
            ha="right",
            color=INK,
        )
    bottom.margins(y=0.2)
    for axes in (top, middle, bottom):
        axes.set_xscale("log")
        axes.axvline(beta / beta_max, color=PROBE, lw=1, ls="--")
    if len(x) > 1:
        bottom.invert_xaxis()
    side = -1 if beta / beta_max < x[0] else 1  # away from the labels of the axis
    top.annotate(
        "chosen",
        (beta / beta_max, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4 * side, -2),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="top",
        color=PROBE,
    )
    return as_svg(figure, "path", "Validation loss, accuracy and gate norms against beta")


def convergence_figure(
    solves: Sequence[tuple[str, Sequence[Mapping[str, float]]]], tolerance: float
) -> str:
    """The proven relative gap while the head was fitted, against data passes and seconds.

    Against passes alone where no time is worth an axis: all of it went by before the first bound.

    Args:
        solves: name and history of every solve in order of time, the last one the final solve;
            records with passes, seconds (from the beginning of their solve) and relative_gap.
        tolerance: gap that the final solve was asked for.

    Example:
        >>> record = {"passes": 8.0, "seconds": 0.5, "relative_gap": 0.3}
        >>> history = [record, record | {"passes": 16.0, "relative_gap": 0.01}]
        >>> "data passes" in convergence_figure([("final", history)], 0.02)
        True
    """
    quantities = ("passes", "seconds") if _takes_time(solves) else ("passes",)
    rows = len(quantities)
    figure, panels = new_figure(height=1.95 * rows, rows=rows, sharex=False)
    lowest = max(1e-9, min(r["relative_gap"] for _, history in solves for r in history))
    for axes, quantity in zip(panels, quantities, strict=True):
        done = 0.0
        for k, (name, history) in enumerate(solves):
            final = k == len(solves) - 1
            x = [done + record[quantity] for record in history]
            # A gap above one proves nothing; zero has no place on a logarithmic axis.
            gap = [min(1.0, max(record["relative_gap"], 1e-9)) for record in history]
            colour = PROBE if final else HEAD
            axes.plot(x, gap, "o-", color=colour, ms=3, lw=1)
            if quantity == "passes":
                axes.annotate(
                    name,
                    (x[0], gap[0]),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,  # solves that start warm are short, and close to each other
                    size="small",
                    color=colour,
                )
            done = x[-1]
        axes.set_yscale("log")
        axes.axhline(tolerance, color=INK, lw=0.8, ls=":")
        # Whole decades, so that there are at least two plain labels.
        axes.set_ylim(10 ** math.floor(math.log10(min(lowest, tolerance)) - 0.01), 1.5)
        axes.set_xlim(0, 1.05 * done if done > 0 else 1)
        axes.set_ylabel("relative gap")
    panels[0].set_xlabel("data passes")
    if rows > 1:
        panels[1].set_xlabel("seconds in the solves, compilation included")
    return as_svg(
        figure,
        "convergence",
        "Relative gap against " + ("data passes and seconds" if rows > 1 else "data passes"),
    )


def has_lines(solves: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> bool:
    """Whether there is a line to draw: a solve with two bounds, and three of them in all."""
    lengths = [len(history) for _, history in solves]
    return max(lengths, default=0) > 1 and sum(lengths) > 2


def _takes_time(solves: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> bool:
    first = solves[0][1][0]["seconds"]
    total = sum(history[-1]["seconds"] for _, history in solves)
    return total > 1.25 * first


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
    figure, (top, bottom) = new_figure(height=3.9, rows=2, ratios=(3, 1))
    top.plot([0, 100], [0, 100], color=INK, lw=0.8, ls=":")
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
    return as_svg(figure, "reliability", "Reliability diagram of both heads")


def new_figure(
    height: float,
    rows: int = 1,
    ratios: Sequence[float] | None = None,
    *,
    columns: int = 1,
    sharex: bool = True,
    sharey: bool = False,
) -> tuple[Figure, list]:
    """A figure of its own (no pyplot, whose figures and settings are global)."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9, height), layout="constrained")
        axes = figure.subplots(
            rows, columns, sharex=sharex, sharey=sharey, squeeze=False, height_ratios=ratios
        )
    return figure, list(np.ravel(axes))


def as_file(svg: str) -> str:
    r"""A figure as a file of its own: on white, for its ink is dark, and the page around may be.

    >>> as_file('<svg width="9pt"></svg>')
    '<svg style="background: #fff" width="9pt"></svg>\n'
    """
    return svg.replace("<svg ", '<svg style="background: #fff" ', 1) + "\n"


def as_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element whose ids do not meet those of the page's other figures.

    Its ground is transparent: the page gives it one.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Text stays text, and whoever shows it has a font for it: that the font it is measured with
        # lacks a letter is nobody's concern.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1).strip()

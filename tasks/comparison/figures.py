"""The figures of a comparison, as SVG text; see `tasks.reports.figures` for how they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.reports.figures import FEWEST_ROWS, INK, STYLE, as_svg, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MOST_CLASSES",
    "confusion_figure",
    "curves_figure",
    "lines_figure",
    "reliability_grid",
    "seconds_figure",
]

MOST_CLASSES = 30  # in the figure of the confusion matrix
_NUMBERED = 12  # classes up to which its cells have numbers
_MARKERS = "osD^v<>Pp*h"
_SOFT = "#8c959f"


def seconds_figure(
    names: Sequence[str],
    seconds: Sequence[float],
    accuracies: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    colours: Sequence[str],
    what: str = "test accuracy, %",
) -> str:
    """Test accuracy against wall clock, tuning included: upper left is better.

    Args:
        names: of the methods.
        seconds: of each, logarithmic axis.
        accuracies: fractions of 1.
        intervals: (low, high) around each.
        colours: of each.
        what: the accuracy is.

    Example:
        >>> svg = seconds_figure(["a"], [2.0], [0.9], [(0.88, 0.92)], ["#0b6e75"])
        >>> svg.startswith("<svg") and "seconds" in svg
        True
    """
    figure, (axes,) = new_figure(height=3.9)
    x = np.maximum(seconds, 1e-3)
    y = 100 * np.asarray(accuracies)
    for at, accuracy, (low, high), colour in zip(x, y, intervals, colours, strict=True):
        axes.plot([at, at], [100 * low, 100 * high], color=colour, lw=5, alpha=0.2)
        axes.plot(at, accuracy, "o", color=colour, ms=6)
    _seconds_axis(axes, x)
    axes.margins(y=0.12)
    axes.set_xlabel("seconds, tuning included (logarithmic)")
    axes.set_ylabel(what)
    label_points(figure, axes, names, list(zip(x, y, strict=True)), colours)
    return as_svg(figure, "seconds", "Test accuracy of every method against its seconds")


def _seconds_axis(axes: Axes, seconds: Any) -> None:
    """Logarithmic, with room for names at its sides and few plain numbers."""
    low, high = np.log10(np.min(seconds)), np.log10(np.max(seconds))
    room = 0.2 * max(high - low, 0.5)
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - room), 10 ** (high + room))
    wide = high - low + 2 * room
    steps = (1, 2, 5) if wide < 2.3 else (1, 3) if wide < 3.5 else (1,)
    decades = range(int(np.floor(low - room)), int(np.ceil(high + room)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    ticks = [t for t in ticks if 10 ** (low - room) <= t <= 10 ** (high + room)]
    axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axes.minorticks_off()


def label_points(
    figure: Figure,
    axes: Axes,
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    colours: Sequence[str],
) -> list[Any]:
    """Write each name where it covers no point and no other name, with a thin line if it is far.

    Places around each point are tried from near to far, those of the most crowded points first.

    Returns:
        The texts, in the order of the names.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    with matplotlib.rc_context(STYLE):
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what was measured stays where it is
        pixel = figure.dpi / 72
        at = axes.transData.transform(np.array(points, float))
        inside = axes.get_window_extent(renderer)
        marks = [
            Bbox.from_bounds(x - 4 * pixel, y - 4 * pixel, 8 * pixel, 8 * pixel) for x, y in at
        ]
        gaps = np.linalg.norm(at[:, None] - at[None], axis=2)
        order = np.argsort(np.sort(gaps, axis=1)[:, : min(4, len(at))].sum(axis=1), kind="stable")
        taken: list[Bbox] = []
        texts: list[Any] = [None] * len(names)
        for i in order.tolist():
            text = axes.annotate(
                str(names[i]),
                points[i],
                xytext=(0, 0),
                textcoords="offset points",
                ha="center",
                va="center",
                color=colours[i],
            )
            size = text.get_window_extent(renderer)
            best: tuple[float, Any, Any] = (np.inf, None, None)
            for distance in (2, 9, 18, 28, 40, 54):
                for angle in np.radians([90, 270, 0, 180, 45, 135, 315, 225, 20, 160, 340, 200]):
                    across, up = np.cos(angle), np.sin(angle)
                    dx = across * (size.width / 2 + (distance + 4) * pixel)
                    dy = up * (size.height / 2 + (distance + 3) * pixel)
                    box = Bbox.from_bounds(
                        at[i, 0] + dx - size.width / 2,
                        at[i, 1] + dy - size.height / 2,
                        size.width,
                        size.height,
                    )
                    out = max(0.0, inside.x0 - box.x0) + max(0.0, box.x1 - inside.x1)
                    out += max(0.0, inside.y0 - box.y0) + max(0.0, box.y1 - inside.y1)
                    covered = sum(map(lambda other: _overlap(box, other), (*taken, *marks)))
                    cost = 1e3 * covered + 1e2 * out + distance
                    if cost < best[0]:
                        best = cost, (dx / pixel, dy / pixel, distance), box
            (dx, dy, distance), box = best[1], best[2]
            text.set_position((dx, dy))
            taken.append(box)
            texts[i] = text
            if distance > 9:
                end = axes.transData.inverted().transform(
                    (np.clip(at[i, 0], box.x0, box.x1), np.clip(at[i, 1], box.y0, box.y1))
                )
                axes.plot(*zip(points[i], end, strict=True), color=colours[i], lw=0.6, alpha=0.7)
    return texts


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0


def curves_figure(
    curves: Mapping[str, Sequence[tuple[int, float, float, float]]],
    colours: Mapping[str, str],
    quantity: str,
) -> str:
    """Test accuracy against how much there was to learn from, a line for each method.

    Args:
        curves: points (size, accuracy, low, high) of each method.
        colours: of each.
        quantity: what the sizes count, for the axis.

    Example:
        >>> points = [(10, 0.5, 0.4, 0.6), (20, 0.6, 0.5, 0.7)]
        >>> "training rows" in curves_figure({"a": points}, {"a": "#0b6e75"}, "training rows")
        True
    """
    figure, (axes,) = new_figure(height=4.2)
    for number, (name, points) in enumerate(curves.items()):
        x, y, low, high = np.array(points, float).T
        marker = _MARKERS[number % len(_MARKERS)]
        axes.fill_between(x, 100 * low, 100 * high, color=colours[name], alpha=0.08, lw=0)
        axes.plot(x, 100 * y, marker + "-", color=colours[name], ms=4, lw=1, label=name)
    axes.set_xscale("log")
    sizes = sorted({point[0] for points in curves.values() for point in points})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(quantity)
    axes.set_ylabel("test accuracy, %")
    _legend(figure, axes)
    return as_svg(figure, "curves", f"Test accuracy of every method against {quantity}")


def lines_figure(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    colours: Mapping[str, str],
    *,
    name: str,
    quantity: str,
    what: str = "accuracy, %",
    logarithmic: bool = False,
) -> str:
    """Accuracies of several methods against one quantity.

    Args:
        lines: x and accuracy (fractions of 1) of each method.
        colours: of each.
        name: of the figure, one word, unique in its page.
        quantity: what x is.
        what: what y is.
        logarithmic: the axis of x.

    Example:
        >>> "noise" in lines_figure({"kNN": ([0, 1], [0.9, 0.5])}, {"kNN": "#0b6e75"},
        ...                         name="noise", quantity="noise, standard deviations")
        True
    """
    figure, (axes,) = new_figure(height=4.2 if len(lines) > 1 else 3.2)
    for number, (title, (x, y)) in enumerate(lines.items()):
        marker = _MARKERS[number % len(_MARKERS)] if len(lines) > 1 else ""
        axes.plot(
            x, 100 * np.asarray(y), marker + "-", color=colours[title], ms=4, lw=1, label=title
        )
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(quantity)
    axes.set_ylabel(what)
    _legend(figure, axes)
    return as_svg(figure, name, f"{what} against {quantity}")


def reliability_grid(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A small reliability diagram for every method: as it is used, and before the temperature.

    Args:
        found: by title, {reliability, uncalibrated_reliability, ece}, the first two with counts,
            confidence and accuracy of every bin; the second None where nothing was calibrated.

    Example:
        >>> bins = {"counts": [20, 20], "confidence": [0.4, 0.8], "accuracy": [0.4, 0.7]}
        >>> svg = reliability_grid({"kNN": {"reliability": bins, "ece": 0.05,
        ...                                 "uncalibrated_reliability": None}})
        >>> "kNN" in svg
        True
    """
    across = min(3, len(found))
    down = -(-len(found) // across)
    figure, panels = new_figure(height=0.5 + 1.35 * down, rows=down, columns=across, sharey=True)
    for axes, (title, each) in zip(panels, found.items(), strict=False):
        axes.plot([0, 100], [0, 100], color=INK, lw=0.7, ls=":")
        for bins, colour, width in (
            (each["uncalibrated_reliability"], _SOFT, 1.0),
            (each["reliability"], "#0b6e75", 1.6),
        ):
            if bins is None:
                continue
            there = np.array(bins["counts"]) >= FEWEST_ROWS
            x, y = (100 * np.array(bins[k], float)[there] for k in ("confidence", "accuracy"))
            axes.plot(x, y, "o-", color=colour, ms=2.5, lw=width)
        axes.set_title(title, size="medium", color=INK)
        axes.text(98, 4, f"ECE {100 * each['ece']:.1f}", ha="right", size="small", color=INK)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xticks([0, 50, 100])
        axes.set_yticks([0, 50, 100])
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    figure.supxlabel("probability of the predicted class, %", size="medium", color=INK)
    figure.supylabel("accuracy, %", size="medium", color=INK)
    return as_svg(figure, "calibration", "Reliability diagram of every method")


def confusion_figure(counts: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    """Where the rows of every class went: rows are labels, columns predictions, shares in %.

    Args:
        counts: (C, C), C at most 30.
        classes: C names; long ones are cut.

    Example:
        >>> "yes" in confusion_figure([[9.0, 1.0], [2.0, 8.0]], ["no", "yes"])
        True
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    table = np.array(counts, float)
    share = 100 * table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12)
    C = len(classes)
    names = [name if len(name) <= 16 else name[:15] + "…" for name in classes]
    figure, (axes,) = new_figure(height=4.2 if C > 3 else 3.8)
    colours = LinearSegmentedColormap.from_list("share", ["#ffffff", "#0b6e75"])
    # The square root: the few rows that went astray are what is looked for.
    axes.pcolormesh(share, cmap=colours, norm=PowerNorm(0.5, 0, 100), edgecolors="#d8dee4", lw=0.3)
    axes.grid(visible=False)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    size: Any = "small" if C <= 14 else "xx-small"
    axes.set_xticks(np.arange(C) + 0.5, names, rotation=90 if C > 3 else 0, size=size)
    axes.set_yticks(np.arange(C) + 0.5, names, size=size)
    axes.tick_params(length=0)
    for i in range(C if C <= _NUMBERED else 0):
        for j in range(C):
            if table[i, j] > 0:
                axes.text(
                    j + 0.5,
                    i + 0.5,
                    f"{share[i, j]:.0f}" if share[i, j] >= 0.5 else "<1",
                    ha="center",
                    va="center",
                    size="small",
                    color="#ffffff" if share[i, j] > 35 else INK,
                )
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    return as_svg(figure, "confusion", "Confusion matrix in % of the rows of each label")


def _legend(figure: Figure, axes: Axes) -> None:
    """Under the axes: inside them there are lines everywhere."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", frameon=False, ncols=3, fontsize="small"
    )

"""A saved head on other labelled rows: metrics with intervals, and the same by slices."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from extractors.errors import InputError
from tasks.config_saved import EvaluateConfig
from tasks.console import Reporter
from tasks.data.classes import left_out_before, left_out_note
from tasks.data.columns import ColumnChoice, columns_before
from tasks.data.inputs import Items
from tasks.data.labelled import Labelled, class_numbers, read_labelled
from tasks.data.raw import WHOLE
from tasks.metrics import evaluate
from tasks.predict import label
from tasks.records import EvaluateRecord

DRAWS = 1000
_MOST_SLICES = 50
_MOST_NUMBERS = 12  # more distinct numbers than these are cut into quarters
_BOOTSTRAPPED = ("macro_f1", "balanced_accuracy", "nll", "ece")


def run_evaluate(config: EvaluateConfig, *, reporter: Reporter) -> EvaluateRecord:
    """Measures a head on a labelled data set.

    Args:
        config: which head, which rows, which slices.
        reporter: hears of progress.

    Raises:
        InputError: rows that cannot be used, or labels that the head does not have.
    """
    from tasks.pipeline import ConvexHeadPipeline

    began = time.perf_counter()
    pipeline = ConvexHeadPipeline.from_pretrained(
        config.artefact,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        backbone=config.backbone,
    )
    choice = ColumnChoice(
        config.text_column,
        config.image_column,
        config.label_column,
        config.features_column,
        columns_before(pipeline.facts),
    )
    rows = read_labelled(
        config.data,
        pipeline.modality,
        data_root=config.data_root,
        choice=choice,
        split=config.split,
        by=config.by,
        classes=config.classes,
        left_out=left_out_before(pipeline.facts),
        on_bad_row=config.on_bad_row,
    )
    y = class_numbers(rows, pipeline.classes)
    if rows.left_out and not config.classes:
        reporter.note(left_out_note(rows.left_out))
    if own := own_rows_note(rows, pipeline.facts.get("record") or {}):
        reporter.note(own)
    chunks = label(
        pipeline,
        Items(rows.ids, rows.inputs),
        on_bad_row=config.on_bad_row,
        reporter=reporter,
    )
    skipped = dict(rows.skipped)
    blocks = []
    for chunk in chunks:
        blocks.append(chunk.probabilities)
        skipped |= chunk.skipped
    p = np.concatenate(blocks)
    kept = np.isfinite(p.max(axis=1))
    if not kept.any():
        raise InputError(f"no row of {rows.name} can be encoded")
    if skipped:
        row, reason = next(iter(skipped.items()))
        reporter.note(f"rows left out: {len(skipped)}; the first: {row} ({reason})")
    p, y = p[kept], y[kept]
    slices = []
    if rows.slices is not None:
        values = [value for value, keep in zip(rows.slices, kept, strict=True) if keep]
        for name, members in slices_of(values, config.by or ""):
            slices.append({"slice": name, **measure(p[members], y[members], config.seed)})
    absent = [name for c, name in enumerate(pipeline.classes) if not (y == c).any()]
    return EvaluateRecord(
        artefact=config.artefact,
        data=rows.name,
        split=rows.split,
        classes=pipeline.classes,
        classes_without_rows=tuple(absent),
        left_out_classes=rows.left_out,
        **measure(p, y, config.seed),
        by=config.by,
        slices=slices,
        skipped=[{"id": row, "reason": reason} for row, reason in skipped.items()],
        seconds=round(time.perf_counter() - began, 3),
        seed=config.seed,
    )


def own_rows_note(rows: Labelled, record: Mapping[str, Any]) -> str | None:
    """What to know of a file that was divided when the head was fitted, and is measured whole.

    >>> file = Labelled("reviews", "all", ["0", "1", "2"], list("abc"), list("xyx"), None, (), ())
    >>> fitted = {"task": "reviews", "n_train": 1, "n_validation": 1, "n_test": 1}
    >>> own_rows_note(file, {**fitted, "test_accuracy": 0.925})
    'of these 3 rows the head was fitted on 2, it seems: on the others its accuracy was 0.9250'
    """
    fitted = record.get("n_train", 0) + record.get("n_validation", 0)
    n = fitted + record.get("n_test", 0)
    if (rows.name, rows.split, len(rows.ids)) != (record.get("task"), WHOLE, n):
        return None
    return (
        f"of these {n:,} rows the head was fitted on {fitted:,}, it seems: on the others its "
        f"accuracy was {record['test_accuracy']:.4f}"
    )


def measure(p: np.ndarray, y: np.ndarray, seed: int) -> dict[str, Any]:
    """Metrics of probabilities (n, C) and labels (n,), each with a 95% interval.

    That of the accuracy is Wilson's, the others are percentiles of 1000 draws of rows with
    replacement (200 beyond 20,000 rows).

    >>> found = measure(np.array([[0.9, 0.1], [0.2, 0.8]] * 8), np.array([0, 1] * 8), 0)
    >>> found["accuracy"], found["n"], found["nll_interval"][1] < 0.3
    (1.0, 16, True)
    """
    whole = evaluate(p, y)
    found: dict[str, Any] = {
        "n": whole.n,
        "accuracy": whole.accuracy,
        "accuracy_interval": whole.accuracy_interval,
    }
    rng = np.random.default_rng(seed)
    draws = DRAWS if len(y) <= 20_000 else 200
    figures = _Figures(p, y)
    drawn = np.array([figures.of(rng.integers(len(y), size=len(y))) for _ in range(draws)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    for k, name in enumerate(_BOOTSTRAPPED):
        found[name] = getattr(whole, name)
        found[f"{name}_interval"] = (float(low[k]), float(high[k]))
    return found


class _Figures:
    """The figures of `evaluate` for many draws of the same rows, from counts."""

    def __init__(self, p: np.ndarray, y: np.ndarray) -> None:
        p = np.asarray(p, np.float64)
        self._y, self._C = y, p.shape[1]
        self._predicted = p.argmax(axis=1)
        self._top = p.max(axis=1)
        of_label = p[np.arange(len(y)), y] / p.sum(axis=1)
        self._loss = -np.log(np.clip(of_label, np.finfo(np.float64).eps, 1))
        self._bin = np.clip(np.ceil(self._top * 15).astype(int) - 1, 0, 14)
        self._right = self._predicted == y

    def of(self, rows: np.ndarray) -> tuple[float, ...]:
        y, q = self._y[rows], self._predicted[rows]
        labels = np.bincount(y, minlength=self._C).astype(float)
        answers = np.bincount(q, minlength=self._C).astype(float)
        right = np.bincount(y[self._right[rows]], minlength=self._C).astype(float)
        some = labels + answers > 0
        f1 = (2 * right[some] / (labels + answers)[some]).mean()
        there = labels > 0
        recall = (right[there] / labels[there]).mean()
        excess = np.bincount(
            self._bin[rows], weights=self._top[rows] - self._right[rows], minlength=15
        )
        return f1, recall, float(self._loss[rows].mean()), float(np.abs(excess).sum() / len(rows))


def slices_of(values: Sequence[Any], column: str) -> list[tuple[str, np.ndarray]]:
    """Groups of rows by the value of a column; many different numbers become four ranges.

    >>> [(name, rows.tolist()) for name, rows in slices_of(["b", "a", None, "b"], "source")]
    [('a', [1]), ('b', [0, 3]), ('(missing)', [2])]
    """
    missing = np.array([value is None or value == "" for value in values])
    numbers = _numbers([value for value, no in zip(values, missing, strict=True) if not no])
    groups: list[tuple[str, np.ndarray]] = []
    if numbers is not None and len(np.unique(numbers)) > _MOST_NUMBERS:
        at = np.flatnonzero(~missing)
        edges = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
        for k, (low, high) in enumerate(pairwise(edges)):
            inside = (numbers >= low) & ((numbers < high) | (k == len(edges) - 2))
            if inside.any():
                groups.append((f"{low:g} to {high:g}", at[inside]))
    else:
        names = sorted({str(v) for v, no in zip(values, missing, strict=True) if not no})
        if len(names) > _MOST_SLICES:
            raise InputError(
                f"--by {column}: {len(names)} different values are too many for slices (at most "
                f"{_MOST_SLICES}, or numbers)"
            )
        place = {name: [] for name in names}
        for i, value in enumerate(values):
            if not missing[i]:
                place[str(value)].append(i)
        groups = [(name, np.array(rows)) for name, rows in place.items()]
    if missing.any():
        groups.append(("(missing)", np.flatnonzero(missing)))
    return groups


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    try:
        found = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        return None
    return found if len(found) and np.isfinite(found).all() else None

"""Finished records of a comparison, taken together: means, tests, words, and what can be relied on.

Everything here comes from the ledger alone, so that it can be made again at any time.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.comparison.ledger import Ledger, Trial, groups
from tasks.comparison.paired import Comparison, compare_right
from tasks.comparison.verdict import order, verdict
from tasks.methods import METHODS

__all__ = ["summarise", "trust_of"]

Group = tuple[str, int | None, int | None]


def summarise(
    ledger: Ledger,
    labels: np.ndarray,
    seeds: Sequence[int],
    skipped: dict[str, str],
    sizes: Sequence[tuple[int | None, int | None]],
    backbones: Sequence[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows, pairs and verdicts of what is finished; methods that are not finished are skipped."""
    rows, pairs, words = [], [], []
    for group in groups(ledger.records):
        if group[0] not in backbones or group[1:] not in sizes:
            continue  # of an earlier run with other options
        comparison, records = _group(ledger, labels, seeds, group, skipped)
        if comparison is None:
            continue
        names = dict(zip(("backbone", "shots", "train_rows"), group, strict=True))
        table: list[dict[str, Any]] = [
            {**_row(name, comparison, of), **names} for name, of in records.items()
        ]
        rows += table
        pairs += [
            names | dataclasses.asdict(pair) | {"better": pair.better} for pair in comparison.pairs
        ]
        seconds = {row["method"]: row["seconds_warm"] for row in table}
        said = verdict(comparison, seconds, skipped)
        if labels.ndim == 2:
            said.append("Points count test rows whose whole set of labels is right.")
        words.append(names | {"text": said})
    return rows, pairs, words


def _group(
    ledger: Ledger,
    labels: np.ndarray,
    seeds: Sequence[int],
    group: Group,
    skipped: dict[str, str],
) -> tuple[Comparison | None, dict[str, list[dict[str, Any]]]]:
    there = {t.method for t in ledger.records if (t.backbone, t.shots, t.train_rows) == group}
    records, right = {}, {}
    for method in order([name for name in there if name in METHODS]):
        trials = [Trial(method, *group, seed) for seed in seeds]
        done = [trial for trial in trials if trial in ledger.records]
        if len(done) < len(trials):
            skipped.setdefault(method, f"{len(done)} of {len(trials)} seeds are finished")
            continue
        records[method] = [ledger.records[trial] for trial in trials]
        right[method] = np.stack([_right(ledger, trial, labels) for trial in trials])
    return (compare_right(right) if right else None), records


def _right(ledger: Ledger, trial: Trial, labels: np.ndarray) -> np.ndarray:
    """Which test rows (n,) are right, of labels (n,) or sets of labels (n, C)."""
    p = ledger.predictions(trial)
    if labels.ndim == 1:
        return p.argmax(axis=1) == labels
    return ((p >= ledger.records[trial]["threshold"]) == labels).all(axis=1)


def _row(name: str, comparison: Comparison, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def mean(key: str) -> float:
        return float(np.mean([record[key] for record in records]))

    found = comparison.means[name]
    cold = [record["seconds"] for record in records if record["cold"]]
    notes = dict.fromkeys(note for record in records for note in record["notes"])
    return {
        "method": name,
        "title": METHODS[name].title,
        "seeds": len(records),
        "n_train": records[0]["n_train"],
        "test_accuracy": found.accuracy,
        "standard_error": found.standard_error,
        "interval": found.interval,
        **{
            key: mean(key)
            for key in (
                "validation_accuracy",
                "test_micro_f1",
                "test_macro_f1",
                "test_balanced_accuracy",
                "test_average_precision",
                "test_nll",
                "test_ece",
            )
            if key in records[0]
        },
        "seconds": mean("seconds"),
        "seconds_cold": cold[0] if cold else None,
        # The median: one seed that waited for another program must not decide a ratio.
        "seconds_warm": float(np.median([record["seconds_warm"] for record in records])),
        "seconds_predict": mean("seconds_predict"),
        "peak_rss_mb": max(record["peak_rss_mb"] for record in records),
        "settings_tried": max(record["settings_tried"] for record in records),
        "parameters": max(record["parameters"] for record in records),
        "chosen": records[0]["chosen"],
        "notes": list(notes),
    }


def trust_of(ledger: Ledger, row: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """What `CompareRecord.trust` says of a row of the table."""
    where = {name: row[name] for name in ("method", "backbone", "shots", "train_rows")}
    records = [ledger.records[Trial(**where, seed=seed)] for seed in seeds]
    first = records[0]

    def mean(*path: str) -> Any:
        """Of numbers, or of lists number by number; None where a seed has none."""
        values = []
        for record in records:
            value: Any = record
            for name in path:
                value = None if value is None else value.get(name)
            values.append(value)
        if any(value is None for value in values):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a bin that is empty in every seed
            return np.nanmean(np.array(values, np.float64), axis=0).tolist()

    def curve(name: str, x: str, *y: str) -> dict[str, Any] | None:
        if not first.get(name):
            return None
        return {x: first[name][x], **{each: mean(name, each) for each in y}}

    return where | {
        "temperature": mean("temperature"),
        "nll": mean("test_nll"),
        "ece": mean("test_ece"),
        "uncalibrated_nll": mean("uncalibrated_nll"),
        "uncalibrated_ece": mean("uncalibrated_ece"),
        "reliability": _pooled([record.get("reliability") for record in records]),
        "uncalibrated_reliability": _pooled(
            [record.get("uncalibrated_reliability") for record in records]
        ),
        "selective": curve("selective", "coverage", "accuracy", "aurc"),
        "noise": curve("noise", "sigma", "accuracy", "rows"),
        "certified": curve("certified", "radius", "accuracy", "median_radius", "rows"),
        **{name: first.get(name) for name in ("path", "tolerance", "convergence")},
    }


def _pooled(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The bins of all seeds together, each seed's rows counted."""
    if any(each is None for each in found):
        return None
    bins = [{name: np.array(v, np.float64) for name, v in each.items()} for each in found if each]
    counts = sum(b["counts"] for b in bins)
    pooled: dict[str, Any] = {"counts": np.asarray(counts).astype(int).tolist()}
    for name in ("confidence", "accuracy"):
        total = sum(
            np.where(b["counts"] > 0, b["counts"] * np.nan_to_num(b[name]), 0) for b in bins
        )
        pooled[name] = np.where(counts > 0, total / np.maximum(counts, 1), np.nan).tolist()
    return pooled

"""`fit --dry-run`: what a fit would cost, predicted from the same fit on some of the rows.

How many passes a path takes depends on the data, so the path is solved: on at most `PILOT_ROWS`
rows, with all of its options. The passes are those of the pilot times the ratio of rows to the
power 0.25, at most twice as many. Its seconds are scaled by the rows too: those of a second time,
when everything is imported and compiled; what the first one took beside is added once. Where all
rows would be solved in their span (:mod:`convex_heads.kernel`), steps grow as the root of the rows,
and what works on pairs of rows as their square; where only the pilot's would, it is solved on all
gates as they will be. On fewer rows the pilot is the fit itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from extractors.base import Extractor
from extractors.errors import InputError
from extractors.store import StoredRows
from tasks.compile_clock import compile_clock
from tasks.config import FitConfig
from tasks.console import Reporter, duration
from tasks.extraction import Extracted, extract_features
from tasks.fit_head import fit_head
from tasks.memory import peak_rss_mb
from tasks.streaming import is_larger_than_memory

if TYPE_CHECKING:
    from convex_heads import ConvexHeadClassifier

PILOT_ROWS = 4096
# Passes grow with the rows: not at all (synthetic mixtures) to as their root (wordnet6); steps in
# the span of the rows as their root and more (cifar10).
_GROWTH, _SPAN_GROWTH, _MOST = 0.25, 0.5, 2.0


@dataclass(frozen=True)
class Forecast:
    """What a fit is expected to cost.

    Attributes:
        task: the data set.
        backbone: of its features.
        n_train: rows that would be fitted; dim, n_classes and n_gates: as in the record of `fit`.
        passes: data passes, of the path and of the final solve.
        flops: operations of these passes; in less than float32 each is twice as many.
        bytes: that they move between memory and processor.
        peak_rss_mb: peak memory of the process here; `device_mb` that of the program and the
            solver's state, wherever they are.
        temporary_mb: of the file that the features of a fit go to where they are larger than the
            memory here, which `peak_rss_mb` does not count; 0 where they are not.
        seconds: `fit` (without compiling) and `compile` (at most: what was compiled before is
            kept), or with `machine` `fit` there, which is computed, not measured.
        machine: that was described; None is this one.
        fits: whether program and state fit into the memory of that machine; None here.
        pilot: rows, passes and seconds of the fit that this is predicted from.
    """

    task: str
    backbone: str
    n_train: int
    dim: int
    n_classes: int
    n_gates: int
    passes: int
    flops: float
    bytes: float
    peak_rss_mb: float
    device_mb: float
    temporary_mb: float
    seconds: dict[str, float]
    machine: str | None
    fits: bool | None
    pilot: dict[str, float]


def forecast(
    config: FitConfig, *, reporter: Reporter, extractor: Extractor | None = None
) -> Forecast:
    """Predicts what `run_fit` would cost on features that are stored already.

    Raises:
        InputError: options or data that cannot be used, a machine that is not known, or features
            that are not there yet.
    """
    from convex_heads import cost, kernel

    described = None
    if config.machine is not None:
        try:
            described = cost.machine(config.machine)
        except ValueError as error:
            raise InputError(f"--as: {error}") from error
    found = extract_features(config, reporter, extractor, may_extract=False)
    train, validation = (found.rows(split, streamed=True) for split in ("train", "validation"))
    n = len(train.ids)
    rows = _some(train.labels, PILOT_ROWS, config.seed)
    share = len(rows) / n
    judges = _some(validation.labels, max(1, round(share * len(validation.ids))), config.seed)
    parts = _pick(train, rows), _pick(validation, judges)
    pilot, seconds, compiling = _solved(config, found, parts, reporter)
    outputs = len(np.atleast_1d(pilot.network_.offset))
    whole = cost.Shape(n, found.extraction.dim + 1, len(pilot.gates_), outputs)
    unlike = pilot.solver_ == "kernel" and not kernel.is_faster(n, whole.weights)
    if unlike and config.solver == "auto":
        config = replace(config, solver="subspace")
        pilot, seconds, compiling = _solved(config, found, parts, reporter)
    part = whole._replace(n=len(rows))
    streamed = is_larger_than_memory(found)
    in_span = pilot.solver_ == "kernel"
    memory, before = (s.span_memory if in_span else s.memory for s in (whole, part))
    held = whole.streamed_memory if streamed else memory
    growth = min(_MOST, share ** -(_SPAN_GROWTH if in_span else _GROWTH))
    if in_span:
        solves = len(pilot.path_) + 1
        steps = part.span_steps(pilot.passes_, solves)
        passes = whole.span_passes(growth * steps, solves)
        longer = sum(whole.span_operations(growth * steps, solves))
        longer /= sum(part.span_operations(steps, solves))
    else:
        passes = growth * pilot.passes_
        longer = growth / share
    # In less than float32 weights and residuals go in two terms: such a pass is two.
    products = passes + growth * pilot.reduced_passes_
    if described is None:
        # The first time imports, loads and warms up as well, which does not grow with the rows.
        work = _solved(config, found, parts, reporter).seconds
        start = max(0.0, seconds - compiling - work)
        told = {
            "fit": round(start + work * longer, 2),
            "compile": round(compiling, 2),
        }
    else:
        told = {"fit": round(described.seconds(whole, products), 3)}
    return Forecast(
        task=found.dataset.name,
        backbone=found.extractor.name,
        n_train=n,
        dim=found.extraction.dim,
        n_classes=len(found.dataset.classes),
        n_gates=whole.P,
        passes=int(np.ceil(passes)),
        flops=products * whole.flops_per_pass,
        bytes=products * whole.bytes_per_pass,
        peak_rss_mb=round(peak_rss_mb() + max(0, held - before) / 2**20, 1),
        device_mb=round(memory / 2**20, 1),
        temporary_mb=round(whole.features / 2**20, 1) if streamed else 0.0,
        seconds=told,
        machine=None if described is None else f"{described.count}x{described.name}",
        fits=None if described is None else memory < described.memory,
        pilot={
            "rows": len(rows),
            "passes": float(pilot.passes_),
            "seconds": round(seconds, 2),
        },
    )


class _Pilot(NamedTuple):
    """A fit with its seconds, and those of them that it compiled."""

    head: ConvexHeadClassifier
    seconds: float
    compiling: float


def _solved(
    config: FitConfig, found: Extracted, parts: tuple[StoredRows, StoredRows], on: Reporter
) -> _Pilot:
    began = time.perf_counter()
    with compile_clock() as compiling:
        head = fit_head(config, found, *parts, on)
    return _Pilot(head, time.perf_counter() - began, compiling.seconds)


def _some(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Positions of at most so many rows, in order; every class keeps one."""
    if len(labels) <= most:
        return np.arange(len(labels))
    drawn = np.random.default_rng(seed).permutation(len(labels))[:most]
    return np.union1d(drawn, np.unique(labels, return_index=True)[1])


def _pick(rows: StoredRows, places: np.ndarray) -> StoredRows:
    return rows._replace(
        ids=[rows.ids[i] for i in places],
        labels=rows.labels[places],
        features=rows.features[places],
    )


def show_forecast(told: Forecast) -> None:
    """The figures for people."""
    where = f"on {told.machine} (computed from its data sheet)" if told.machine else "here"
    print(
        f"{told.task}: {told.n_train:,} rows, {told.dim} features of {told.backbone}, "
        f"{told.n_classes} classes, {told.n_gates} gates\n"
        f"predicted from {told.pilot['rows']:,.0f} rows, "
        f"which took {duration(told.pilot['seconds'])}\n"
        f"passes     {told.passes}\n"
        f"FLOPs      {told.flops:.2g}\n"
        f"bytes      {told.bytes:.2g}\n"
        f"memory     {told.device_mb:,.0f} MB of program and solver; {told.peak_rss_mb:,.0f} MB of "
        "this process\n"
        f"time       {duration(told.seconds['fit'])} {where}"
    )
    if "compile" in told.seconds:
        print(f"compiling  {duration(told.seconds['compile'])} more, once")
    if told.temporary_mb:
        print(
            f"the features are larger than memory: {told.temporary_mb:,.0f} MB go to a temporary "
            "file and are read from there"
        )
    if told.fits is False:
        print(f"{told.machine} has too little memory for the program and the solver")

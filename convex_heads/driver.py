"""Runs a solver's compiled steps until a limit is reached, keeping its history."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from jax import Array

from convex_heads import checkpoint
from convex_heads.limits import Limits
from convex_heads.sharding import agreed
from convex_heads.solution import Record, Stats, Status


class Progress(Protocol):
    """What every solver's state shows; scalars on the device."""

    @property
    def passes(self) -> Array:
        """Data passes used."""
        ...

    @property
    def primal(self) -> Array:
        """Lowest objective."""
        ...

    @property
    def dual(self) -> Array:
        """Highest lower bound."""
        ...

    @property
    def gap(self) -> Array:
        """Relative gap."""
        ...

    @property
    def iterations(self) -> Array:
        """Steps taken."""
        ...

    @property
    def idle(self) -> Array:
        """Steps since the objective or the bound last improved."""
        ...


S = TypeVar("S", bound=Progress)


def drive(
    advance: Callable[[S], S],
    state: S,
    limits: Limits,
    *,
    max_idle: int,
    on_record: Callable[[Record], None] | None,
) -> tuple[S, Status, tuple[Record, ...]]:
    """Advances a state until the gap is closed, a limit is reached or nothing improves.

    A figure that is no number ends it too.

    Within :func:`convex_heads.checkpoint.checkpoints` it goes on where it was interrupted.

    Args:
        advance: a few steps.
        state: where to start.
        limits: when to stop.
        max_idle: steps without progress that mean that round-off has been reached.
        on_record: called with every history record.
    """
    journal = checkpoint.here()
    history: list[Record] = []
    if journal is not None:
        state, history, status = journal.next_solve(state)
        if history and on_record is not None:
            on_record(history[-1])
        if status is not None:
            return state, status, tuple(history)
    start = time.perf_counter() - (history[-1].seconds if history else 0)
    while True:
        state = advance(state)
        # Reading the figures waits for the steps, so the clock is read after them.
        record = Record(
            passes=float(state.passes),
            primal=float(state.primal),
            dual=float(state.dual),
            relative_gap=float(state.gap),
            seconds=agreed(round(time.perf_counter() - start, 4)),
        )
        history.append(record)
        if on_record is not None:
            on_record(record)
        status = _status(record, int(state.idle) >= max_idle, limits)
        if journal is not None:
            journal.keep(state, history, status)
        if status is not None:
            return state, status, tuple(history)


def going_on(
    history: list[Record],
    passes: float,
    seconds: float,
    on_record: Callable[[Record], None] | None,
) -> Callable[[Record], None]:
    """What a solve calls that goes on where another one ended.

    Its records are counted from the beginning of the first and follow those in ``history``.
    """

    def later(record: Record) -> None:
        history.append(record.after(passes, seconds))
        if on_record is not None:
            on_record(history[-1])

    return later


def _status(record: Record, idle: bool, limits: Limits) -> Status | None:
    # Of a figure that is no number every comparison is false, those with limits too.
    if not math.isfinite(record.primal) or math.isnan(record.relative_gap):
        return Status.BROKEN
    if record.relative_gap <= limits.tolerance:
        return Status.CONVERGED
    if idle:
        return Status.STALLED
    if record.passes >= limits.max_passes:
        return Status.MAX_PASSES
    if limits.max_seconds is not None and record.seconds >= limits.max_seconds:
        return Status.MAX_SECONDS
    return None


def stats(state: Progress, seconds: float, block_rows: int) -> Stats:
    """The figures of a finished solve."""
    return Stats(
        primal=float(state.primal),
        dual=float(state.dual),
        relative_gap=float(state.gap),
        passes=float(state.passes),
        iterations=int(state.iterations),
        seconds=seconds,
        block_rows=block_rows,
    )

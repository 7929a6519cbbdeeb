"""The warm-started regularisation path, and the choice of beta on validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from convex_heads.gated import Prepared
from convex_heads.limits import Limits
from convex_heads.penalties import group_norms
from convex_heads.programs import ACTIVATIONS, Activation
from convex_heads.selection import Judgement, choose, difference_errors
from convex_heads.solution import Record, Solution

# Points without a lower validation loss after which the path ends.
PATIENCE = 2


@dataclass(frozen=True)
class PathPoint:
    """One beta of a path.

    Attributes:
        beta: absolute penalty.
        fraction: beta / beta_max.
        primal: objective.
        relative_gap: proven relative gap at this point.
        passes: data passes spent here.
        seconds: wall-clock time spent here.
        loss: mean loss of the validation rows; NaN without any. It chooses beta: it sees
            overconfidence, which accuracy does not.
        standard_error: of ``loss``, over validation rows; NaN without any.
        difference_error: standard error of ``loss`` minus the lowest loss of the path, row by row
            on the same rows; 0 at the lowest point. Much smaller than ``standard_error``, since
            rows that are hard are hard for both. The one-standard-error rule compares with it.
        score: validation score (accuracy or R^2); NaN without validation rows.
        active_gates: gates with non-zero weights.
        gate_norms: ||W_i||_F of every gate, the always-on gate first: (P,).
        history: records of this solve, in order of time.
        reduced_passes: of the passes those with products in less than float32, two for each.
    """

    beta: float
    fraction: float
    primal: float
    relative_gap: float
    passes: float
    seconds: float
    loss: float
    standard_error: float
    difference_error: float
    score: float
    active_gates: int
    gate_norms: tuple[float, ...]
    history: tuple[Record, ...]
    reduced_passes: float = 0.0


class PathResult(NamedTuple):
    """A finished path.

    Attributes:
        points: beta decreasing.
        weights: W (P, d, C) of every point, rotated coordinates.
        best: index of the chosen point.
        state: solver state at the chosen point, for one warm start.
    """

    points: tuple[PathPoint, ...]
    weights: tuple[Array, ...]
    best: int
    state: Any


class _Solved(NamedTuple):
    """A point of a path, its weights, the solver's state there if it lasts, and its judgement."""

    point: PathPoint
    weights: Array
    state: Any
    judgement: Judgement | None


def solve_path(
    prepared: Prepared,
    fractions: Sequence[float],
    limits: Limits,
    *,
    solver: str,
    activation: Activation = ACTIVATIONS["gated_relu"],
    score: Callable[[Array, Array], Judgement | None],
    selection: str = "best",
    begin: float | None = None,
    on_progress: Callable[[float], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> PathResult:
    """Solves for each fraction of beta_max in turn, warm-started.

    Args:
        prepared: the program.
        fractions: of beta_max, any order.
        limits: for each point; too loose a gap would let validation judge weights stopped early
            in place of the optimum.
        solver: one of the activation's.
        activation: which program; gated ones go from large to small, ReLU ones the other way.
        score: (weights (P, d, C), their F W (B, b, C)) -> how validation rows judge them, None
            without such rows. The path ends after ``PATIENCE`` points without a lower loss.
        selection: how beta is chosen: one of :data:`convex_heads.selection.SELECTIONS`.
        begin: fraction that is solved first, if it is one of them; those before it follow,
            backwards, only if none after it has a lower loss. Default the first in order.
        on_progress: called every few steps with the share of the path that is done, in [0, 1].
        on_record: called every few steps with the record of the solve that is running; its passes
            and seconds count from the beginning of the path.
    """
    order = sorted(fractions, reverse=activation.decreasing)
    best = start = order.index(begin) if begin in order else 0
    solved: dict[int, _Solved] = {}
    state, passes, seconds = None, 0.0, 0.0
    for turn in (range(start, len(order)), range(start - 1, -1, -1)):
        if not turn or best != start:
            break
        if solved:
            state = _state_at(solved[start], prepared, activation, solver)
        for k in turn:
            beta = order[k] * prepared.beta_max
            after = counted_after(on_record, passes, seconds)
            solution, state = activation.minimise(
                prepared,
                beta,
                solver=solver,
                warm=state,
                limits=limits,
                on_record=record_progress(limits, on_progress, len(solved), len(order), after),
            )
            passes, seconds = passes + solution.stats.passes, seconds + solution.stats.seconds
            judgement = score(solution.value, solution.scores)
            solved[k] = _Solved(
                _point(solution, beta, order[k], judgement),
                solution.value,
                # Most are many times the weights, and used up by the next solve.
                state if solver in activation.lasting else None,
                judgement,
            )
            if solved[k].point.loss < solved[best].point.loss:
                best = k
            if judgement is not None and abs(k - best) >= PATIENCE:
                break
    places = sorted(solved, reverse=not activation.decreasing)
    path = [solved[k] for k in places]
    points = [each.point for each in path]
    judged = [each.judgement for each in path if each.judgement is not None]
    if judged:
        errors = difference_errors(judged)
        points = [replace(p, difference_error=e) for p, e in zip(points, errors, strict=True)]
        best = places[choose(judged, selection)]
    if best != next(reversed(solved)):  # whose state is at hand
        state = _state_at(solved[best], prepared, activation, solver)
    return PathResult(
        tuple(points), tuple(each.weights for each in path), places.index(best), state
    )


def counted_after(
    on_record: Callable[[Record], None] | None, passes: float, seconds: float
) -> Callable[[Record], None] | None:
    """``on_record`` for a solve that begins after so many passes and seconds."""
    if on_record is None:
        return None
    return lambda record: on_record(record.after(passes, seconds))


def record_progress(
    limits: Limits,
    on_progress: Callable[[float], None] | None,
    k: int,
    n: int,
    on_record: Callable[[Record], None] | None = None,
) -> Callable[[Record], None] | None:
    """Turns the records of solve k of n into the share of the whole that is done.

    The gap falls roughly geometrically, so log(gap) / log(tolerance) grows like the work done.
    ``on_record`` gets the records themselves.
    """
    if on_progress is None:
        return on_record

    def share(record: Record) -> None:
        if on_record is not None:
            on_record(record)
        # A gap without a bound yet, infinite or NaN, is no work done: max first.
        gap = record.relative_gap if record.relative_gap < 1 else 1.0
        gap = max(gap, limits.tolerance)
        on_progress((k + math.log(gap) / math.log(limits.tolerance)) / n)

    return share


def _state_at(solved: _Solved, prepared: Prepared, activation: Activation, solver: str) -> Any:
    """The solver's state at a point, for one warm start."""
    if solved.state is not None:
        return solved.state
    return activation.resume(prepared, solved.weights, solver=solver)


def _point(
    solution: Solution, beta: float, fraction: float, judgement: Judgement | None
) -> PathPoint:
    norms = np.asarray(group_norms(solution.value)).tolist()
    nan = float("nan")
    return PathPoint(
        beta=beta,
        fraction=fraction,
        primal=solution.stats.primal,
        relative_gap=solution.stats.relative_gap,
        passes=solution.stats.passes,
        seconds=solution.stats.seconds,
        loss=nan if judgement is None else judgement.loss,
        standard_error=nan if judgement is None else judgement.standard_error,
        difference_error=nan,
        score=nan if judgement is None else judgement.score,
        active_gates=sum(norm > 0 for norm in norms),
        gate_norms=tuple(norms),
        history=solution.history,
        reduced_passes=solution.reduced_passes,
    )

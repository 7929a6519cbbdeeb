"""The warm-started regularisation path, and the choice of beta on validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from convex_heads.gated import Prepared, minimise
from convex_heads.limits import Limits
from convex_heads.solution import Record, Solution

# Fractions of beta_max, from almost linear to almost unpenalised; the chosen one is rarely an end.
DEFAULT_BETAS = (0.1, 0.03, 0.01, 0.003, 0.001)
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
        loss: mean loss of the validation rows; NaN without any. The lowest chooses beta: it sees
            overconfidence, which accuracy does not.
        score: validation score (accuracy or R^2); NaN without validation rows.
        active_gates: gates with non-zero weights.
    """

    beta: float
    fraction: float
    primal: float
    relative_gap: float
    passes: float
    seconds: float
    loss: float
    score: float
    active_gates: int


class PathResult(NamedTuple):
    """A finished path.

    Attributes:
        points: in the order solved, beta decreasing.
        weights: W (P, d, C) of every point, rotated coordinates.
        best: index of the chosen point.
        state: final solver state of the chosen point, for a warm start.
    """

    points: tuple[PathPoint, ...]
    weights: tuple[Array, ...]
    best: int
    state: Any


def solve_path(
    prepared: Prepared,
    fractions: Sequence[float],
    limits: Limits,
    *,
    solver: str,
    score: Callable[[Array, Array], tuple[float, float]],
    on_progress: Callable[[float], None] | None = None,
) -> PathResult:
    """Solves for each fraction of beta_max in turn, from large to small, warm-started.

    Args:
        prepared: the program.
        fractions: of beta_max, any order.
        limits: for each point; too loose a gap would let validation judge weights stopped early
            in place of the optimum.
        solver: one of :data:`convex_heads.gated.SOLVERS`.
        score: (weights (P, d, C), their F W (B, b, C)) -> (validation loss, validation score).
            The loss chooses, the score is for people. The path ends after ``PATIENCE`` points
            without a lower loss; ties go to the larger beta, the simpler head.
        on_progress: called every few steps with the share of the path that is done, in [0, 1].
    """
    points: list[PathPoint] = []
    weights: list[Array] = []
    best, state, best_state = 0, None, None
    for k, fraction in enumerate(sorted(fractions, reverse=True)):
        beta = fraction * prepared.beta_max
        solution, state = minimise(
            prepared,
            beta,
            solver=solver,
            warm=state,
            limits=limits,
            on_record=record_progress(limits, on_progress, k, len(fractions)),
        )
        W = solution.value
        points.append(_point(solution, beta, fraction, *score(W, solution.scores)))
        weights.append(W)
        if k == 0 or points[-1].loss < points[best].loss:
            best, best_state = k, state
        if k - best >= PATIENCE:
            break
    return PathResult(tuple(points), tuple(weights), best, best_state)


def record_progress(
    limits: Limits, on_progress: Callable[[float], None] | None, k: int, n: int
) -> Callable[[Record], None] | None:
    """Turns the records of solve k of n into the share of the whole that is done.

    The gap falls roughly geometrically, so log(gap) / log(tolerance) grows like the work done.
    """
    if on_progress is None:
        return None

    def on_record(record: Record) -> None:
        gap = min(1.0, max(record.relative_gap, limits.tolerance))
        on_progress((k + math.log(gap) / math.log(limits.tolerance)) / n)

    return on_record


def _point(
    solution: Solution, beta: float, fraction: float, loss: float, score: float
) -> PathPoint:
    active = np.asarray(solution.value).any(axis=(1, 2)).sum()
    return PathPoint(
        beta=beta,
        fraction=fraction,
        primal=solution.stats.primal,
        relative_gap=solution.stats.relative_gap,
        passes=solution.stats.passes,
        seconds=solution.stats.seconds,
        loss=loss,
        score=score,
        active_gates=int(active),
    )

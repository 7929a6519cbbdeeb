"""The rows that choose beta: how they judge weights, and which point of a path they choose.

Two rules. ``best`` takes the lowest mean validation loss. ``one_se``, the one-standard-error rule,
takes the largest beta, the simplest head, whose loss these rows cannot tell from the lowest: its
excess over the lowest is at most one standard error *of that excess*.

The rule of Breiman, Friedman, Olshen & Stone (1984, section 3.4.3; Hastie, Tibshirani & Friedman
2009, section 7.10) compares with the standard error of the lowest loss itself. That number says how
well the loss of one head is known; most of it is the luck of drawing easy or hard rows, which are
easy or hard for both heads, and which cancels in their difference. Here both heads are judged by
the same rows, so the standard error of the paired difference is the one that belongs to the
question "is the simpler head worse?", and the rule gives up no more than what the rows cannot see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads.gated import Prepared, held_out_program
from convex_heads.operators import Program, rows
from convex_heads.scaling import Scaling
from convex_heads.training import TrainingSet, standardised

SELECTIONS = ("best", "one_se")


class Judgement(NamedTuple):
    """What validation rows say about weights.

    Attributes:
        losses: of every row (m,), float64.
        weight: of every row (m,), non-negative.
        score: accuracy or R^2, for people; the losses choose.
    """

    losses: np.ndarray
    weight: np.ndarray
    score: float

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(np.average(self.losses, weights=self.weight))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean loss; infinite with one row."""
        return standard_error(self.losses, self.weight)


def standard_error(values: np.ndarray, weight: np.ndarray) -> float:
    """Standard error of the weighted mean of independent values (m,); infinite for m = 1.

    sqrt(m / (m - 1) * sum_j (w_j (v_j - mean))^2) / sum_j w_j, which is std / sqrt(m) with equal
    weights (Cochran 1977, eq. 6.13, the ratio estimate).

    Example:
        >>> round(standard_error(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4)), 4)
        0.6455
    """
    alive = weight > 0
    values, weight = values[alive], weight[alive]
    m = len(values)
    if m < 2:
        return float("inf")
    share = weight / weight.sum()
    return float(np.sqrt(m / (m - 1)) * np.linalg.norm(share * (values - share @ values)))


def lowest(judged: Sequence[Judgement]) -> int:
    """Index of the lowest mean loss; of equal ones the first."""
    return int(np.argmin([judgement.loss for judgement in judged]))


def difference_errors(judged: Sequence[Judgement]) -> list[float]:
    """Standard error of every loss minus the lowest, paired by rows; 0 for the lowest itself."""
    low = lowest(judged)
    return [
        0.0 if k == low else standard_error(each.losses - judged[low].losses, each.weight)
        for k, each in enumerate(judged)
    ]


def choose(judged: Sequence[Judgement], selection: str) -> int:
    """Index of the chosen point of a path.

    Args:
        judged: of every point, beta decreasing, all by the same rows.
        selection: ``best`` or ``one_se``; see the module's docstring. Ties go to the larger beta.

    Raises:
        ValueError: a rule that does not exist.

    Example:
        >>> easy, hard = np.array([0.1, 0.2, 3.0]), np.array([0.0, 0.3, 2.6])
        >>> path = [Judgement(losses, np.ones(3), 0.5) for losses in (easy, hard)]
        >>> choose(path, "best"), choose(path, "one_se")
        (1, 0)
    """
    check_selection(selection)
    low = lowest(judged)
    if selection == "best":
        return low
    errors = difference_errors(judged)
    return next(
        k for k, each in enumerate(judged) if k == low or each.loss - judged[low].loss <= errors[k]
    )


def check_selection(selection: str) -> None:
    """Refuses a rule that does not exist."""
    if selection not in SELECTIONS:
        raise ValueError(
            f"selection must be 'best' (the lowest validation loss) or 'one_se' (the largest beta "
            f"within one standard error of it); got {selection!r}"
        )


def validation_score(
    data: TrainingSet,
    prepared: Prepared,
    scaling: Scaling,
    scores: Callable[[Program, Array], Array],
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
) -> Callable[[Array, Array], Judgement | None]:
    """How beta is judged: (rotated weights, their F W) -> what the choosing rows say.

    Args:
        data: which rows choose: separate ones, held-out ones, or none (then it is always None).
        prepared: the program of the training rows.
        scaling: from given to standardised features.
        scores: (program, weights) -> scores of the network without offset (B, b, C).
        score: (scores (m, C), targets (m, C), weights (m,)) -> the score that people read.
    """
    z0 = np.asarray(prepared.program.z0)

    def judge(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Judgement:
        losses = np.asarray(prepared.loss.value(jnp.asarray(z), jnp.asarray(target)), np.float64)
        return Judgement(losses, weight, score(z, target, weight))

    if data.validation is not None:
        X_val, target_val = data.validation
        program = held_out_program(prepared, standardised(scaling, X_val), target_val)
        weight = np.ones(len(X_val))
        return lambda W, _: judge(rows(scores(program, W), len(X_val)) + z0, target_val, weight)
    chosen = np.flatnonzero(data.held_out)
    if len(chosen):
        target, weight = data.target[chosen], data.held_out[chosen]
        return lambda _, z: judge(rows(z, len(data.X))[chosen] + z0, target, weight)
    return lambda *_: None

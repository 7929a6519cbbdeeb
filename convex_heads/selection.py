"""The rows that choose beta, as a function of weights."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads.gated import Prepared, held_out_program
from convex_heads.operators import apply, rows
from convex_heads.scaling import Scaling
from convex_heads.training import TrainingSet


def validation_score(
    data: TrainingSet,
    prepared: Prepared,
    scaling: Scaling,
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
) -> Callable[[Array, Array], tuple[float, float]]:
    """How beta is judged: (rotated weights, their F W) -> loss and score of the choosing rows.

    Args:
        data: which rows choose: separate ones, held-out ones, or none (then both are NaN).
        prepared: the program of the training rows.
        scaling: from given to standardised features.
        score: (scores (m, C), targets (m, C), weights (m,)) -> the score that people read.
    """
    z0 = np.asarray(prepared.program.z0)

    def both(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
        losses = np.asarray(prepared.loss.value(jnp.asarray(z), jnp.asarray(target)))
        return float(np.average(losses, weights=weight)), score(z, target, weight)

    if data.validation is not None:
        X_val, target_val = data.validation
        program = held_out_program(prepared, scaling.transform(X_val), target_val)
        weight = np.ones(len(X_val))
        return lambda W, _: both(rows(apply(program, W), len(X_val)) + z0, target_val, weight)
    chosen = np.flatnonzero(data.held_out)
    if len(chosen):
        target, weight = data.target[chosen], data.held_out[chosen]
        return lambda _, z: both(rows(z, len(data.X))[chosen] + z0, target, weight)
    return lambda *_: (float("nan"), float("nan"))

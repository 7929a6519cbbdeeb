"""Least squares with a ridge on one-hot targets: the whole path from one eigendecomposition.

With centred features Z (n, d), targets Y (n, C) centred too, and Z'Z / n = Q diag(h) Q', the
weights at penalty a are Q diag(1 / (h + a)) Q' Z'Y / n: all penalties cost one eigendecomposition
and a product each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from tasks.methods.base import Fitted, Part, Problem, best_of, scored, standardised
from tasks.methods.settings import SETTINGS

PENALTIES = np.array(SETTINGS["ridge"]["penalties"])


class RidgePath(NamedTuple):
    """Weights (k, d, C) and offsets (k, C) at each penalty, and the validation accuracy (k,)."""

    weights: NDArray[np.floating]
    offsets: NDArray[np.floating]
    accuracies: list[float]


def ridge_path(
    moment: NDArray[np.floating],
    cross: NDArray[np.floating],
    centre: NDArray[np.floating],
    shares: NDArray[np.floating],
    Z_val: NDArray[np.floating],
    y_val: NDArray[np.integer],
    penalties: Sequence[float] | NDArray[np.floating],
) -> RidgePath:
    """The path from second moments, so that the features need not be in memory.

    Args:
        moment: (d, d) covariance of the features.
        cross: (d, C) covariance of features and one-hot targets.
        centre: (d,) mean of the features.
        shares: (C,) mean of the targets.
        Z_val: (m, d) validation features.
        y_val: (m,) their labels.
        penalties: in units of the mean eigenvalue.
    """
    h, Q = eigh(moment)
    unit = max(float(h.mean()), np.finfo(h.dtype).tiny)
    rotated, Z_rotated = Q.T @ cross, (Z_val - centre) @ Q
    weights, offsets, accuracies = [], [], []
    for penalty in penalties:
        B = rotated / (np.maximum(h, 0) + penalty * unit)[:, None]
        accuracies.append(float(np.mean((Z_rotated @ B + shares).argmax(axis=1) == y_val)))
        W = Q @ B
        weights.append(W)
        offsets.append(shares - centre @ W)
    return RidgePath(np.stack(weights), np.stack(offsets), accuracies)


def fit(problem: Problem) -> Fitted:
    """16 penalties; the best validation accuracy chooses."""
    transform = standardised(problem.train)
    Z, Y = transform(problem.train), np.eye(problem.n_classes)[problem.train.labels]
    weight = problem.row_weights()[:, None]  # as scikit-learn's RidgeClassifier weighs classes
    centre, shares = (weight * Z).mean(axis=0, dtype=np.float64), (weight * Y).mean(axis=0)
    centred = (Z - centre).astype(np.float32)
    weighted = (weight * centred).astype(np.float32)
    moment = (weighted.T @ centred).astype(np.float64) / len(Z)
    cross = weighted.T @ (Y - shares) / len(Z)
    validation = problem.validation
    path = ridge_path(
        moment, cross, centre, shares, transform(validation), validation.labels, PENALTIES
    )
    best = best_of(path.accuracies)
    W, offset = path.weights[best], path.offsets[best]

    def scores(part: Part) -> NDArray[np.floating]:
        return transform(part) @ W + offset

    return Fitted(
        scored(scores, validation),
        settings_tried=len(PENALTIES),
        chosen={"penalty": float(PENALTIES[best])},
        parameters=W.size + offset.size,
    )

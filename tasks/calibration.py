"""Temperature scaling: one number, fitted on validation rows, that makes probabilities honest.

scikit-learn's own needs every class among the validation rows and a wrapped estimator; the same
SciPy routine is used here. What is minimised differs in one thing: the rows are weighed as if one
more of them had been wrong, as in Platt's *Probabilistic outputs for support vector machines*
(1999). Where a few rows are all right, the likelihood alone would make every score a 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from convex_heads.decode import probabilities

_LOG_BOUNDS = (-4.0, 4.0)


def fit_temperature(scores: np.ndarray, loss: str, labels: np.ndarray) -> float | None:
    """The temperature T > 0 that minimises the smoothed NLL of ``probabilities(scores, loss, T)``.

    Args:
        scores: (n, C), or (n, 1) for the logistic loss.
        loss: of the head. The squared loss has no temperature: None is returned.
        labels: (n,) class indices.

    Example:
        >>> z = np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
        >>> fit_temperature(z, "softmax", np.array([0, 0, 1, 1])) > 2  # wrong once, and too sure
        True
        >>> T = fit_temperature(z[:3], "softmax", np.array([0, 0, 1]))  # always right, but thrice
        >>> float(probabilities(z[:1], "softmax", T).max().round(2))
        0.8
    """
    if loss == "squared":
        return None
    scores = np.asarray(scores, np.float64)
    n, C = len(scores), max(2, scores.shape[1])
    wrong = 1 / (n + 2)
    targets = np.full((n, C), wrong / (C - 1))
    targets[np.arange(n), labels] = 1 - wrong

    def nll(log_temperature: float) -> float:
        p = probabilities(scores, loss, float(np.exp(log_temperature)))
        return -float((targets * np.log(np.maximum(p, np.finfo(p.dtype).tiny))).sum(axis=1).mean())

    best: Any = minimize_scalar(nll, bounds=_LOG_BOUNDS)
    return float(np.exp(best.x))

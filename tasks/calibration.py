"""Temperature scaling: one number, fitted on validation rows, that makes probabilities honest.

scikit-learn's own needs every class among the validation rows and a wrapped estimator; what is
minimised here is the same function, by the same SciPy routine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from convex_heads.decode import probabilities

_LOG_BOUNDS = (-4.0, 4.0)


def fit_temperature(scores: np.ndarray, loss: str, labels: np.ndarray) -> float | None:
    """The temperature T > 0 that minimises the NLL of ``probabilities(scores, loss, T)``.

    Args:
        scores: (n, C), or (n, 1) for the logistic loss.
        loss: of the head. The squared loss has no temperature: None is returned.
        labels: (n,) class indices.

    Example:
        >>> z = np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
        >>> fit_temperature(z, "softmax", np.array([0, 0, 1, 1])) > 2  # wrong once, and too sure
        True
    """
    if loss == "squared":
        return None
    scores = np.asarray(scores, np.float64)
    classes = np.arange(max(2, scores.shape[1]))

    def nll(log_temperature: float) -> float:
        p = probabilities(scores, loss, float(np.exp(log_temperature)))
        return float(log_loss(labels, p, labels=classes))

    best: Any = minimize_scalar(nll, bounds=_LOG_BOUNDS)
    return float(np.exp(best.x))

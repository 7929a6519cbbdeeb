"""Our own heads: the convex head as people get it, its ReLU sibling, and ridge on its gates."""

from __future__ import annotations

import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from convex_heads import ConvexHeadClassifier
from tasks.calibration import fit_temperature
from tasks.methods.base import Fitted, Problem


def fit(problem: Problem) -> Fitted:
    """The head with the options of the comparison, which are its defaults unless named."""
    return _head(problem, **problem.options)


def fit_relu(problem: Problem) -> Fitted:
    """The ReLU head at its defaults."""
    return _head(problem, activation="relu")


def fit_ntk(problem: Problem) -> Fitted:
    """Ridge regression on all gates: the kernel sum_i 1[g_i'x >= 0] 1[g_i'y >= 0] x'y."""
    return _head(problem, penalty="ridge", loss="squared")


def _head(problem: Problem, **options: Any) -> Fitted:
    train, validation = problem.train, problem.validation
    head = ConvexHeadClassifier(**options, random_state=problem.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the notes
        head.fit(train.features, train.labels, X_val=validation.features, y_val=validation.labels)
    network, gap = head.network_, head.certificate_.relative_gap
    temperature = fit_temperature(
        network.scores(validation.features), network.loss, validation.labels
    )
    notes = () if gap <= head.tolerance else (f"{head.status_.value} (gap {gap:.1e})",)
    arrays = [value for value in vars(network).values() if hasattr(value, "size")]
    return Fitted(
        lambda part: network.probabilities(part.features, temperature or 1.0),
        settings_tried=len(head.path_),
        chosen={
            "beta": head.beta_,
            "gates": len(head.gates_),
            "active_gates": head.certificate_.active_gates,
            "relative_gap": gap,
            "cone_violation": head.certificate_.cone_violation,
        },
        parameters=sum(int(array.size) for array in arrays),
        notes=notes,
    )

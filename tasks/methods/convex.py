"""Our own heads: the convex head as people get it, its ReLU sibling, and ridge on its gates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from convex_heads import ConvexHeadClassifier
from convex_heads.decode import Network, ReluNetwork, TwoLayer
from convex_heads.head import ConvexHead
from convex_heads.robustness import robustness_radius
from tasks.calibration import fit_temperature
from tasks.fit_head import solve_name, unproven_note
from tasks.methods.base import Fitted, Part, Problem, for_all_classes
from tasks.methods.settings import SETTINGS

_NTK = SETTINGS["ntk"]
# A radius costs about 10 P min(P, d) C products a row.
_RADIUS_WORK, _RADIUS_ROWS = 5e9, 1000

#: Relative gap of the heads whose opinion on rows they have not seen goes into the data advice: as
#: many wrong labels are found as with 1e-3 (``tests/benchmarks/label_errors.py``) in half the time.
ADVICE_GAP = 5e-2


def fit(problem: Problem) -> Fitted:
    """The head with the options of the comparison, which are its defaults unless named."""
    return _head(problem, **problem.options)


def fit_relu(problem: Problem) -> Fitted:
    """The ReLU head at its defaults."""
    return _head(problem, activation="relu")


def fit_ntk(problem: Problem) -> Fitted:
    """Ridge regression on all gates: the kernel sum_i 1[g_i'x >= 0] 1[g_i'y >= 0] x'y."""
    gates = min(_NTK["most_gates"], max(1, len(problem.train) // _NTK["rows_per_gate"]))
    return _head(problem, penalty="ridge", loss="squared", n_gates=gates, beta=_NTK["betas"])


def _head(problem: Problem, **options: Any) -> Fitted:
    train, validation = problem.train, problem.validation
    options = {
        **options,
        "class_weight": problem.class_weight,
        "min_spread": train.min_spread,
        "random_state": problem.seed,
    }
    head = ConvexHeadClassifier(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the notes
        head.fit(train.features, train.labels, X_val=validation.features, y_val=validation.labels)
    network, gap = head.network_, head.certificate_.relative_gap
    temperature = fit_temperature(
        network.scores(validation.features), network.loss, validation.labels
    )
    arrays = [value for value in vars(network).values() if hasattr(value, "size")]

    def refit(part: Part) -> Callable[[Part], NDArray[np.floating]]:
        loose = max(head.tolerance_, ADVICE_GAP)
        same = {"penalty": head.penalty_, "beta": head.beta_}
        again = ConvexHeadClassifier(**{**options, **same, "tolerance": loose})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            again.fit(part.features, part.labels)
        of, classes = again.network_, again.classes_
        return lambda rows: for_all_classes(
            of.probabilities(rows.features, temperature or 1.0), classes, problem.n_classes
        )

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
        notes=certificate_notes(head),
        training=training_of(head),
        certified_radius=_radius(network),
        refit=refit,
    )


def _radius(
    network: TwoLayer,
) -> tuple[Callable[[Part], NDArray[np.floating]], int]:
    assert isinstance(network, Network | ReluNetwork)
    units = network.gates if isinstance(network, Network) else network.hidden
    P, C = len(units), max(2, len(network.offset))
    rows = int(_RADIUS_WORK / (10 * max(1, P * min(P, network.dim)) * C))
    return lambda part: robustness_radius(network, part.features), min(rows, _RADIUS_ROWS)


def certificate_notes(head: ConvexHead) -> tuple[str, ...]:
    """A sentence where the gap that was asked for has not been reached."""
    gap = head.certificate_.relative_gap
    return () if gap <= head.tolerance_ else (unproven_note(head.status_, gap),)


def training_of(head: ConvexHead) -> dict[str, Any]:
    """The path without its clock, and the convergence of every solve with it."""
    solves = [(solve_name(p.fraction), p.history) for p in head.path_]
    return {
        "path": [
            {
                "beta": point.fraction,
                "validation_loss": point.loss,
                "difference_error": point.difference_error,
                "validation_accuracy": point.score,
                "relative_gap": float(f"{point.relative_gap:.4g}"),
                "passes": point.passes,
                "gate_norms": [float(f"{norm:.4g}") for norm in point.gate_norms],
            }
            for point in head.path_
        ],
        "tolerance": head.tolerance_,
        "convergence": [
            {
                "solve": name,
                "passes": [r.passes for r in history],
                "seconds": [round(r.seconds, 4) for r in history],
                "relative_gap": [float(f"{r.relative_gap:.4g}") for r in history],
            }
            for name, history in [*solves, ("final", head.history_)]
        ],
    }

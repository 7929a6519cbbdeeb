"""pyscnn (Mishkin, Sahiner & Pilanci 2022), if it is installed: its two solvers on our programs.

Squared loss and one output only. Features are not unitised, which would be another program.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

# Iterations between two looks of R-FISTA at its objective.
_FREQUENCY = 10


def augmented_lagrangian(
    X: np.ndarray, y: np.ndarray, gates: np.ndarray, beta: float, iterations: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights v and w (P, d) of the ReLU program of rows X (n, d), gates (P, d), and the seconds.

    Raises:
        ImportError: it is not installed.
    """
    from scnn.models import ConvexReLU  # pyright: ignore[reportMissingImports]
    from scnn.solvers import AL  # pyright: ignore[reportMissingImports]

    model = ConvexReLU(gates.T, c=1)
    solver = AL(model, max_primal_iters=iterations, max_dual_iters=iterations)
    start = time.perf_counter()
    fitted, _ = _optimize(model, solver, {}, X, y, beta)
    seconds = time.perf_counter() - start
    v, w = (np.asarray(part, np.float32)[0] for part in fitted.parameters)
    return v, w, seconds


def r_fista(
    X: np.ndarray, y: np.ndarray, gates: np.ndarray, beta: float, target: float, iterations: int
) -> tuple[int, float] | None:
    """Iterations and seconds of the gated program until its objective is at most ``target``.

    None where so many iterations are not enough. The objective is looked at every ten.

    Raises:
        ImportError: it is not installed.
    """
    from scnn.models import ConvexGatedReLU  # pyright: ignore[reportMissingImports]
    from scnn.solvers import RFISTA  # pyright: ignore[reportMissingImports]

    given, tried = {"metric_freq": _FREQUENCY, "grad_norm": False}, 10 * _FREQUENCY
    while True:
        tried = min(tried, iterations)
        model = ConvexGatedReLU(gates.T, c=1)
        _, found = _optimize(model, RFISTA(model, max_iters=tried, tol=0), given, X, y, beta)
        reached = np.flatnonzero(np.asarray(found.objective) <= target)
        if len(reached):
            at = int(reached[0])
            return at * _FREQUENCY, float(found.time[at])
        if tried == iterations:
            return None
        tried *= 4  # from zero again, so that the seconds are of one run


def _optimize(
    model: Any, solver: Any, metrics: dict[str, Any], X: np.ndarray, y: np.ndarray, beta: float
) -> tuple[Any, Any]:
    from scnn.metrics import Metrics  # pyright: ignore[reportMissingImports]
    from scnn.optimize import optimize_model  # pyright: ignore[reportMissingImports]
    from scnn.regularizers import NeuronGL1  # pyright: ignore[reportMissingImports]

    return optimize_model(
        model,
        solver,
        Metrics(**metrics),
        X,
        y.reshape(-1, 1).astype(np.float32),
        regularizer=NeuronGL1(beta),
        return_convex=True,
        unitize_data=False,
    )

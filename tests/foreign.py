"""Networks that no solver has seen, and the same programs for the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from reference import Problem, random_problem

from convex_heads import Network
from convex_heads.scaling import Scaling


def foreign(loss: str, seed: int = 0) -> tuple[Network, np.ndarray, Problem]:
    """A network with zero weights, raw features, and the same program for the oracle.

    The oracle's problem has the standardised ones: X = standardised * scale + mean.
    """
    problem = random_problem(seed, loss, n=40)
    rng = np.random.default_rng(seed)
    d = problem.X.shape[1] - 1
    gates = np.r_[[np.eye(d + 1)[-1]], rng.normal(size=(4, d + 1))]
    problem = replace(problem, D=problem.X @ gates.T >= 0)
    scaling = Scaling(rng.normal(size=d), rng.uniform(0.5, 2, d), np.ones(d, bool))
    raw = problem.X[:, :-1] * scaling.scale + scaling.mean
    weights = np.zeros((5, d + 1, problem.Y.shape[1]))
    return Network(scaling, gates, weights, problem.z0, loss), raw, problem

"""The gated solvers against an interior-point method on random small programs, in float64.

The oracle is tests/reference.py (NumPy formulas written out anew, solved by CVXPY/Clarabel), which
is asked for 1e-8. Values are those of the oracle's own objective at the solver's weights. A dual
value above the primal one, or above the oracle's optimum by more than 1e-8 of it, is a violation.
Programs have n = 30 rows, d = 4, P = 5 gates, unequal row weights; C is 1 for logistic and for
every other squared program, 3 otherwise; beta / beta_max is 0.5, 0.1, 0.03 or 0.01.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from shared import Row, parser, show

from convex_heads import fista, subspace
from convex_heads.certificate import certify_program
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES
from convex_heads.operators import build_program
from convex_heads.solution import Status

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import Problem, random_problem

SOLVERS = {"subspace": subspace.minimise, "fista": fista.minimise}
FRACTIONS = (0.5, 0.1, 0.03, 0.01)
ORACLE_ERROR = 1e-8


def draw(index: int, seed: int) -> tuple[Problem, float]:
    """The program of that number and its absolute penalty."""
    loss = sorted(LOSSES)[index % len(LOSSES)]
    problem = random_problem(seed + index, loss)
    if loss == "squared" and index % 2:
        problem = replace(problem, Y=problem.Y[:, :1], z0=problem.z0[:1])
    fraction = np.random.default_rng(seed + index).choice(FRACTIONS)
    return problem, float(fraction) * problem.beta_max()


def compare(
    solver: str, problem: Problem, beta: float, optimum: float, limits: Limits
) -> dict[str, Any]:
    """One solve: how its value and its bound stand to each other and to the optimum."""
    program = build_program(problem.X, problem.D, problem.Y, problem.omega, problem.z0)
    loss = LOSSES[problem.loss]
    solution, _ = SOLVERS[solver](program, loss, beta, limits=limits)
    value = problem.objective(np.asarray(solution.value), beta)
    proof = certify_program(program, loss, solution.value, beta, R=solution.residual)
    return {
        "difference": abs(value - optimum) / optimum,
        "above primal": proof.dual > proof.primal,
        "above optimum": proof.dual > optimum * (1 + ORACLE_ERROR),
        "gap": max(solution.stats.relative_gap, proof.relative_gap),
        "converged": solution.status is Status.CONVERGED,
        "passes": solution.stats.passes,
    }


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--programs", type=int, default=200, help="how many, dealt out over the losses")
    add("--seed", type=int, default=0, help="of the first program")
    add("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="which to run")
    add("--tolerance", type=float, default=1e-6, help="relative gap to ask for")
    add("--max-passes", type=int, default=20_000, help="passes after which a solve gives up")
    options = command.parse_args()
    jax.config.update("jax_enable_x64", True)

    limits = Limits(tolerance=options.tolerance, max_passes=options.max_passes)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for index in range(options.programs):
        problem, beta = draw(index, options.seed)
        optimum, _ = problem.solve(beta)
        for solver in options.solvers:
            result = compare(solver, problem, beta, optimum, limits)
            found.setdefault((problem.loss, solver), []).append(result)
    rows: list[Row] = [
        {
            "loss": loss,
            "solver": solver,
            "programs": len(results),
            "worst difference": max(r["difference"] for r in results),
            "dual > primal": sum(r["above primal"] for r in results),
            "dual > optimum": sum(r["above optimum"] for r in results),
            "worst gap": max(r["gap"] for r in results),
            "not converged": sum(not r["converged"] for r in results),
            "median passes": float(np.median([r["passes"] for r in results])),
        }
        for (loss, solver), results in sorted(found.items())
    ]
    show(f"{options.programs} programs, relative gap asked {options.tolerance:g}", rows, options)


if __name__ == "__main__":
    main()

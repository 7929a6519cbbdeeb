"""What products in less than float32 do to a solve: passes, gaps and seconds.

    python tests/benchmarks/precision.py

For each solver of gated programs and each precision: data passes in that precision and in all, the
gap that the solver believed at the end of the first and the one that held, the gap in the end, and
seconds without compiling. On a CPU "tf32" is float32.
"""

from __future__ import annotations

import jax
import numpy as np

from convex_heads import Options, Solution, gated, solve
from convex_heads.precision import Precision

N, D, CLASSES, GATES, BETA = 4_000, 64, 4, 32, 0.03


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Standardised features (n, d + 1) of a decaying spectrum and noisy one-hot targets (n, C)."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(D, D)))[0]
    X = (rng.normal(size=(N, D)) * np.geomspace(3, 0.05, D)) @ rotation
    scores = np.abs(X @ rng.normal(size=(D, CLASSES))) + 0.8 * rng.normal(size=(N, CLASSES))
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    Y = np.eye(CLASSES, dtype=np.float32)[scores.argmax(axis=1)]
    return np.c_[X, np.ones(N)].astype(np.float32), Y


def solved(solver: str, precision: str) -> Solution:
    """The second of two equal solves: the first compiles."""
    X, Y = drawn()
    options = Options(beta=BETA, n_gates=GATES, solver=solver, precision=precision)
    return [solve(X, Y, options, jax.random.key(0)) for _ in range(2)][-1]


def main() -> None:
    """Prints a line for each."""
    print(f"{'solver':10}{'precision':11}passes in it / all   gap believed / held   in the end  s")
    for solver in gated.SOLVERS:
        for precision in (each.value for each in Precision):
            solution = solved(solver, precision)
            effect, stats = solution.precision_effect, solution.stats
            first = stats.passes if effect is None else effect.passes
            gaps = (stats.relative_gap,) * 2 if effect is None else effect[2:]
            print(
                f"{solver:10}{precision:11}{first:6.0f} /{stats.passes:4.0f}"
                f"{gaps[0]:18.1e} /{gaps[1]:8.1e}{stats.relative_gap:13.1e}{stats.seconds:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Data passes of the whole warm-started path against one cold solve at its smallest beta.

MiniLM features of wordnet6, the default betas, gates and loss of the classifier. Rows with a hash
below 0.15 (the same rows in every run) choose beta, the others are fitted. Every line is one beta
of the path and the same program solved from zero weights to the same relative gap; the last line is
the sum of the path against the cold solve at the smallest beta that it visited.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from passes import minilm_rows
from shared import Row, parser, show

from convex_heads.gated import SOLVERS, Prepared, minimise, prepare
from convex_heads.limits import Limits
from convex_heads.losses import SOFTMAX
from convex_heads.operators import apply
from convex_heads.path import solve_path
from convex_heads.programs import AUTO
from convex_heads.scaling import Scaling
from convex_heads.selection import validation_score
from convex_heads.training import TrainingSet
from extractors.errors import InputError, MachineError


def measure(
    data: TrainingSet, scaling: Scaling, prepared: Prepared, limits: Limits, solver: str
) -> list[Row]:
    """One line per beta that the path visits, and one for all of them."""
    path = solve_path(
        prepared,
        AUTO["gated_relu", "group"].betas,
        limits,
        solver=solver,
        score=validation_score(
            data,
            prepared,
            scaling,
            apply,
            lambda z, y, _: float(np.mean(z.argmax(1) == y.argmax(1))),
        ),
    )
    rows: list[Row] = []
    for k, point in enumerate(path.points):
        cold, _ = minimise(prepared, point.beta, solver=solver, limits=limits)
        rows.append(
            {
                "beta": f"{point.fraction:g}" + (" chosen" if k == path.best else ""),
                "warm passes": point.passes,
                "cold passes": cold.stats.passes,
                "ratio": point.passes / cold.stats.passes,
                "warm gap": point.relative_gap,
                "cold gap": cold.stats.relative_gap,
                "validation loss": point.loss,
                "score": point.score,
            }
        )
        print(f"{point.fraction:g}: {point.passes:g} passes", file=sys.stderr)
    whole, last = sum(point.passes for point in path.points), rows[-1]
    return [
        *rows,
        dict.fromkeys(last)
        | {
            "beta": "whole path",
            "warm passes": whole,
            "cold passes": last["cold passes"],
            "ratio": whole / last["cold passes"],
        },
    ]


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--data-root", type=Path, help="folder with the named data sets")
    add("--cache-dir", type=Path, help="folder with the feature stores")
    add("--rows", type=int, help="take only the first so many rows")
    add("--gates", type=int, default=64, help="gates to draw")
    add("--gap", type=float, default=5e-2, help="relative gap of every solve")
    add("--solver", choices=SOLVERS, default=SOLVERS[0])
    options = command.parse_args()
    try:
        X, label = minilm_rows("wordnet6", options.data_root, options.cache_dir, may_extract=True)
    except (InputError, MachineError) as error:
        raise SystemExit(f"skipped: {error}") from error
    X, label = X[: options.rows], label[: options.rows]
    Y = np.eye(int(label.max()) + 1, dtype=X.dtype)[label]
    data = TrainingSet.build(X, Y, np.ones(len(X)), validation=None, hold_out=True, classes=True)
    scaling = Scaling.fit(data.X, data.weight)
    standardised = scaling.transform(data.X)
    key = jax.random.key(0)
    prepared = prepare(standardised, data.target, data.omega, SOFTMAX, options.gates, key)
    rows = measure(data, scaling, prepared, Limits(tolerance=options.gap), options.solver)
    n, P = int((data.omega > 0).sum()), len(prepared.gates)
    title = f"wordnet6, {n} rows fitted, {P} gates, {options.solver}, relative gap {options.gap:g}"
    show(title, rows, options)


if __name__ == "__main__":
    main()

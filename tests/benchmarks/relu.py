"""The ReLU program of CRONOS: seconds and data passes to a gap, and what the deployed network does.

The program: wordnet6's living things against the rest, MiniLM features with a constant column,
squared loss on targets -1 and 1, P gates N(0, I) (numpy's generator, seed 0; the first always on),
float32. A line each for

    admm        three splits, structured preconditioner, balanced penalties (the default)
    nystrom     the same with a Nystrom preconditioner in place of the structured one
    paper       the published recipe, checked on validation rows after every step
    pyscnn      its augmented Lagrangian on the same program, if it is installed

`seconds` and `passes` are to the first look at which the relative gap is at most --gap and the
cones are violated by at most 1e-3; compilation is not in them. `objective` and `accuracy` (test
rows) of the last two kinds of lines are those of the deployed ReLU network.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peer import augmented_lagrangian
from shared import Row, parser, show

from convex_heads import admm, cronos, linear_system
from convex_heads.certificate import beta_max
from convex_heads.cones import violation
from convex_heads.descent import network_scores
from convex_heads.limits import Limits
from convex_heads.losses import SQUARED
from convex_heads.operators import Program, build_program, rows
from convex_heads.penalties import neuron_norms
from extractors import load_extractor
from extractors.errors import InputError, MachineError
from extractors.extract import store_folder
from extractors.store import FeatureStore
from tasks.data.load import load_task

LIVING = ("animal", "person", "plant")
SOLVERS = ("admm", "nystrom", "paper", "pyscnn")
_PAPER_STEPS = 10


class Problem(NamedTuple):
    """The program of the training rows, features in principal axes, and the other rows."""

    program: Program
    h: Any
    Q: np.ndarray
    gates: np.ndarray
    X: np.ndarray
    targets: np.ndarray
    held_out: dict[str, Program]


def build(split: dict[str, tuple[np.ndarray, np.ndarray]], n_gates: int) -> Problem:
    """The program of the module's docstring."""
    mean = split["train"][0].mean(axis=0)
    size = np.sqrt(np.float32(len(mean)))
    made = {
        name: (np.c_[(X - mean) * size, np.ones(len(X))].astype(np.float32), y)
        for name, (X, y) in split.items()
    }
    X, y = made["train"]
    n, d = X.shape
    eigenvalues, Q = np.linalg.eigh((X.T / np.float64(n)) @ X)
    gates = np.random.default_rng(0).normal(size=(n_gates, d)).astype(np.float32)
    gates[:, -1] = 0
    gates[0] = np.eye(d, dtype=np.float32)[-1]

    def program(X: np.ndarray, y: np.ndarray) -> Program:
        target, ones = y[:, None].astype(np.float32), np.ones(len(X), np.float32)
        return build_program(X @ Q.astype("f4"), X @ gates.T >= 0, target, ones, np.zeros(1, "f4"))

    h = jnp.asarray(np.maximum(eigenvalues, 1e-6 * eigenvalues[-1]), jnp.float32)
    held_out = {name: program(*made[name]) for name in ("validation", "test")}
    return Problem(program(X, y), h, Q.astype(np.float32), gates, X, y, held_out)


def accuracy(program: Program, V: Any) -> float:
    """Share of rows whose sign the deployed network gets right."""
    n = int((np.asarray(program.omega) > 0).sum())
    z, y = rows(network_scores(program, V), n), rows(program.Y, n)
    return float(np.mean((z > 0) == (y > 0)))


def objective(program: Program, V: Any, beta: float) -> float:
    """That of the deployed network."""
    z = network_scores(program, V)
    loss = jnp.sum(program.omega[..., None] * (z - program.Y) ** 2) / 2
    return float(loss + beta * jnp.sum(neuron_norms(V)))


def measure(problem: Problem, name: str, beta: float, limits: Limits) -> Row:
    """One solver from zero weights."""
    program, h = problem.program, problem.h
    if name == "paper":
        return _paper(problem, beta)
    recipe = cronos.Recipe(rank=64, balance=False) if name == "nystrom" else cronos.Recipe()
    for k in (Limits(tolerance=1e-6, max_passes=1), limits):  # the first one compiles
        start = time.perf_counter()
        solution, run = cronos.minimise(program, SQUARED, beta, h=h, recipe=recipe, limits=k)
        seconds = time.perf_counter() - start
    return {
        "solver": name,
        "steps": solution.stats.iterations,
        "passes": solution.stats.passes,
        "seconds": round(seconds, 2),
        "objective": solution.stats.primal,
        "relative gap": solution.stats.relative_gap,
        "cone violation": float(run.violation),
        "accuracy": accuracy(problem.held_out["test"], solution.value),
    }


def _paper(problem: Problem, beta: float) -> Row:
    """A handful of steps, the best of them chosen on validation rows."""
    program, h = problem.program, problem.h
    recipe = cronos.paper(len(problem.X))
    best: tuple[float, Row] | None = None
    for _ in range(2):  # the first round compiles
        start = time.perf_counter()
        state = admm.zero_state(program, SQUARED, recipe)
        parts = linear_system.sketched(program, h, state.rho, recipe.rank, jax.random.key(0))
        for step in range(1, _PAPER_STEPS + 1):
            state = admm.advance(program, SQUARED, recipe, parts, jnp.float32(beta), state, 1)
            chosen = accuracy(problem.held_out["validation"], state.u)
            row: Row = {
                "solver": "paper",
                "steps": step,
                "passes": float(state.passes),
                "seconds": round(time.perf_counter() - start, 2),
                "objective": objective(program, state.u, beta),
                "relative gap": None,
                "cone violation": float(violation(program, state.u)),
                "accuracy": accuracy(problem.held_out["test"], state.u),
            }
            if best is None or chosen >= best[0]:
                best = chosen, row
    assert best is not None
    return best[1]


def pyscnn(problem: Problem, beta: float, iterations: int) -> Row:
    """Its augmented Lagrangian with so many primal and dual iterations at most.

    Raises:
        ImportError: it is not installed.
    """
    parts = augmented_lagrangian(problem.X, problem.targets, problem.gates, beta, iterations)
    v, w = (part @ problem.Q for part in parts[:2])
    V = jnp.asarray(np.stack([v, w], axis=2))
    return {
        "solver": f"pyscnn, {iterations} iterations",
        "steps": iterations,
        "passes": None,
        "seconds": round(parts[2], 2),
        "objective": objective(problem.program, V, beta),
        "relative gap": None,
        "cone violation": float(violation(problem.program, V)),
        "accuracy": accuracy(problem.held_out["test"], V),
    }


def living_rows(
    data_root: Path | None, cache_dir: Path | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """MiniLM features and -1 or 1 of every split."""
    data = load_task("wordnet6", data_root=data_root)
    extractor = load_extractor("minilm")
    folder = store_folder(data.name, extractor, data.fingerprint, cache_dir)
    if not folder.exists():
        raise InputError(f"no MiniLM features at {folder}: convex-heads extract wordnet6")
    store = FeatureStore.open(folder)
    alive = np.isin(data.classes, LIVING)
    read = {name: store.read(name) for name in ("train", "validation", "test")}
    return {
        name: (part.features, np.where(alive[part.labels], 1, -1)) for name, part in read.items()
    }


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--data-root", type=Path, help="folder with the named data sets")
    add("--cache-dir", type=Path, help="folder with the feature stores")
    add("--gates", type=int, default=16, help="P")
    add("--beta", type=float, default=0.01, help="fraction of the gated program's beta_max")
    add("--gap", type=float, default=1e-2, help="relative gap to reach")
    add("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="which to run")
    add("--max-passes", type=int, default=10_000, help="passes after which a solve gives up")
    add("--pyscnn-iterations", nargs="+", type=int, default=[100, 1000], help="one line each")
    options = command.parse_args()
    try:
        problem = build(living_rows(options.data_root, options.cache_dir), options.gates)
    except (InputError, MachineError) as error:
        raise SystemExit(f"skipped: {error}") from error
    beta = options.beta * float(beta_max(problem.program, SQUARED))
    limits = Limits(tolerance=options.gap, max_passes=options.max_passes)
    lines = [measure(problem, name, beta, limits) for name in options.solvers if name != "pyscnn"]
    if "pyscnn" in options.solvers:
        try:
            lines += [pyscnn(problem, beta, k) for k in options.pyscnn_iterations]
        except ImportError as error:
            print(f"pyscnn is left out: {error}", file=sys.stderr)
    P, d, _ = problem.program.shape
    show(
        f"living things of wordnet6: n {len(problem.X)}, d {d}, P {P}, beta {beta:.4g}",
        lines,
        options,
    )


if __name__ == "__main__":
    main()

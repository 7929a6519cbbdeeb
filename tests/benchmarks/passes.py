"""Data passes and seconds of every gated solver to a relative gap, on the same program in one run.

The program is n rows of features X with a constant column of ones and P = 32 gates: the first
always on, the others N(0, I) with a zero bias entry (numpy's generator, seed 1); softmax loss, or
the squared loss on targets -1 and 1 for ``living`` (wordnet6's living things against the rest), no
offset, float32. One data pass is one product with F and one with F'. Every line is a solve of its
own from zero weights: compiled before, not counting the rotation to principal axes. A solver that
misses a gap is not asked for smaller ones. `kernel` is for --penalty ridge; its seconds are with
the making of its kernel. `r-fista` is pyscnn's solver, if it is installed; it knows no gap, is for
the group penalty, and is timed until its objective is as low as that gap demands.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from peer import r_fista
from relu import living_rows
from shared import Row, parser, show

from convex_heads import fista, kernel, subspace
from convex_heads.certificate import beta_max, certify_program
from convex_heads.limits import Limits
from convex_heads.losses import SOFTMAX, SQUARED, Loss
from convex_heads.operators import Program, build_program
from convex_heads.penalties import PENALTIES, Penalty, floored_metric
from convex_heads.solution import Solution, Status
from extractors import load_extractor
from extractors.errors import InputError, MachineError
from extractors.extract import extract, store_folder
from extractors.shard import StoredRows
from extractors.store import FeatureStore
from tasks.data.load import load_task
from tasks.data.registry import resolve_data_root

TRAINING = ("train", "validation")
SOLVERS = ("kernel", "subspace", "fista-metric", "fista-plain", "r-fista")
RECIPES = ("wordnet6", "imdb", "fashion", "living")
# Of the solve whose bound says when R-FISTA is there, the part of the gap that it may leave.
_FINER = 0.1


class Problem(NamedTuple):
    """One data set under both coordinate systems; h (d,) is the metric of the rotated one."""

    X: np.ndarray
    Y: np.ndarray
    gates: np.ndarray
    loss: Loss
    penalty: Penalty
    plain: Program
    rotated: Program
    h: Any
    beta_max: float


def minilm_rows(
    task: str, data_root: Path | None, cache_dir: Path | None, may_extract: bool
) -> tuple[np.ndarray, np.ndarray]:
    """MiniLM features (n, 384) and labels (n,) of the training and validation rows of a task."""
    data = load_task(task, data_root=data_root)
    extractor = load_extractor("minilm")
    folder = store_folder(data.name, extractor, data.fingerprint, cache_dir)
    if may_extract:
        splits = {name: data.splits[name] for name in TRAINING}
        store = extract(
            splits,
            extractor,
            task=data.name,
            classes=data.classes,
            data_fingerprint=data.fingerprint,
            cache_dir=cache_dir,
        ).store
        read: list[StoredRows] = [store.read(name, splits[name].ids) for name in TRAINING]
    elif folder.exists():
        store = FeatureStore.open(folder)
        read = [store.read(name) for name in TRAINING]
    else:
        raise InputError(
            f"no MiniLM features of {task} at {folder}: "
            f"convex-heads extract {task} --backbone minilm"
        )
    features = np.concatenate([rows.features for rows in read])
    return features, np.concatenate([rows.labels for rows in read])


def fashion_rows(data_root: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels / 255 (60000, 784) and labels of Fashion-MNIST's training rows."""
    root = resolve_data_root(data_root)
    if root is None:
        raise InputError("fashion needs --data-root (or CONVEX_HEADS_DATA)")
    folder = root / "fashion_mnist"
    arrays = []
    for name, header in (("train-images-idx3-ubyte.gz", 16), ("train-labels-idx1-ubyte.gz", 8)):
        if not (folder / name).is_file():
            raise InputError(f"no file {name} in {folder}")
        arrays.append(np.frombuffer(gzip.decompress((folder / name).read_bytes())[header:], "u1"))
    return arrays[0].reshape(-1, 784).astype(np.float32) / 255, arrays[1]


def recipe_rows(
    recipe: str, data_root: Path | None, cache_dir: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d - 1) as the program takes them, and class numbers or real targets (n,)."""
    if recipe == "fashion":
        return fashion_rows(data_root)
    if recipe == "living":
        read = living_rows(data_root, cache_dir)
        features, labels = (np.concatenate([read[name][i] for name in TRAINING]) for i in (0, 1))
        labels = labels.astype(np.float32)
    else:
        may_extract = recipe == "wordnet6"
        features, labels = minilm_rows(recipe, data_root, cache_dir, may_extract)
    return (features - features.mean(axis=0)) * np.sqrt(np.float32(features.shape[1])), labels


def build(features: np.ndarray, labels: np.ndarray, n_gates: int, penalty: Penalty) -> Problem:
    """The program of the module's docstring."""
    X = np.c_[features, np.ones(len(features))].astype(np.float32)
    n, d = X.shape
    gates = np.random.default_rng(1).normal(size=(d, n_gates))
    gates[-1] = 0
    gates[:, 0] = np.eye(d)[-1]
    D = X @ gates >= 0
    if labels.dtype == np.float32:
        loss, Y = SQUARED, labels[:, None]
    else:
        loss, Y = SOFTMAX, np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    omega, z0 = np.ones(n, np.float32), np.zeros(Y.shape[1], "f4")
    eigenvalues, Q = np.linalg.eigh((X.T / np.float64(n)) @ X)
    h = floored_metric(jnp.asarray(loss.curvature * eigenvalues, np.float32))
    rotated = build_program(X @ Q.astype(np.float32), D, Y, omega, z0)
    return Problem(
        X=X,
        Y=Y,
        gates=gates.T.astype(np.float32),
        loss=loss,
        penalty=penalty,
        plain=build_program(X, D, Y, omega, z0),
        rotated=rotated,
        h=h,
        beta_max=float(beta_max(rotated, loss)),
    )


Minimise = Callable[[float, Limits], Solution]


def solvers(problem: Problem, names: list[str]) -> dict[str, tuple[Program, Minimise]]:
    """Solver name -> the program it takes, and beta, limits -> its solution."""
    plain, rotated, loss, penalty = problem.plain, problem.rotated, problem.loss, problem.penalty

    def by_kernel(beta: float, limits: Limits) -> Solution:
        start = time.perf_counter()
        found, _ = kernel.minimise(rotated, kernel.gram(rotated), loss, beta, limits=limits)
        seconds = time.perf_counter() - start
        return found._replace(stats=found.stats._replace(seconds=seconds))

    def by_subspace(beta: float, limits: Limits) -> Solution:
        return subspace.minimise(rotated, loss, beta, penalty=penalty, limits=limits)[0]

    def by_fista(program: Program, beta: float, limits: Limits, **metric: Any) -> Solution:
        return fista.minimise(program, loss, beta, penalty=penalty, limits=limits, **metric)[0]

    every: dict[str, tuple[Program, Minimise]] = {
        "kernel": (rotated, by_kernel),
        "subspace": (rotated, by_subspace),
        "fista-metric": (rotated, partial(by_fista, rotated, h=problem.h)),
        "fista-plain": (plain, partial(by_fista, plain)),
    }
    return {name: every[name] for name in every if name in names}


def measure(
    problem: Problem, names: list[str], betas: list[float], gaps: list[float], max_passes: int
) -> list[Row]:
    """One line per beta, gap and solver; ratios are to the first solver of `SOLVERS` measured."""
    chosen = solvers(problem, names)
    for _, minimise in chosen.values():  # compile
        minimise(betas[0] * problem.beta_max, Limits(tolerance=1e-6, max_passes=1))
    rows: list[Row] = []
    for fraction in betas:
        beta = fraction * problem.beta_max
        failed: set[str] = set()
        for gap in sorted(gaps, reverse=True):
            base: Solution | None = None
            for name, (program, minimise) in chosen.items():
                if name in failed:
                    continue
                found = minimise(beta, Limits(tolerance=gap, max_passes=max_passes))
                proof = certify_program(
                    program,
                    problem.loss,
                    found.value,
                    beta,
                    R=found.residual,
                    penalty=problem.penalty,
                )
                if found.status is not Status.CONVERGED:
                    failed.add(name)
                elif name == next(iter(chosen)):
                    base = found
                stats = found.stats
                rows.append(
                    {
                        "beta": fraction,
                        "gap asked": gap,
                        "solver": name,
                        "passes": stats.passes,
                        "seconds": round(stats.seconds, 3),
                        "certified gap": proof.relative_gap,
                        "status": found.status.name.lower(),
                        "passes ratio": base and stats.passes / base.stats.passes,
                        "seconds ratio": base and stats.seconds / base.stats.seconds,
                    }
                )
                print(f"{fraction:g} {gap:g} {name}: {stats.passes:g} passes", file=sys.stderr)
            if "r-fista" in names and "r-fista" not in failed:
                row = peer_row(problem, beta, gap, max_passes, base)
                if row["status"] != "converged":
                    failed.add("r-fista")
                rows.append({"beta": fraction, **row})
    return rows


def peer_row(
    problem: Problem, beta: float, gap: float, iterations: int, base: Solution | None
) -> Row:
    """R-FISTA until its objective is at most bound / (1 - gap)."""
    fine = Limits(tolerance=_FINER * gap, max_passes=10 * iterations)
    finer, _ = subspace.minimise(problem.rotated, problem.loss, beta, limits=fine)
    target = finer.stats.dual / (1 - gap)
    y = problem.Y[:, 0]
    found = r_fista(problem.X, y, problem.gates, beta, target, iterations)
    seconds = None if found is None else found[1]
    return {
        "gap asked": gap,
        "solver": "r-fista",
        "passes": None if found is None else found[0],
        "seconds": seconds and round(seconds, 3),
        "certified gap": None,
        "status": "max_passes" if found is None else "converged",
        "passes ratio": base and found and found[0] / base.stats.passes,
        "seconds ratio": base and seconds and seconds / base.stats.seconds,
    }


def missing_peer(problem: Problem) -> str | None:
    """Why R-FISTA cannot run."""
    if not problem.penalty.sparse:
        return "it knows the group penalty only"
    if problem.loss is not SQUARED:
        return "it knows the squared loss only; --recipe living has it"
    return None if find_spec("scnn") else "pyscnn is not installed"


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--recipe", choices=RECIPES, default="wordnet6", help="where the rows come from")
    add("--data-root", type=Path, help="folder with the named data sets")
    add("--cache-dir", type=Path, help="folder with the feature stores")
    add("--penalty", choices=list(PENALTIES), default="group", help="of the weights")
    add("--gates", type=int, default=32, help="of the program")
    add("--rows", type=int, help="take only the first so many rows")
    add("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="which to run")
    add("--betas", nargs="+", type=float, default=[0.1, 0.01, 0.003], help="beta / beta_max")
    add("--gaps", nargs="+", type=float, default=[1e-2, 1e-3, 1e-4], help="relative gaps")
    add("--max-passes", type=int, default=1000, help="passes after which a solve gives up")
    options = command.parse_args()
    try:
        features, labels = recipe_rows(options.recipe, options.data_root, options.cache_dir)
    except (InputError, MachineError) as error:
        raise SystemExit(f"skipped: {error}") from error
    start = time.perf_counter()
    penalty = PENALTIES[options.penalty]
    problem = build(features[: options.rows], labels[: options.rows], options.gates, penalty)
    if penalty.sparse:
        options.solvers = [name for name in options.solvers if name != "kernel"]
    if "r-fista" in options.solvers:
        reason = missing_peer(problem)
        if reason:
            print(f"r-fista is left out: {reason}", file=sys.stderr)
            options.solvers = [name for name in options.solvers if name != "r-fista"]
    built = time.perf_counter() - start
    P, d, C = problem.rotated.shape
    n = len(features[: options.rows])
    rows = measure(problem, options.solvers, options.betas, options.gaps, options.max_passes)
    title = (
        f"{options.recipe}: n {n}, d {d}, P {P}, C {C}, beta_max {problem.beta_max:.4g}; "
        f"rotating and building both programs {built:.1f} s"
    )
    show(title, rows, options)


if __name__ == "__main__":
    main()

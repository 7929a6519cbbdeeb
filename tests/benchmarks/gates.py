"""Test accuracy of every gate sampler and gate count on every data set that is at hand.

`--heads` puts heads with other options beside them, `--rivals` other classifiers.

Data are the feature stores in the cache folder and, with a data root, the raw pixels of
Fashion-MNIST. A seed redraws which rows train and which choose (beta, and every setting of the
rivals), and the gates; test rows are the store's and the same for all. `difference` is to the first
head of the table, paired over seeds, in points of accuracy, `+-` its standard error over seeds
(it does not contain the chance of which test rows there are). Rivals are tuned on the same rows:
logistic regression over 9 C, an RBF-SVM over 12 (C, gamma), a small MLP over 8 settings.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from passes import fashion_rows
from shared import Row, parser, show
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from convex_heads import ConvexHeadClassifier
from convex_heads.gates import SAMPLERS
from extractors.errors import InputError
from extractors.store import FeatureStore, default_cache_dir

RIVALS = ("logistic", "svm", "mlp")
HEADS: dict[str, dict[str, Any]] = {
    "default": {},
    "squared": {"loss": "squared"},
    "group": {"penalty": "group"},
    "grow": {"n_gates": "grow"},
    "relu": {"activation": "relu"},
}


class Rows(NamedTuple):
    """Features (n, d) and labels (n,) to train, to choose and to test."""

    train: tuple[np.ndarray, np.ndarray]
    choose: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class DataSet(NamedTuple):
    """One data set; ``pool`` is redrawn into training and choosing rows by every seed."""

    name: str
    pool: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    def draw(self, seed: int, limit: int) -> Rows:
        """At most ``limit`` training rows, a quarter as many to choose (15% of a small pool)."""
        X, y = self.pool
        order = np.random.default_rng(seed).permutation(len(X))
        n = min(limit, int(0.85 * len(X)))
        a, b = order[:n], order[n : n + max(limit // 4, 1)]
        return Rows((X[a], y[a]), (X[b], y[b]), self.test)


def data_sets(
    cache_dir: Path | None, data_root: Path | None, names: list[str] | None, test_rows: int
) -> Iterator[DataSet]:
    """The stores that are at hand, and Fashion-MNIST with a data root."""

    def cut(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.random.default_rng(0).permutation(len(X))[:test_rows]
        return X[chosen], y[chosen]

    seen: set[str] = set()
    for folder in sorted(((cache_dir or default_cache_dir()) / "stores").glob("*")):
        store = FeatureStore.open(folder)
        name = store.manifest.task
        if (names is not None and name not in names) or name in seen or "test" not in store.splits:
            continue
        seen.add(name)
        parts = [store.read(split) for split in ("train", "validation") if split in store.splits]
        X = np.concatenate([part.features for part in parts]).astype(np.float32)
        test = store.read("test")
        y = np.concatenate([part.labels for part in parts])
        yield DataSet(name, (X, y), cut(test.features.astype(np.float32), test.labels))
    if data_root is not None and (names is None or "fashion_mnist" in names):
        X, y = fashion_rows(data_root)
        test, pool = np.arange(len(X)) % 6 == 0, np.arange(len(X)) % 6 != 0
        yield DataSet("fashion_mnist", (X[pool], y[pool].astype(int)), cut(X[test], y[test]))


def head(**options: Any) -> Callable[[Rows, int], Row]:
    """A head with such options: figures of one seed."""

    def run(rows: Rows, seed: int) -> Row:
        model = ConvexHeadClassifier(**options, random_state=seed)
        X_val, y_val = rows.choose
        model.fit(*rows.train, X_val=X_val, y_val=y_val)
        return {
            "accuracy": model.score(*rows.test),
            "active": model.certificate_.active_gates,
            "violation": model.certificate_.pattern_violation,
        }

    return run


def rival(name: str) -> Callable[[Rows, int], Row]:
    """A tuned rival: the setting with the best accuracy on the choosing rows."""

    def settings(d: int, seed: int) -> Iterator[Any]:
        if name == "logistic":
            for C in 10.0 ** np.arange(-5, 1.1, 0.75):
                yield LogisticRegression(C=C, max_iter=300)
        elif name == "svm":
            for C in (1, 3, 10, 30):
                for gamma in (0.3, 0.6, 1.2):
                    yield SVC(C=C, gamma=gamma / d, cache_size=500)  # pyright: ignore[reportArgumentType]
        else:
            for width in (64, 256):
                for alpha in (1e-3, 1.0):
                    for rate in (3e-4, 2e-3):
                        yield MLPClassifier(
                            (width,),
                            alpha=alpha,
                            learning_rate_init=rate,
                            max_iter=25,
                            random_state=seed,
                        )

    def run(rows: Rows, seed: int) -> Row:
        (X, y), (X_val, y_val), (X_test, y_test) = rows
        mean = X.mean(axis=0)
        scale = np.sqrt(np.mean((X - mean) ** 2))
        X, X_val, X_test = ((A - mean) / scale for A in (X, X_val, X_test))
        best: tuple[float, Any] = (-1.0, None)
        for model in settings(X.shape[1], seed):
            score = model.fit(X, y).score(X_val, y_val)
            if score > best[0]:
                best = score, model
        return {"accuracy": best[1].score(X_test, y_test), "active": None, "violation": None}

    return run


def measure(data: DataSet, methods: dict[str, Any], seeds: int, limit: int) -> list[Row]:
    """One line for each method: means over seeds."""
    table: list[Row] = []
    reference = np.zeros(0)
    for name, run in methods.items():
        results, start = [], time.perf_counter()
        for seed in range(seeds):
            results.append(run(data.draw(seed, limit), seed))
        accuracy = 100 * np.array([result["accuracy"] for result in results])
        if not table:
            reference = accuracy
        difference = accuracy - reference
        spread = difference.std(ddof=1) / np.sqrt(seeds) if seeds > 1 and table else None

        def mean(key: str, results: list[Row] = results) -> float | None:
            values = [result[key] for result in results if result[key] is not None]
            return float(np.mean(values)) if values else None

        table.append(
            {
                "data": data.name,
                "method": name,
                "accuracy": float(accuracy.mean()),
                "difference": float(difference.mean()),
                "+-": None if spread is None else float(spread),
                "active gates": mean("active"),
                "pattern violation": mean("violation"),
                "seconds": round((time.perf_counter() - start) / seeds, 1),
            }
        )
        print(f"{data.name} {name}: {accuracy.mean():.2f}", file=sys.stderr)
    return table


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--data", nargs="+", help="names of data sets; all that are at hand without")
    add("--cache-dir", type=Path, help="folder with the feature stores")
    add("--data-root", type=Path, help="folder with fashion_mnist")
    add("--samplers", nargs="*", choices=SAMPLERS, default=list(SAMPLERS), help="which to draw by")
    add("--n-gates", nargs="+", type=int, default=[64], help="how many gates")
    add("--heads", nargs="*", choices=HEADS, default=[], help="heads with other options")
    add("--rivals", nargs="*", choices=RIVALS, default=[], help="what else to tune and test")
    add("--seeds", type=int, default=3, help="splits and draws")
    add("--rows", type=int, default=4000, help="most training rows")
    add("--test-rows", type=int, default=5000, help="most test rows")
    add("--tolerance", type=float, default=5e-2, help="relative gap of the final solve")
    options = command.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    methods: dict[str, Any] = {
        f"{sampler} {P}": head(gates=sampler, n_gates=P, tolerance=options.tolerance)
        for P in options.n_gates
        for sampler in options.samplers
    }
    methods |= {name: head(**HEADS[name]) for name in options.heads}
    methods |= {name: rival(name) for name in options.rivals}
    table: list[Row] = []
    try:
        for data in data_sets(
            options.cache_dir, options.data_root, options.data, options.test_rows
        ):
            table += measure(data, methods, options.seeds, options.rows)
    except InputError as error:
        raise SystemExit(f"skipped: {error}") from error
    if not table:
        raise SystemExit(
            "skipped: no feature store with a test split is at hand: fill one with "
            "convex-heads extract DATA, or give --cache-dir"
        )
    show(f"{options.seeds} seeds, at most {options.rows} training rows", table, options)


if __name__ == "__main__":
    main()

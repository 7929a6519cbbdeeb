"""The solver with the always-on gate alone against scikit-learn's LogisticRegression.

Under a ridge penalty of all columns, the constant one too, both solve the same program,
mean loss + beta / 2 ||W||^2 with C = 1 / (n beta), here on one array of features of ImageNet's
shape (imagenet_shaped.py), standardised, in float32. seconds: to an objective of at most 1 + --gap
times the optimum, of which the certificate gives a lower bound; LogisticRegression has the largest
of the tolerances 1e-4 (its default), 1e-5, ... that gets there. Ours include the rotation of the
features and their blocks; `cold` also compiling. ratio: ours over LogisticRegression's. Objectives
are computed anew in double precision.
"""

from __future__ import annotations

import time

import numpy as np
from imagenet_shaped import ImageNetShaped
from shared import Row, parser, show
from sklearn.linear_model import LogisticRegression

from convex_heads import subspace
from convex_heads.certificate import certify_program
from convex_heads.limits import Limits
from convex_heads.losses import SOFTMAX
from convex_heads.operators import build_program
from convex_heads.penalties import RIDGE
from convex_heads.scaling import Scaling

_CHUNK = 16_384


def objective(X: np.ndarray, y: np.ndarray, W: np.ndarray, beta: float) -> float:
    """Of weights W (d, C), from the definition."""
    total = 0.0
    for start in range(0, len(X), _CHUNK):
        rows = slice(start, start + _CHUNK)
        z = X[rows].astype(np.float64) @ W
        total += float(np.sum(np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), y[rows]]))
    return total / len(X) + beta / 2 * float(np.sum(W * W))


def ours(X: np.ndarray, y: np.ndarray, beta: float, gap: float) -> tuple[np.ndarray, float, float]:
    """Weights (d, C), seconds, and a lower bound of every objective."""
    start = time.perf_counter()
    n = len(X)
    C = int(y.max()) + 1
    _, Q = np.linalg.eigh((X.T @ X).astype(np.float64) / n)
    Q = Q.astype(X.dtype)
    Y, always = np.eye(C, dtype=X.dtype)[y], np.ones((n, 1), bool)
    program = build_program(X @ Q, always, Y, np.ones(n, X.dtype), np.zeros(C, X.dtype))
    limits = Limits(tolerance=gap / 2)
    solution, _ = subspace.minimise(program, SOFTMAX, beta, penalty=RIDGE, limits=limits)
    W = Q.astype(np.float64) @ np.asarray(solution.value[0], np.float64)
    seconds = time.perf_counter() - start
    R = solution.residual
    proof = certify_program(program, SOFTMAX, solution.value, beta, R=R, penalty=RIDGE)
    return W, seconds, proof.dual


def theirs(X: np.ndarray, y: np.ndarray, beta: float, target: float) -> tuple[float, float, float]:
    """Seconds, objective and tolerance of the first LogisticRegression to reach the target."""
    found = float("inf")
    for tolerance in 10.0 ** np.arange(-4, -9, -1):
        model = LogisticRegression(
            C=1 / (len(X) * beta), fit_intercept=False, tol=tolerance, max_iter=100_000
        )
        start = time.perf_counter()
        model.fit(X, y)
        seconds = time.perf_counter() - start
        found = objective(X, y, model.coef_.T.astype(np.float64), beta)
        if found <= target:
            return seconds, found, float(tolerance)
    return float("nan"), found, float("nan")


def compare(X: np.ndarray, y: np.ndarray, beta: float, gap: float) -> Row:
    """One line of the table."""
    _, cold, _ = ours(X, y, beta, gap)
    W, warm, bound = ours(X, y, beta, gap)
    target = bound * (1 + gap)
    reached = objective(X, y, W, beta)
    seconds, found, tolerance = theirs(X, y, beta, target)
    return {
        "n": len(X),
        "d": X.shape[1],
        "C": W.shape[1],
        "beta": beta,
        "bound": bound,
        "ours": reached,
        "reached": reached <= target,
        "cold": cold,
        "seconds": warm,
        "sklearn": found,
        "its tol": tolerance,
        "its seconds": seconds,
        "ratio": warm / seconds,
    }


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--rows", type=int, nargs="+", default=[262_144], help="n")
    add("--dim", type=int, default=384, help="features")
    add("--classes", type=int, default=100, help="C")
    add("--betas", type=float, nargs="+", default=[1e-4], help="penalties, absolute")
    add("--gap", type=float, default=1e-4, help="relative distance from the optimum to reach")
    options = command.parse_args()
    drawn = ImageNetShaped(options.dim, options.classes)
    rows = []
    for n in options.rows:
        X, y = drawn.rows("train", 0, n)
        X = Scaling.fit(X, np.ones(n)).transform(X, np.float32)
        rows += [compare(X, y, beta, options.gap) for beta in options.betas]
    show(f"{options.gap:g} from the optimum of multinomial logistic regression", rows, options)


if __name__ == "__main__":
    main()

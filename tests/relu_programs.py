"""Random ReLU programs and their optimal values by an interior-point method."""

from __future__ import annotations

import cvxpy as cp
import jax
import numpy as np

from convex_heads import relu
from convex_heads.losses import LOSSES


def make(seed: int, name: str, n: int = 30, d: int = 4, P: int = 3, dtype: type = np.float64):
    """Features with a constant column, targets and weights of a random program."""
    rng = np.random.default_rng(seed)
    C = {"squared": 1 + seed % 2, "logistic": 1, "softmax": 3}[name]
    X = np.c_[rng.normal(size=(n, d - 1)), np.ones(n)].astype(dtype)
    label = rng.integers(0, max(C, 2), n)
    if name == "squared":
        Y = rng.normal(size=(n, C))
    else:
        Y = label[:, None] if C == 1 else np.eye(C)[label]
    omega = rng.uniform(0.5, 1.5, n)
    key = jax.random.key(seed)
    return relu.prepare(X, Y.astype(dtype), omega, LOSSES[name], P, key)


def oracle(prepared, beta: float) -> float:
    """The optimal value of the ReLU program by an interior-point method."""
    program, name = prepared.program, prepared.loss.name
    d, C = program.X.shape[2], program.Y.shape[2]
    X, Y = np.asarray(program.X).reshape(-1, d), np.asarray(program.Y).reshape(-1, C)
    D, omega = np.asarray(program.D).reshape(len(X), -1), np.asarray(program.omega).ravel()
    kept = omega > 0
    X, Y, D, omega, z0 = X[kept], Y[kept], D[kept], omega[kept], np.asarray(program.z0)
    P = D.shape[1]
    V = [[cp.Variable(d) for _ in range(2 * C)] for _ in range(P)]
    sign = np.where(D, 1, -1)
    cones = [cp.multiply(sign[:, i], X @ v) >= 0 for i in range(P) for v in V[i]]
    z = [
        z0[c] + sum(cp.multiply(D[:, i], X @ (V[i][c] - V[i][C + c])) for i in range(P))
        for c in range(C)
    ]
    if name == "squared":
        fit = sum(omega @ cp.square(z[c] - Y[:, c]) for c in range(C)) / 2
    elif name == "logistic":
        fit = omega @ (cp.logistic(z[0]) - cp.multiply(Y[:, 0], z[0]))
    else:
        Z = cp.vstack(z).T
        fit = omega @ (cp.log_sum_exp(Z, axis=1) - cp.sum(cp.multiply(Z, Y), axis=1))
    problem = cp.Problem(cp.Minimize(fit + beta * sum(cp.norm(v) for i in V for v in i)), cones)
    problem.solve(solver="CLARABEL")
    return float(problem.value)

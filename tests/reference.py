"""An independent float64 oracle for the convex programs: dense NumPy formulas and CVXPY/Clarabel.

It shares no line with the product: patterns, losses, penalties and conjugates are written out anew,
so that an error there cannot hide here.
"""

from __future__ import annotations

from dataclasses import dataclass

import cvxpy as cp
import numpy as np
from scipy.special import logsumexp


@dataclass(frozen=True)
class Problem:
    """One small gated program, everything explicit.

    X (n, d) with a constant column, D (n, P) bool, Y (n, C), omega (n,) summing to one, z0 (C,).
    """

    X: np.ndarray
    D: np.ndarray
    Y: np.ndarray
    omega: np.ndarray
    z0: np.ndarray
    loss: str

    @property
    def F(self) -> np.ndarray:
        """The dense gated design matrix (n, P d)."""
        return np.concatenate([self.D[:, [i]] * self.X for i in range(self.D.shape[1])], axis=1)

    def scores(self, W: np.ndarray) -> np.ndarray:
        """z (n, C) of weights (P, d, C), offset included."""
        P, d, C = W.shape
        return self.z0 + self.F @ W.reshape(P * d, C)

    def loss_value(self, W: np.ndarray) -> float:
        """The weighted loss, without the penalty."""
        z = self.scores(W)
        if self.loss == "squared":
            rows = 0.5 * ((z - self.Y) ** 2).sum(axis=1)
        elif self.loss == "logistic":
            rows = (np.logaddexp(0, z) - self.Y * z).sum(axis=1)
        else:
            rows = logsumexp(z, axis=1) - (z * self.Y).sum(axis=1)
        return float(self.omega @ rows)

    def objective(self, W: np.ndarray, beta: float) -> float:
        """Loss plus beta times the group penalty."""
        return self.loss_value(W) + beta * sum(np.linalg.norm(Wi) for Wi in W)

    def residual(self, W: np.ndarray) -> np.ndarray:
        """Gradient of the loss with respect to z (n, C), weights included."""
        z = self.scores(W)
        if self.loss == "squared":
            g = z - self.Y
        elif self.loss == "logistic":
            g = 1 / (1 + np.exp(-z)) - self.Y
        else:
            g = np.exp(z - logsumexp(z, axis=1, keepdims=True)) - self.Y
        return self.omega[:, None] * g

    def beta_max(self) -> float:
        """Smallest beta with the zero solution."""
        P, d, C = self.D.shape[1], self.X.shape[1], self.Y.shape[1]
        G = self.F.T @ self.residual(np.zeros((P, d, C)))
        return float(np.linalg.norm(G.reshape(P, -1), axis=1).max())

    def solve(self, beta: float) -> tuple[float, np.ndarray]:
        """Optimal value and weights (P, d, C) by an interior-point method."""
        P, d, C = self.D.shape[1], self.X.shape[1], self.Y.shape[1]
        W = cp.Variable((P * d, C))
        z = self.F @ W + np.tile(self.z0, (len(self.X), 1))
        if self.loss == "squared":
            rows = cp.sum(cp.square(z - self.Y), axis=1) / 2
        elif self.loss == "logistic":
            rows = cp.sum(cp.logistic(z) - cp.multiply(self.Y, z), axis=1)
        else:
            rows = cp.log_sum_exp(z, axis=1) - cp.sum(cp.multiply(z, self.Y), axis=1)
        penalty = sum(cp.norm(W[i * d : (i + 1) * d], "fro") for i in range(P))
        problem = cp.Problem(cp.Minimize(self.omega @ rows + beta * penalty))
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
        assert problem.status == cp.OPTIMAL, problem.status
        weights = W.value.reshape(P, d, C)
        return self.objective(weights, beta), weights


def random_problem(
    seed: int, loss: str, *, n: int = 30, d: int = 4, P: int = 5, C: int | None = None
) -> Problem:
    """A random small program with unequal row weights; C outputs, or 1 for logistic, else 3."""
    rng = np.random.default_rng(seed)
    C = C or (1 if loss == "logistic" else 3)
    X = np.c_[rng.normal(size=(n, d - 1)) * rng.uniform(0.3, 2, d - 1), np.ones(n)]
    gates = rng.normal(size=(P, d))
    gates[0] = np.eye(d)[-1]
    D = X @ gates.T >= 0
    signal = D @ rng.normal(size=(P, C)) + X @ rng.normal(size=(d, C)) + rng.normal(size=(n, C))
    if loss == "squared":
        Y = signal
    elif loss == "logistic":
        Y = (signal > np.median(signal)).astype(float)
    else:
        Y = np.eye(C)[signal.argmax(axis=1)]
    omega = rng.uniform(0.2, 1.8, n)
    omega /= omega.sum()
    mean = omega @ Y
    if loss == "squared":
        z0 = mean
    elif loss == "logistic":
        z0 = np.log(mean / (1 - mean))
    else:
        z0 = np.log(np.clip(mean, 1e-12, None))
    return Problem(X, D, Y, omega, z0, loss)

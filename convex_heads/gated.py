r"""Gated ReLU heads: from features and targets to a solved, certified convex program.

.. math:: \min_W\; \frac1n \sum_j l\Big(\big(z_0 + \sum_i D_i X W_i\big)_j, y_j\Big)
          + \beta \sum_i \|W_i\|_F, \qquad f(x) = z_0 + \sum_i 1[g_i'x \ge 0]\, W_i'x .

The convex program of a two-layer gated ReLU network (Mishkin, Sahiner, Pilanci 2022, eq. 5; Pilanci
& Ergen 2020 for the ReLU network). The features are rotated to the principal axes of their
second moment X'X/n before solving: the penalty does not change under rotation, and there the
metric that all gates share is diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads import fista, subspace
from convex_heads.certificate import Certificate, beta_max, certify
from convex_heads.gates import (
    DEFAULT_SAMPLER,
    WeightedRows,
    activation_patterns,
    check_sampler,
    distinct_patterns,
    sample_gates,
)
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES, Loss
from convex_heads.operators import Program, build_program
from convex_heads.penalties import floored_metric
from convex_heads.solution import Record, Solution

_TRIAL_GATES = 256
SOLVERS = ("subspace", "fista")
DEFAULT_SOLVER = "subspace"


@dataclass(frozen=True)
class Options:
    """What :func:`solve` solves and when it stops.

    Attributes:
        beta: penalty as a fraction of beta_max, in (0, 1]; at 1 the head is zero. Default 0.03.
        n_gates: gates to draw, >= 1; the first is always on. Default 64. Gates with equal patterns
            are dropped.
        gates: how they are drawn, one of :data:`convex_heads.gates.SAMPLERS`. Default ``aligned``.
        loss: ``softmax`` (default), ``logistic`` (C = 1) or ``squared``.
        solver: ``subspace`` (default, :mod:`convex_heads.subspace`) or ``fista``
            (:mod:`convex_heads.fista`, the independent baseline).
        limits: tolerance, max_passes, max_seconds.

    Raises:
        ValueError: a field is out of its range.
    """

    beta: float = 0.03
    n_gates: int = 64
    gates: str = DEFAULT_SAMPLER
    loss: str = "softmax"
    solver: str = DEFAULT_SOLVER
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(
                f"beta is a fraction of beta_max, above 0 and at most 1; got {self.beta}"
            )
        if self.n_gates < 1:
            raise ValueError(
                f"n_gates must be at least 1 (one gate is a linear head); got {self.n_gates}"
            )
        check_sampler(self.gates)
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {self.solver!r}")


class Prepared(NamedTuple):
    """A program in principal axes, ready to solve for any beta.

    Attributes:
        program: the blocked data, features rotated.
        loss: the row loss.
        gates: (P, d) in the coordinates of the given features; patterns are distinct.
        Q: rotation (d, d): rotated features are X @ Q.
        h: metric (d,): curvature times the second moment along each axis.
        second_moment: (d, d), weighted, of the given features.
        beta_max: smallest penalty at which all weights are zero.
    """

    program: Program
    loss: Loss
    gates: np.ndarray
    Q: np.ndarray
    h: Array
    second_moment: Array
    beta_max: float


def prepare(
    X: np.ndarray,
    Y: np.ndarray,
    omega: np.ndarray,
    loss: Loss,
    n_gates: int,
    key: Array,
    sampler: str = DEFAULT_SAMPLER,
) -> Prepared:
    """Draws gates, takes patterns and rotates.

    Args:
        X: features (n, d), standardised; the last column is the constant one.
        Y: targets (n, C).
        omega: non-negative row weights (n,), not all zero; rows of weight zero get scores but do
            not count (validation rows).
        loss: the row loss.
        n_gates: gates to draw; fewer remain where patterns coincide.
        key: JAX random key of the draw.
        sampler: one of :data:`convex_heads.gates.SAMPLERS`.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if X.ndim != 2 or Y.ndim != 2 or omega.shape != (len(X),) or len(Y) != len(X):
        raise ValueError(
            f"X (n, d), Y (n, C) and omega (n,) must agree; got {X.shape}, {Y.shape}, {omega.shape}"
        )
    dtype = X.dtype
    omega = np.asarray(omega, np.float64) / omega.sum()
    moment = (X.T * omega) @ X
    second_moment = jnp.asarray(moment, dtype)
    gates = np.asarray(
        sample_gates(key, second_moment, n_gates, sampler=sampler, rows=WeightedRows(X, omega))
    )
    D = np.asarray(activation_patterns(jnp.asarray(X), jnp.asarray(gates)))
    # Without this, a pattern drawn twice would be one group counted as two.
    keep = distinct_patterns(D)
    gates, D = gates[keep], D[:, keep]
    eigenvalues, Q = np.linalg.eigh(moment)
    z0 = loss.offset(jnp.asarray(omega @ Y, dtype))
    program = build_program(X @ Q.astype(dtype), D, Y, omega.astype(dtype), z0)
    return Prepared(
        program=program,
        loss=loss,
        gates=gates,
        Q=Q,
        h=floored_metric(jnp.asarray(loss.curvature * eigenvalues, dtype)),
        second_moment=second_moment,
        beta_max=float(beta_max(program, loss)),
    )


def minimise(
    prepared: Prepared,
    beta: float,
    *,
    solver: str = DEFAULT_SOLVER,
    warm: Any = None,
    limits: Limits | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> tuple[Solution, Any]:
    """Solves a prepared program for one absolute penalty.

    Args:
        prepared: the program.
        beta: penalty, absolute, >= 0.
        solver: one of ``SOLVERS``.
        warm: final state of the same solver on the same features and gates.
        limits: when to stop.
        on_record: called with every history record, every few steps.

    Returns:
        The solution, weights in rotated coordinates, and the solver's final state.
    """
    program, loss = prepared.program, prepared.loss
    if solver == "fista":
        start = {} if warm is None else {"W": warm.best, "L": warm.L}
        return fista.minimise(
            program, loss, beta, h=prepared.h, limits=limits, on_record=on_record, **start
        )
    return subspace.minimise(program, loss, beta, warm=warm, limits=limits, on_record=on_record)


def held_out_program(prepared: Prepared, X: np.ndarray, Y: np.ndarray) -> Program:
    """Validation rows (m, d), (m, C) under the gates, axes and offset of a prepared program."""
    D = np.asarray(activation_patterns(jnp.asarray(X), jnp.asarray(prepared.gates)))
    rotated = X @ prepared.Q.astype(X.dtype)
    return build_program(rotated, D, Y, np.ones(len(X), X.dtype), prepared.program.z0)


def reweight(prepared: Prepared, omega: np.ndarray) -> Prepared:
    """The same features, gates and axes under other row weights (n,), not all zero."""
    program, loss = prepared.program, prepared.loss
    padded = np.zeros(program.omega.size)
    padded[: len(omega)] = omega / omega.sum()
    blocks = jnp.asarray(padded.reshape(program.omega.shape), program.X.dtype)
    z0 = loss.offset(jnp.einsum("nb,nbc->c", blocks, program.Y))
    program = program._replace(omega=blocks, z0=z0)
    return prepared._replace(program=program, beta_max=float(beta_max(program, loss)))


def unrotate(prepared: Prepared, W: Array) -> np.ndarray:
    """Weights (P, d, C) in the coordinates of the features that were given to ``prepare``."""
    rotated = np.asarray(W, np.float64)
    return np.einsum("kr,prc->pkc", prepared.Q, rotated, optimize=True).astype(W.dtype)


def certify_prepared(
    prepared: Prepared, W: Array, beta: float, *, R: Array | None = None, key: Array
) -> Certificate:
    """The certificate of rotated weights, with a pattern violation from freshly drawn gates."""
    # The constant column is an axis of the given features only: draw there, then rotate.
    trial = np.asarray(sample_gates(key, prepared.second_moment, _TRIAL_GATES + 1))[1:]
    trial = trial @ prepared.Q.astype(trial.dtype)
    return certify(prepared.program, prepared.loss, W, beta, R=R, trial_gates=trial)


def solve(X: Array | np.ndarray, Y: Array | np.ndarray, options: Options, key: Array) -> Solution:
    """Solves the gated program of features X and targets Y.

    Args:
        X: features (n, d), standardised, the last column constant one.
        Y: targets (n, C): one-hot for softmax, 0/1 with C = 1 for logistic, real for squared.
        options: the program and the limits.
        key: JAX random key of the gates.

    Returns:
        A :class:`Solution`: ``value`` W (P, d, C) and ``gates`` (P, d) in the coordinates of X,
        the status and the figures.

    Example:
        >>> import jax, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.c_[rng.normal(size=(200, 4)), np.ones(200)].astype("float32")
        >>> Y = np.eye(2, dtype="float32")[(X[:, 0] * X[:, 1] > 0).astype(int)]
        >>> solution = solve(X, Y, Options(beta=0.1, n_gates=16), jax.random.key(0))
        >>> solution.status.name, solution.stats.relative_gap <= 2e-2
        ('CONVERGED', True)
    """
    X, Y = np.asarray(X), np.asarray(Y)
    loss = LOSSES[options.loss]
    prepared = prepare(X, Y, np.ones(len(X), X.dtype), loss, options.n_gates, key, options.gates)
    solution, _ = minimise(
        prepared, options.beta * prepared.beta_max, solver=options.solver, limits=options.limits
    )
    return solution._replace(
        value=jnp.asarray(unrotate(prepared, solution.value)), gates=jnp.asarray(prepared.gates)
    )

r"""Gated ReLU heads: from features and targets to a solved, certified convex program.

.. math:: \min_W\; \frac1n \sum_j l\Big(\big(z_0 + \sum_i D_i X W_i\big)_j, y_j\Big)
          + \beta \, h(W), \qquad f(x) = z_0 + \sum_i 1[g_i'x \ge 0]\, W_i'x .

With the group penalty h(W) = sum_i ||W_i||_F this is the convex program of a two-layer gated ReLU
network (Mishkin, Sahiner, Pilanci 2022, eq. 5; Pilanci & Ergen 2020 for the ReLU network);
h(W) = sum_i ||W_i||_F^2 / 2 is ridge regression on the same gated features. The
features are rotated to the principal axes of their second moment X'X/n before solving: the penalty
does not change under rotation, and there the metric that all gates share is diagonal. With fewer
rows than features, only the span of the rows is kept: weights outside it cost and do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads import fista, kernel, subspace, subspace_state
from convex_heads.certificate import TRIAL_GATES, Certificate, beta_max, certify_program
from convex_heads.duality import residual
from convex_heads.gates import (
    DEFAULT_SAMPLER,
    WeightedRows,
    aligned_gates,
    distinct_patterns,
    patterns_of,
    row_basis,
    sample_gates,
)
from convex_heads.limits import Limits
from convex_heads.losses import Loss
from convex_heads.operators import Program, build_program, spool_program
from convex_heads.penalties import GROUP, Penalty, floored_metric
from convex_heads.precision import Precision, full_precision, jit
from convex_heads.sharding import agreed, place
from convex_heads.solution import Record, Solution
from convex_heads.sources import RowSource, chunks, is_streamed

# beta_max is known to so many units in the last place of the sum that it is the norm of; the
# thousandth part of it must still be above round-off.
_ROUNDOFF = 1e3
SOLVERS = ("subspace", "kernel", "fista")


class Prepared(NamedTuple):
    """A program in principal axes, ready to solve for any beta.

    Attributes:
        program: the blocked data, features rotated: r of them.
        loss: the row loss.
        gates: (P, d) in the coordinates of the given features; patterns are distinct.
        Q: rotation (d, r) with orthonormal columns: rotated features are X @ Q. r = d, or n + 1
            where that is less.
        h: metric (r,): curvature times the second moment along each axis.
        basis: of the span of the rows (d, r), or None where r = d.
        second_moment: (r, r), weighted, of the features in that basis.
        beta_max: smallest group penalty at which all weights are zero.
        penalty: of the weights.
        key: JAX random key that the gates were drawn with.
        precision: of the products that a solve begins with (:mod:`convex_heads.reduced`); those
            of ``program`` itself are in float32. Default float32.
        kernel: F F' (n, n), where the solver is ``kernel``; see :func:`with_solver`.
    """

    program: Program
    loss: Loss
    gates: np.ndarray
    Q: np.ndarray
    h: Array
    basis: np.ndarray | None
    second_moment: Array
    beta_max: float
    penalty: Penalty
    key: Array
    precision: Precision = Precision.FLOAT32
    kernel: Array | None = None


def prepare(
    X: RowSource,
    Y: np.ndarray,
    omega: np.ndarray,
    loss: Loss,
    n_gates: int,
    key: Array,
    penalty: Penalty = GROUP,
    sampler: str = DEFAULT_SAMPLER,
) -> Prepared:
    """Draws gates, takes patterns and rotates.

    Args:
        X: features (n, d), standardised; the last column is the constant one. A row source that
            is no array is read in chunks, and its rotated rows go to a temporary file.
        Y: targets (n, C).
        omega: non-negative row weights (n,), not all zero; rows of weight zero get scores but do
            not count (validation rows).
        loss: the row loss.
        n_gates: gates to draw; fewer remain where patterns coincide.
        key: JAX random key of the draw.
        penalty: of the weights.
        sampler: one of :data:`convex_heads.gates.SAMPLERS`.

    Raises:
        ValueError: shapes that do not belong together.
    """
    n = len(X)
    if len(X.shape) != 2 or Y.ndim != 2 or omega.shape != (n,) or len(Y) != n:
        raise ValueError(
            f"X (n, d), Y (n, C) and omega (n,) must agree; got {tuple(X.shape)}, {Y.shape}, "
            f"{omega.shape}"
        )
    dtype = X.dtype
    omega = np.asarray(omega, np.float64) / omega.sum()
    basis = row_basis(X)
    X = X if basis is None else X[:] @ basis
    moment = agreed(_second_moment(X, omega))
    second_moment = jnp.asarray(moment, dtype)
    gates = agreed(
        np.asarray(
            sample_gates(key, second_moment, n_gates, sampler=sampler, rows=WeightedRows(X, omega))
        )
    )
    D = patterns_of(X, gates)
    # Without this, a pattern drawn twice would be one group counted as two.
    keep = np.flatnonzero(agreed(np.isin(np.arange(len(gates)), distinct_patterns(D))))
    gates, D = gates[keep], D[:, keep]
    z0 = loss.offset(jnp.asarray(omega @ Y, dtype))
    given = gates if basis is None else gates @ basis.T
    return _assembled(X, basis, moment, given, D, Y, omega, z0, loss, penalty, key)


def prepare_given(
    X: RowSource,
    Y: np.ndarray,
    omega: np.ndarray,
    loss: Loss,
    gates: np.ndarray,
    z0: np.ndarray,
    key: Array,
    penalty: Penalty = GROUP,
) -> Prepared:
    """As :func:`prepare`, with gates (P, d) and an offset (C,) that are given.

    Gates whose patterns coincide are kept: they may part on other rows, and two groups with one
    pattern are a program like any other.
    """
    dtype = X.dtype
    omega = np.asarray(omega, np.float64) / omega.sum()
    D = patterns_of(X, gates.astype(dtype))
    basis = row_basis(X)
    X = X if basis is None else X[:] @ basis
    offset, Y = jnp.asarray(z0, dtype), np.asarray(Y, dtype)
    moment = agreed(_second_moment(X, omega))
    return _assembled(X, basis, moment, gates, D, Y, omega, offset, loss, penalty, key)


def _assembled(
    X: RowSource,
    basis: np.ndarray | None,
    moment: np.ndarray,
    gates: np.ndarray,
    D: np.ndarray,
    Y: np.ndarray,
    omega: np.ndarray,
    z0: Array,
    loss: Loss,
    penalty: Penalty,
    key: Array,
) -> Prepared:
    """The program of rows X in their basis, rotated to the principal axes of their moment."""
    dtype = X.dtype
    eigenvalues, Q = agreed(np.linalg.eigh(moment))
    program = _rotated_program(X, Q.astype(dtype), D, Y, omega.astype(dtype), z0)
    return Prepared(
        program=program,
        loss=loss,
        gates=gates,
        Q=Q if basis is None else basis @ Q,
        h=floored_metric(jnp.asarray(loss.curvature * eigenvalues, dtype)),
        basis=basis,
        second_moment=jnp.asarray(moment, dtype),
        beta_max=_beta_max(program, loss),
        penalty=penalty,
        key=key,
    )


def _second_moment(X: RowSource, omega: np.ndarray) -> np.ndarray:
    """X' diag(omega) X, (d, d) in double precision."""
    total = np.zeros((X.shape[1], X.shape[1]))
    for rows in chunks(X):
        block = X[rows] * np.sqrt(omega[rows])[:, None]
        total += block.T @ block  # of one array, and so half the work
    return total


def _rotated_program(
    X: RowSource, Q: np.ndarray, D: np.ndarray, Y: np.ndarray, omega: np.ndarray, z0: Array
) -> Program:
    """The program of the features X Q: in memory if X is."""
    if not is_streamed(X):
        return build_program(X[:] @ Q, D, Y, omega, z0)
    rotated = (X[rows] @ Q for rows in chunks(X))
    return spool_program(rotated, Q.shape[1], D, Y, omega, z0)


def _beta_max(program: Program, loss: Loss) -> float:
    """beta_max, or what it could be told from.

    Where features say nothing (all constant), beta_max is the round-off of a sum that should be
    zero, and no bound can be proven for a fraction of it.
    """
    return max(float(beta_max(program, loss)), float(beta_floor(program, loss)))


@partial(jit, static_argnames=("loss",))
def beta_floor(program: Program, loss: Loss) -> Array:
    """The least beta_max that can be told from round-off, ()."""
    R = residual(program, loss, jnp.zeros_like(program.Y))
    size = jnp.sum(jnp.linalg.norm(R, axis=-1) * jnp.linalg.norm(program.X, axis=-1))
    return _ROUNDOFF * jnp.finfo(size.dtype).eps * size


def with_solver(prepared: Prepared, solver: str) -> tuple[Prepared, str]:
    """A program with all that a solver needs, and the solver's name: never ``auto``.

    Args:
        prepared: the program.
        solver: one of ``SOLVERS``, or ``auto``: ``kernel`` where it pays, else the first.
    """
    if solver == "auto":
        exact = prepared.precision is Precision.FLOAT32
        pays = exact and kernel.pays(prepared.program, prepared.penalty)
        solver = "kernel" if pays else SOLVERS[0]
    if solver == "kernel" and prepared.kernel is None:
        prepared = prepared._replace(kernel=kernel.gram(prepared.program))
    return prepared, solver


def minimise(
    prepared: Prepared,
    beta: float,
    *,
    solver: str = SOLVERS[0],
    warm: Any = None,
    limits: Limits | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> tuple[Solution, Any]:
    """Solves a prepared program for one absolute penalty.

    Args:
        prepared: the program.
        beta: penalty, absolute, >= 0.
        solver: one of ``SOLVERS``; ``kernel`` needs it (:func:`with_solver`).
        warm: final state of the same solver on the same features and gates; it is used up.
        limits: when to stop.
        on_record: called with every history record, every few steps.

    Returns:
        The solution, weights in rotated coordinates, and the solver's final state.
    """
    program, loss, penalty = prepared.program, prepared.loss, prepared.penalty
    if solver == "fista":
        start = {} if warm is None else {"W": warm.best, "L": warm.L}
        return fista.minimise(
            program,
            loss,
            beta,
            penalty=penalty,
            h=prepared.h,
            limits=limits,
            on_record=on_record,
            **start,
        )
    if solver == "kernel":
        assert prepared.kernel is not None
        return kernel.minimise(
            program, prepared.kernel, loss, beta, warm=warm, limits=limits, on_record=on_record
        )
    return subspace.minimise(
        program, loss, beta, penalty=penalty, warm=warm, limits=limits, on_record=on_record
    )


def resume(prepared: Prepared, W: Array, *, solver: str = SOLVERS[0]) -> Any:
    """A state at rotated weights W (P, d, C) that :func:`minimise` takes as ``warm``."""
    program, loss = prepared.program, prepared.loss
    if solver == "fista":
        return fista.init(
            program, loss, prepared.penalty, jnp.zeros((), W.dtype), W, jnp.ones((), W.dtype)
        )
    if solver == "kernel":
        assert prepared.kernel is not None
        return kernel.resume(program, prepared.kernel, loss, W)
    return subspace_state.state_at(program, prepared.penalty, W)


def held_out_program(prepared: Prepared, X: RowSource, Y: np.ndarray) -> Program:
    """Validation rows (m, d), (m, C) under the gates, axes and offset of a prepared program."""
    D = patterns_of(X, prepared.gates)
    omega = np.ones(len(X), X.dtype)
    return _rotated_program(X, prepared.Q.astype(X.dtype), D, Y, omega, prepared.program.z0)


@full_precision
def reweight(prepared: Prepared, omega: np.ndarray) -> Prepared:
    """The same features, gates and axes under other row weights (n,), not all zero."""
    program, loss = prepared.program, prepared.loss
    padded = np.zeros(program.omega.size)
    padded[: len(omega)] = omega / omega.sum()
    blocks = place(padded.reshape(program.omega.shape).astype(program.X.dtype))
    z0 = loss.offset(jnp.einsum("nb,nbc->c", blocks, program.Y))
    program = program._replace(omega=blocks, z0=z0)
    return prepared._replace(program=program, beta_max=_beta_max(program, loss))


def fresh_gates(
    prepared: Prepared, key: Array, m: int, sampler: str = DEFAULT_SAMPLER
) -> np.ndarray:
    """Gates (m, r) in rotated coordinates, none always on, drawn as for the program's own."""
    # The constant column is an axis of the given features only: draw there, then rotate.
    drawn = np.asarray(sample_gates(key, prepared.second_moment, m + 1, sampler=sampler))[1:]
    given = drawn if prepared.basis is None else drawn @ prepared.basis.T
    return given @ prepared.Q.astype(drawn.dtype)


def trial_gates(prepared: Prepared, key: Array) -> Array:
    """As :func:`fresh_gates`, for a certificate: from the axes at hand, (TRIAL_GATES, r)."""
    Q = prepared.Q if prepared.basis is None else prepared.basis.T @ prepared.Q
    moment = np.asarray(prepared.second_moment, np.float64)
    eigenvalues = np.einsum("ij,ij->j", Q, moment @ Q)
    dtype = prepared.second_moment.dtype
    axes = jnp.asarray(Q, dtype)
    return aligned_gates(key, axes, jnp.asarray(eigenvalues, dtype), TRIAL_GATES) @ axes


def rotate(prepared: Prepared, W: np.ndarray) -> Array:
    """The inverse of :func:`unrotate`, within the span of the rows: (P, k, C) -> (P, r, C)."""
    return jnp.asarray(turned(prepared.Q.T, W), prepared.program.X.dtype)


def unrotate(prepared: Prepared, W: Array) -> np.ndarray:
    """Weights (P, d, C) in the coordinates of the features that were given to ``prepare``."""
    return turned(prepared.Q, W)


def turned(Q: np.ndarray, W: Array | np.ndarray) -> np.ndarray:
    """Q W_i of all gates, (P, k, C), summed in double precision.

    In one product: many thin ones are several times slower.
    """
    P, k, C = W.shape
    columns = np.asarray(W, np.float64).transpose(1, 0, 2).reshape(k, P * C)
    product = (Q @ columns).reshape(-1, P, C).transpose(1, 0, 2)
    return np.ascontiguousarray(product, dtype=W.dtype)


def certify_prepared(
    prepared: Prepared, W: Array, beta: float, *, R: Array | None = None, key: Array
) -> Certificate:
    """The certificate of rotated weights, with a pattern violation from freshly drawn gates."""
    trial = trial_gates(prepared, key) if prepared.penalty.sparse else None
    return certify_program(
        prepared.program,
        prepared.loss,
        W,
        beta,
        R=R,
        trial_gates=trial,
        penalty=prepared.penalty,
        largest=prepared.beta_max,
    )

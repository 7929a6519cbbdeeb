r"""A gated program solved on the few gates that it needs: a working set that grows where it must.

At the optimum most gates have no weights, and a pass over those that have some costs their share of
a pass over all. So from weights W::

    S   <- the first gate, those with weights, and those with the largest ||X'D_i R||_F
    W   <- the program of the gates in S alone, solved from W_S               |S| / P of its passes
    gap <- of W with the solve's best residual R over *all* gates             half a pass

until the gap is closed; otherwise S grows by the gates that violate the dual constraint most, and
where it would be more than half of the gates, or the gap is wide, the last solve is of all
(Massias, Gramfort & Salmon 2018, "Celer", do so for the lasso). The bound is one over all gates, so
that no less is proven than by a solve of all, and S needs no safe rule.

This pays where a start is known whose gates are likely to be those of the optimum, and where a pass
takes longer than compiling: each size of S has compiled code of its own.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads import gated
from convex_heads.duality import dual_value, reported_gap, residual
from convex_heads.gated import Prepared
from convex_heads.limits import Limits
from convex_heads.losses import Loss
from convex_heads.operators import Program, adjoint, apply
from convex_heads.penalties import group_norms
from convex_heads.precision import jit
from convex_heads.solution import Record, Solution, Status
from convex_heads.subspace_state import state_at

# Gates of the first set, and by which factor the next one is larger.
_FEWEST, _GROWTH = 4, 4
# A gap after which sets that grow would be solved for nothing: the next one is of all gates.
_FAR = 0.05
# Sets begin with so many times the gates that have weights.
_ROOM = 2
# Of the longest weights, those of a gate that counts as having none: a solve may end with round-off
# at gates that are off.
_NONE = 1e-3
# A set's own gap, of the tolerance: what the other gates add to it must fit in the rest.
_OWN_GAP = 0.5
# Multiplications of one product with the data from which all gates take longer than compiling.
_LARGE = 1 << 30
_SPENT = (Status.MAX_PASSES, Status.MAX_SECONDS, Status.BROKEN)


def pays(prepared: Prepared) -> bool:
    """Whether a program is one for :func:`minimise`: large, and with zeros to leave out."""
    P, d, C = prepared.program.shape
    large = prepared.program.omega.size * d * P * C >= _LARGE
    return large and prepared.penalty.sparse and P > _FEWEST


def minimise(
    prepared: Prepared, beta: float, W: Array, *, limits: Limits | None = None
) -> Solution:
    """Solves a prepared program with the group penalty from weights that are likely to be near.

    Args:
        prepared: the program; its first gate is always on.
        beta: absolute penalty, > 0.
        W: rotated weights (P, d, C) to start from.
        limits: when to stop. Passes are counted in passes over all gates.

    Returns:
        As :func:`convex_heads.gated.minimise`; the gap is over all gates.

    Example:
        >>> import jax
        >>> from convex_heads.losses import LOGISTIC
        >>> rng = np.random.default_rng(0)
        >>> X = np.c_[rng.normal(size=(200, 4)), np.ones(200)].astype("float32")
        >>> Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
        >>> prepared = gated.prepare(X, Y, np.ones(200), LOGISTIC, 32, jax.random.key(0))
        >>> W = jnp.zeros(prepared.program.shape)
        >>> solution = minimise(prepared, 0.3 * prepared.beta_max, W)
        >>> solution.status.name, solution.stats.relative_gap <= 1e-3
        ('CONVERGED', True)
    """
    limits, began = limits or Limits(), time.perf_counter()
    program, loss, P = prepared.program, prepared.loss, len(W)
    beta_ = jnp.asarray(beta, program.X.dtype)
    R = residual(program, loss, apply(program, W))
    norms, bound = _look(program, loss, beta_, R)
    passes, iterations, size, history = 1.0, 0, _FEWEST, []
    while True:
        lengths = np.asarray(group_norms(W))
        weighty = lengths > _NONE * lengths.max()
        chosen = _working_set(weighty, np.asarray(norms), size)
        share, part = len(chosen) / P, program
        left = limits.after(passes, time.perf_counter() - began)
        if share < 1:
            part = program._replace(D=program.D[:, :, chosen])
            left = replace(
                left,
                tolerance=_OWN_GAP * limits.tolerance,
                max_passes=math.ceil(left.max_passes / share),
            )
        solution, _ = gated.minimise(
            prepared._replace(program=part),
            beta,
            warm=state_at(part, prepared.penalty, W[chosen]),
            limits=left,
        )
        W = jnp.zeros_like(W).at[chosen].set(solution.value)
        norms, dual = _look(program, loss, beta_, solution.residual)
        if dual >= bound:
            bound, R = dual, solution.residual
        passes += share * solution.stats.passes + 0.5
        iterations += solution.stats.iterations
        gap = reported_gap(solution.stats.primal, float(bound))
        seconds = time.perf_counter() - began
        figures = solution.stats._replace(
            dual=float(bound),
            relative_gap=gap,
            passes=passes,
            iterations=iterations,
            seconds=seconds,
        )
        history.append(Record(passes, figures.primal, figures.dual, gap, round(seconds, 4)))
        status = Status.CONVERGED if gap <= limits.tolerance else solution.status
        if gap <= limits.tolerance or share == 1 or status in _SPENT:
            break
        size = P if gap > _FAR else _GROWTH * len(chosen)
    return solution._replace(
        value=W, residual=R, status=status, stats=figures, history=tuple(history)
    )


def _working_set(weighty: np.ndarray, norms: np.ndarray, size: int) -> np.ndarray:
    """Gates of the next set, ascending: of a size that others are likely to have too, or all.

    Args:
        weighty: which gates have weights (P,) bool.
        norms: ||X'D_i R||_F (P,).
        size: at least so many.
    """
    P = len(norms)
    while size < _ROOM * weighty.sum():
        size *= _GROWTH
    if size > P // 2:
        return np.arange(P)
    wanted = np.where(weighty, np.inf, norms)
    wanted[0] = np.inf  # as everywhere, the first gate of a program is always on
    return np.sort(np.argsort(-wanted, kind="stable")[:size])


@partial(jit, static_argnames="loss")
def _look(program: Program, loss: Loss, beta: Array, R: Array) -> tuple[Array, Array]:
    """||X'D_i R||_F of all gates (P,), and the dual value of R, (). Half a pass."""
    G = adjoint(program, R)
    return group_norms(G), dual_value(program, loss, R, G, beta)

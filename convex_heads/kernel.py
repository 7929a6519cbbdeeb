r"""Ridge heads solved in the span of their rows, where a kernel says all about them.

Under a ridge penalty the optimum of phi(F W) + beta ||W||^2 / 2 is W = F'A for some A (n, C), the
representer theorem (Kimeldorf & Wahba 1971). So the gated map enters through its kernel alone,

.. math:: K = F F', \qquad K_{jk} = x_j'x_k \cdot \#\{i : g_i'x_j \ge 0,\; g_i'x_k \ge 0\},

and with L L' = K + eps I the program is one of a single gate on rows of n numbers,

.. math:: \min_u\; \phi(L u) + \tfrac{\beta}{2} \|u\|^2, \qquad A = L'^{-1} u,

which :mod:`convex_heads.subspace` solves. A product takes n^2 C multiplications in place of
n d P C, whatever the number of gates; K takes n^2 (d + P) and L n^3 / 6, once for a path. With few
outputs such products wait for memory, so this is for many gates, features and outputs.

eps makes the factor exist in floating point. It takes nothing from the proof: ||L'R||^2 is at least
||F'R||^2, so that every bound is one of the program itself, and what W is worth is computed
without eps, from F W = L u - eps A. Should the two leave a gap that is too wide, the solver of all
gates goes on from W.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from convex_heads import subspace
from convex_heads.driver import going_on
from convex_heads.duality import relative_gap
from convex_heads.limits import Limits
from convex_heads.losses import Loss
from convex_heads.operators import Program, adjoint, apply
from convex_heads.penalties import RIDGE, Penalty
from convex_heads.precision import Precision, jit
from convex_heads.sharding import devices_here
from convex_heads.solution import Record, Solution, Status
from convex_heads.subspace_state import State, objective, state_at

# Rows beyond which the kernel is not thought of: it and its factor take 2 GB there in float32.
_MOST_ROWS = 1 << 14
# Multiplications of a product over all gates, to one number of L: with fewer, reading L takes
# longer. On two cores cifar10 (617) is solved three times faster so, trec6 (127) as fast, wordnet6
# (40) and sst2 (14) several times slower.
_TO_READ = 128
# The first eps tried: so many units in the last place of the mean of K's diagonal; then ten times
# as much until there is a factor.
_SHIFT = 8
# The gap of the program with eps, of the tolerance; the rest is for eps.
_OWN_GAP = 0.9
# Products with L after which the kernel is too ill-conditioned to go on with.
_MOST_PASSES = 400


class Factor(NamedTuple):
    """L L' = K + eps I.

    Attributes:
        L: lower triangle, in the blocks of the program's rows (B, b, B b); its padding included.
        eps: ().
    """

    L: Array
    eps: Array


def is_faster(n: int, weights: int) -> bool:
    """Whether n rows under so many weights P d C are solved faster in their span."""
    return n <= _MOST_ROWS and _TO_READ * n <= weights


def pays(program: Program, penalty: Penalty) -> bool:
    """Whether a program is one for :func:`minimise`: faster so, under ridge, on one device."""
    return (
        not penalty.sparse
        and is_faster(program.omega.size, math.prod(program.shape))
        and program.precision is Precision.FLOAT32
        and devices_here() == 1
    )


def factored(program: Program) -> Factor | None:
    """The factor of a program's kernel; row weights and targets have no part in it.

    None where there is none in floating point, not even with an eps as large as K.
    """
    dtype = program.X.dtype
    shift = _SHIFT * float(jnp.finfo(dtype).eps)
    while shift < 1:
        factor = _factored(program, jnp.asarray(shift, dtype))
        if bool(jnp.isfinite(factor.L[-1, -1, -1])):
            return factor
        shift *= 10
    return None


@jit
def _factored(program: Program, shift: Array) -> Factor:
    n, (P, d, _) = program.omega.size, program.shape
    X, D = program.X.reshape(n, d), program.D.reshape(n, P).astype(program.X.dtype)
    K = (X @ X.T) * (D @ D.T)
    eps = shift * jnp.mean(jnp.diagonal(K))
    L = jnp.linalg.cholesky(K + eps * jnp.eye(n, dtype=K.dtype), symmetrize_input=False)
    return Factor(L.reshape(*program.omega.shape, n), eps)


def minimise(
    program: Program,
    factor: Factor,
    loss: Loss,
    beta: float,
    *,
    warm: State | None = None,
    limits: Limits | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> tuple[Solution, State]:
    """Solves a gated program under a ridge penalty.

    Args:
        program: the blocked data.
        factor: of its kernel.
        loss: the row loss.
        beta: absolute penalty, > 0.
        warm: final state of a solve with the same factor, or of :func:`resume`; it is used up.
        limits: when to stop. Passes are counted in passes over all gates, by multiplications.
        on_record: called with every history record.

    Returns:
        As :func:`convex_heads.gated.minimise`.

    Example:
        >>> import jax, numpy as np
        >>> from convex_heads.gated import prepare
        >>> from convex_heads.losses import LOGISTIC
        >>> rng = np.random.default_rng(0)
        >>> X = np.c_[rng.normal(size=(80, 6)), np.ones(80)].astype("float32")
        >>> Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
        >>> at = prepare(X, Y, np.ones(80), LOGISTIC, 64, jax.random.key(0), RIDGE)
        >>> factor = factored(at.program)
        >>> solution, _ = minimise(at.program, factor, LOGISTIC, 0.1 * at.beta_max)
        >>> solution.value.shape, solution.stats.relative_gap <= 1e-3
        ((64, 7, 1), True)
    """
    limits, began = limits or Limits(), time.perf_counter()
    P, d, _ = program.shape
    share = program.omega.size / (P * d)
    within = replace(
        limits,
        tolerance=_OWN_GAP * limits.tolerance,
        max_passes=min(_MOST_PASSES, math.ceil(limits.max_passes / share)),
    )

    def counted(record: Record) -> Record:
        return record._replace(passes=share * record.passes)

    own, state = subspace.minimise(
        _in_span(program, factor),
        loss,
        beta,
        penalty=RIDGE,
        warm=warm,
        limits=within,
        on_record=None if on_record is None else lambda record: on_record(counted(record)),
    )
    W, z, primal = _given_back(program, factor, loss, jnp.asarray(beta, own.value.dtype), state)
    gap = max(0.0, float(relative_gap(primal, jnp.asarray(own.stats.dual, primal.dtype))))
    figures = own.stats._replace(
        primal=float(primal),
        relative_gap=gap,
        passes=share * own.stats.passes + 0.5,
        seconds=time.perf_counter() - began,
    )
    at = Record(figures.passes, figures.primal, figures.dual, gap, round(figures.seconds, 4))
    history = (*map(counted, own.history), at)
    if on_record is not None:
        on_record(at)
    found = own._replace(value=W, scores=z, stats=figures, history=history)
    if gap <= limits.tolerance:
        return found._replace(status=Status.CONVERGED), state
    if own.status is Status.MAX_SECONDS:
        return found, state
    if figures.passes >= limits.max_passes:
        return found._replace(status=Status.MAX_PASSES), state
    return _on_all_gates(program, factor, loss, beta, found, limits, on_record)


def resume(program: Program, factor: Factor, W: Array) -> State:
    """A state at weights W (P, d, C) in the span of the rows, or at what of them is in it."""
    z = apply(program, W)
    n, C = program.omega.size, z.shape[-1]
    u = solve_triangular(factor.L.reshape(n, n), z.reshape(n, C), lower=True)
    return state_at(_in_span(program, factor), RIDGE, u[None])


def _in_span(program: Program, factor: Factor) -> Program:
    """The program of the same rows that has L for its features, and one gate."""
    return program._replace(X=factor.L, D=jnp.ones((*program.omega.shape, 1), bool))


@partial(jit, static_argnames="loss")
def _given_back(
    program: Program, factor: Factor, loss: Loss, beta: Array, state: State
) -> tuple[Array, Array, Array]:
    """W = F'A (P, d, C), F W (B, b, C) and the objective there, ()."""
    n, (u,) = program.omega.size, state.W
    A = solve_triangular(factor.L.reshape(n, n), u, trans="T", lower=True).reshape(state.z.shape)
    W, z = adjoint(program, A), state.z - factor.eps * A
    return W, z, objective(program, loss, RIDGE, beta, W, z)


def _on_all_gates(
    program: Program,
    factor: Factor,
    loss: Loss,
    beta: float,
    found: Solution,
    limits: Limits,
    on_record: Callable[[Record], None] | None,
) -> tuple[Solution, State]:
    """Goes on from what has been found, where eps or round-off left the gap too wide."""
    spent, history = found.stats, list(found.history)

    solution, _ = subspace.minimise(
        program,
        loss,
        beta,
        penalty=RIDGE,
        warm=state_at(program, RIDGE, found.value),
        limits=limits.after(spent.passes, spent.seconds),
        on_record=going_on(history, spent.passes, spent.seconds, on_record),
    )
    figures = solution.stats._replace(
        passes=spent.passes + solution.stats.passes,
        iterations=spent.iterations + solution.stats.iterations,
        seconds=spent.seconds + solution.stats.seconds,
    )
    solution = solution._replace(stats=figures, history=tuple(history))
    return solution, resume(program, factor, solution.value)

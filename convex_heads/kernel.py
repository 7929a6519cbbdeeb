r"""Ridge heads solved in the span of their rows, where a kernel says all about them.

Under a ridge penalty the optimum of phi(F W) + beta ||W||^2 / 2 is W = F'A for some A (n, C), the
representer theorem (Kimeldorf & Wahba 1971). So the gated map enters through its kernel alone,

.. math:: K = F F', \qquad K_{jk} = x_j'x_k \cdot \#\{i : g_i'x_j \ge 0,\; g_i'x_k \ge 0\},

.. math:: \min_A\; \phi(K A) + \tfrac{\beta}{2} \langle A, K A \rangle .

The gradient over W is F'(R + beta A), R the residual: in these coordinates it takes no product,
and one with K for its scores. One step:

    R = residual at z0 + K A,  g = -R / beta - A,  K g              n^2 C multiplications
    A <- the minimiser of the objective over A + span{g, the last step}

which are conjugate gradients in the inner product of K where the loss is a quadratic, and the
search of :mod:`convex_heads.span` where it is not. K g also gives ||F'R||^2 = <R, K R>, and so a
dual bound at every step. The next beta of a path begins with the best in the span of the last
optimum and the way to it, which takes no product. A pass over all gates takes 2 n d P C
multiplications; K takes n^2 (d + P) / 2, once for a path.

Where round-off ends the search too early, the solver of all gates goes on from W.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads import subspace
from convex_heads.driver import drive, going_on, stats
from convex_heads.duality import loss_value, relative_gap, residual, scaled_dual
from convex_heads.limits import Limits
from convex_heads.losses import Loss
from convex_heads.operators import Program, adjoint, apply
from convex_heads.penalties import RIDGE, Penalty
from convex_heads.precision import jit
from convex_heads.sharding import devices_here
from convex_heads.solution import Record, Solution, Status
from convex_heads.span import Span, roundoff, search
from convex_heads.subspace_state import state_at

# Rows beyond which the kernel is not thought of: it takes 2.4 GB there in float32.
_MOST_ROWS = 24 << 10
# Multiplications of a product over all gates, to one number of K: with fewer, making and reading K
# take longer. On two cores a fit takes 0.14 of the seconds at 617 (cifar10), 0.4 at 40 (wordnet6),
# 1.0 at 14 (sst2), 1.4 at 7.
_TO_READ = 16
# Steps between two looks at the clock, and those after which K A is computed anew.
_CHUNK, _REFRESH = 8, 32
# Steps without progress that mean that round-off has been reached, what progress is, as a share of
# the gap, and for how many of them a step counts whose image proved unsound.
_MAX_IDLE, _PROGRESS, _UNSOUND = 15, 1e-4, 8
# Steps after which K is too ill-conditioned to go on with.
_MOST_STEPS = 800


class State(NamedTuple):
    """Where a solve stands. It serves any number of warm starts.

    Attributes:
        A: coefficients of the rows (B, b, C).
        z: K A (B, b, C).
        step: the last step of A, and its image under K (2, B, b, C).
        begun: A where the solve began, and its image (2, B, b, C).
        kept: whether the search may use it, ().
        R: residual of the best dual point so far (B, b, C).
        primal: objective at A, ().
        lowest: the lowest so far, which round-off may have left again, ().
        dual: best dual value, ().
        passes: data passes over all gates that took as many multiplications, ().
        iterations: steps taken, () int32.
        idle: steps since the objective or the bound last gained 1e-4 of the gap, () int32.
    """

    A: Array
    z: Array
    step: Array
    begun: Array
    kept: Array
    R: Array
    primal: Array
    lowest: Array
    dual: Array
    passes: Array
    iterations: Array
    idle: Array

    @property
    def gap(self) -> Array:
        """Relative gap, ()."""
        return relative_gap(self.primal, self.dual)


def is_faster(n: int, weights: int) -> bool:
    """Whether n rows under so many weights P d C are solved faster in their span."""
    return n <= _MOST_ROWS and _TO_READ * n <= weights


def pays(program: Program, penalty: Penalty) -> bool:
    """Whether a float32 program is one for :func:`minimise`: faster, ridge, one device."""
    return (
        not penalty.sparse
        and is_faster(program.omega.size, math.prod(program.shape))
        and devices_here() == 1
    )


@jit
def gram(program: Program) -> Array:
    """K = F F' (n, n), n with the padding; row weights and targets have no part in it."""
    B, b, _ = program.X.shape
    D = program.D.astype(program.X.dtype)
    # K is symmetric: half of its blocks are computed.
    rows, columns = (jnp.asarray(at) for at in np.tril_indices(B))

    def block(k: Array, K: Array) -> Array:
        i, j = rows[k], columns[k]
        part = (program.X[i] @ program.X[j].T) * (D[i] @ D[j].T)
        K = jax.lax.dynamic_update_slice(K, part.T, (j * b, i * b))
        return jax.lax.dynamic_update_slice(K, part, (i * b, j * b))

    return jax.lax.fori_loop(0, len(rows), block, jnp.zeros((B * b, B * b), D.dtype))


def minimise(
    program: Program,
    K: Array,
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
        K: its kernel (n, n), of :func:`gram`.
        loss: the row loss.
        beta: absolute penalty, > 0.
        warm: final state of a solve with the same kernel, or of :func:`resume`.
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
        >>> solution, _ = minimise(at.program, gram(at.program), LOGISTIC, 0.1 * at.beta_max)
        >>> solution.value.shape, solution.stats.relative_gap <= 1e-3
        ((64, 7, 1), True)
    """
    limits, began = limits or Limits(), time.perf_counter()
    most = math.ceil(_MOST_STEPS * _share(program))
    dtype = program.X.dtype
    beta_, tolerance = jnp.asarray(beta, dtype), jnp.asarray(limits.tolerance, dtype)
    state, status, history = drive(
        lambda s: _advance(program, K, loss, beta_, tolerance, s),
        _restated(program, loss, beta_, _zero(program) if warm is None else warm),
        replace(limits, max_passes=min(most, limits.max_passes)),
        max_idle=_MAX_IDLE,
        on_record=on_record,
    )
    W = jax.block_until_ready(adjoint(program, state.A))
    figures = stats(state, time.perf_counter() - began, program.X.shape[1])
    figures = figures._replace(passes=figures.passes + 0.5)
    found = Solution(W, status, figures, history, state.z, state.R)
    within = status is Status.MAX_PASSES and figures.passes < limits.max_passes
    if status is Status.STALLED or within:
        return _on_all_gates(program, K, loss, beta, found, limits, on_record)
    return found, state


def resume(program: Program, K: Array, loss: Loss, W: Array) -> State:
    """A state near weights W (P, d, C).

    At an optimum R = -beta A, and beta is what F'R = -beta W says that it is. Elsewhere the error
    of that A is one in directions in which K is large, where a few steps take it away.
    """
    z = apply(program, W)
    A, z = _coefficients(program, K, loss, W, z)
    return _zero(program)._replace(A=A, z=z)


@partial(jit, static_argnames="loss")
def _coefficients(
    program: Program, K: Array, loss: Loss, W: Array, z: Array
) -> tuple[Array, Array]:
    """A (B, b, C) that weights W with scores z = F W have if they are optimal, and K A."""
    R = residual(program, loss, z)
    along = -jnp.vdot(R, z)
    A = jnp.where(along > 0, -R * (jnp.vdot(W, W) / jnp.where(along > 0, along, 1)), 0)
    return A, _image(K, A)


def _image(K: Array, A: Array) -> Array:
    """K A (B, b, C)."""
    return (K @ A.reshape(len(K), -1)).reshape(A.shape)


def _share(program: Program) -> float:
    """Multiplications of a product with K, of those of a data pass."""
    P, d, _ = program.shape
    return program.omega.size / (2 * P * d)


def _zero(program: Program) -> State:
    """State at A = 0, before :func:`_restated` has given it a penalty."""
    nothing, zero = jnp.zeros_like(program.Y), jnp.zeros((), program.Y.dtype)
    return State(
        A=nothing,
        z=nothing,
        step=jnp.stack([nothing, nothing]),
        begun=jnp.stack([nothing, nothing]),
        kept=jnp.array(False),
        R=nothing,
        primal=zero,
        lowest=zero,
        dual=zero,
        passes=zero,
        iterations=jnp.int32(0),
        idle=jnp.int32(0),
    )


@partial(jit, static_argnames="loss")
def _restated(program: Program, loss: Loss, beta: Array, s: State) -> State:
    """A start under another penalty or other row weights, bounds forgotten.

    It is the best in the span of A and of the way that the last solve went, if there was one. Not
    of what :func:`resume` gives: where K is large it is in error, and all of it would be shrunk.
    """
    at = jnp.stack([s.A, s.z])
    ways, kept = jnp.stack([at, at - s.begun]), jnp.full(2, s.iterations > 0)
    primal = _objective(program, loss, beta, s.A, s.z)
    t = _searched(program, loss, beta, s, primal, ways, kept)
    A, z = at + jnp.tensordot(t, ways, 1)
    primal = _objective(program, loss, beta, A, z)
    return s._replace(
        A=A,
        z=z,
        begun=at,
        R=jnp.zeros_like(s.R),
        primal=primal,
        lowest=primal,
        dual=jnp.full_like(primal, -jnp.inf),
        passes=jnp.zeros_like(primal),
        iterations=jnp.int32(0),
        idle=jnp.int32(0),
    )


def _searched(
    program: Program,
    loss: Loss,
    beta: Array,
    s: State,
    primal: Array,
    ways: Array,
    kept: Array,
) -> Array:
    """The best coefficients (k,) from A along ways with their images (k, 2, B, b, C).

    Nothing beside a product with K: so it is exact, where a model at A would nearly do.
    """
    moves, images = ways[:, 0], ways[:, 1]
    inner = jnp.einsum("i...,j...->ij", moves, images)
    along = jnp.einsum("i...,...->i", moves, s.z)
    size = jnp.vdot(s.A, s.z)
    span = Span(s.z, jnp.moveaxis(images, 0, 1), size[None], along[None], inner[None], kept)
    return search(program, loss, RIDGE, beta, primal, span, jnp.zeros_like(along))[0]


def _objective(program: Program, loss: Loss, beta: Array, A: Array, z: Array) -> Array:
    return loss_value(program, loss, z) + beta / 2 * jnp.vdot(A, z)


@partial(jit, static_argnames="loss")
def _advance(
    program: Program, K: Array, loss: Loss, beta: Array, tolerance: Array, s: State
) -> State:
    """Some steps, fewer if the gap closes or progress ends."""

    def go_on(carry: tuple[Array, State]) -> Array:
        k, s = carry
        return (k < _CHUNK) & (s.gap > tolerance) & (s.idle < _MAX_IDLE)

    return jax.lax.while_loop(
        go_on,
        lambda c: (c[0] + 1, _step(program, K, loss, beta, tolerance, c[1])),
        (jnp.int32(0), s),
    )[1]


def _step(program: Program, K: Array, loss: Loss, beta: Array, tolerance: Array, s: State) -> State:
    """One step; see the module's docstring."""
    R = residual(program, loss, s.z)
    # Scaled so that a step along it is at most one.
    g = -R / beta - s.A
    Kg = _image(K, g)
    ways = jnp.stack([jnp.stack([g, Kg]), s.step])
    kept = jnp.stack([jnp.array(True), s.kept])
    # R = -beta (g + A), and ||F'R||^2 = <R, K R>. Every residual is a dual point.
    square = beta * beta * (jnp.vdot(g, Kg) + 2 * jnp.vdot(g, s.z) + jnp.vdot(s.A, s.z))
    dual = scaled_dual(program, loss, R, jnp.ones_like(beta)) - square / (2 * beta)
    higher = dual > s.dual
    t = _searched(program, loss, beta, s, s.primal, ways, kept)
    A, z = jnp.stack([s.A, s.z]) + jnp.tensordot(t, ways, 1)
    primal = _objective(program, loss, beta, A, z)
    step = jnp.stack([A - s.A, z - s.z])
    noise = roundoff(s.primal)
    dual = jnp.maximum(dual, s.dual)
    good = primal <= s.primal + noise
    A, believed = jnp.where(good, A, s.A), jnp.where(good, primal, s.primal)
    # The images are summed up over many steps: no gap is believed that rests on them.
    refresh = (
        ~good
        | (s.iterations % _REFRESH == _REFRESH - 1)
        | (believed - dual <= tolerance * believed)
    )

    def summed_anew() -> tuple[Array, Array]:
        z = _image(K, A)
        return z, _objective(program, loss, beta, A, z)

    z, primal = jax.lax.cond(refresh, summed_anew, lambda: (z, believed))
    sound = good & (jnp.abs(primal - believed) <= roundoff(primal))
    gain = jnp.maximum(s.lowest - primal, dual - s.dual)
    idle = jnp.where(gain > _PROGRESS * (primal - dual), 0, s.idle + 1)
    return State(
        A=A,
        z=z,
        step=step,
        begun=s.begun,
        kept=sound,
        R=jnp.where(higher, R, s.R),
        primal=primal,
        lowest=jnp.minimum(s.lowest, primal),
        dual=dual,
        passes=s.passes + jnp.where(refresh, 2, 1) * _share(program),
        iterations=s.iterations + 1,
        idle=jnp.where(sound, idle, s.idle + _UNSOUND),
    )


def _on_all_gates(
    program: Program,
    K: Array,
    loss: Loss,
    beta: float,
    found: Solution,
    limits: Limits,
    on_record: Callable[[Record], None] | None,
) -> tuple[Solution, State]:
    """Goes on from what has been found, where round-off left the gap too wide."""
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
    return solution, resume(program, K, loss, solution.value)

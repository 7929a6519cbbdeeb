r"""Descent on a ReLU network's own objective, down to the optimum of its neurons' program.

.. math:: \min_{v, w}\; \sum_j \omega_j\, l\Big(z_0 + \sum_i (X v_{ic})_+ - (X w_{ic})_+\Big)_j
          + \beta \sum_{ic} (\|v_{ic}\| + \|w_{ic}\|) .

This is the training problem of a two-layer ReLU network with weight decay (Pilanci & Ergen 2020,
theorem 1), not convex. But a stationary point of it is the *global* optimum of the convex ReLU
program of the network's own neurons, each pattern with the output and sign that it has (Ergen &
Pilanci 2023): the patterns that gates drawn at random cannot have when rows are many, because their
cones are little more than rays, are found by descending, and the certificate of
:func:`convex_heads.relu.certify_neurons` then proves how far the network is from the optimum of the
program that it has found. A network that uses one of these patterns for another output, or with the
other sign, is no point of that program, and may be below its bound.

One step is a proximal gradient step from a point ahead of the weights,

    U  = V + (V - V_prev)           full momentum, or none after a restart
    V+ = prox of the penalty in the metric L diag(h) at U - G(U) / (L h)
    accept L if  f(V+) <= f(U) + <G(U), V+ - U> + L/2 ||V+ - U||_h^2  (with slack), else L <- 2L
    restart if the objective rose, or if  <U - V+, V+ - V>_h > 0

with f the loss and G its gradient where the patterns are those of U. Patterns change at every
step; they are recomputed in the sweep that needs them. A step that raises the objective is taken
back, so the objective never rises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads.driver import drive, stats
from convex_heads.duality import relative_gap, scaled_dual
from convex_heads.limits import Limits
from convex_heads.losses import Loss
from convex_heads.operators import Program, columns_of, hidden, pull_back, weights_of
from convex_heads.penalties import dual_scale, neuron_norms, prox_neurons
from convex_heads.precision import jit
from convex_heads.solution import Record, Solution, Status

# Steps between two looks at the clock.
_CHUNK = 10
_L_SHRINK = 0.9
_MAX_TRIES = 12
# So many steps in a row that each gain less than this share of the tolerance, relative to the
# objective, end a descent.
_PROGRESS = 5e-3
_MAX_IDLE = 10
# A descent goes on after its neurons have been rescaled, as long as that gained this share of the
# tolerance.
_WORTH = 0.1
_MAX_ROUNDS = 4
_RESCALE_STEPS = 300


class State(NamedTuple):
    """Where a descent stands.

    Attributes:
        V: neurons (P, d, 2 C): for every gate and output a positive one, then a negative one.
        V_prev: the neurons before them; equal to V after a restart.
        z: scores of V without offset (B, b, C).
        R: residual of the best dual point so far (B, b, C).
        L: Lipschitz estimate in the metric h, ().
        primal: objective at V, ().
        dual: best value of a dual point of the program of V's own neurons, without multipliers of
            the cones, ().
        passes: data passes used, each of 2 C columns for every gate, ().
        iterations: steps taken, () int32.
        idle: steps since the objective last fell by a share of the tolerance, () int32.
    """

    V: Array
    V_prev: Array
    z: Array
    R: Array
    L: Array
    primal: Array
    dual: Array
    passes: Array
    iterations: Array
    idle: Array

    @property
    def gap(self) -> Array:
        """Relative gap, ()."""
        return relative_gap(self.primal, self.dual)


def _signed_sum(Z: Array) -> Array:
    """Hidden values (b, 2 C, P) -> scores (b, C)."""
    positive, negative = jnp.split(jnp.sum(Z, axis=2), 2, axis=1)
    return positive - negative


@jit
def network_scores(program: Program, V: Array) -> Array:
    """Scores without offset (B, b, C) of neurons V (P, d, 2 C). A third of a data pass."""
    columns, P = columns_of(V), V.shape[0]
    return jax.lax.map(lambda X: _signed_sum(jax.nn.relu(hidden(X, columns, P))), program.X)


class Slope(NamedTuple):
    """Loss (), scores (B, b, C), residual (B, b, C) and gradient (P, d, 2 C) at neurons."""

    loss: Array
    z: Array
    R: Array
    G: Array


@partial(jit, static_argnames="loss")
def slope(program: Program, loss: Loss, V: Array) -> Slope:
    """The loss and its gradient in one sweep over the rows. One data pass."""
    P, d, K = V.shape
    columns = columns_of(V)

    def block(carry: tuple, rows: tuple[Array, ...]) -> tuple[tuple, tuple[Array, Array]]:
        value, total = carry
        X, Y, omega = rows
        Z = hidden(X, columns, P)
        z = _signed_sum(jax.nn.relu(Z))
        score = program.z0 + z
        r = omega[:, None] * loss.gradient(score, Y)
        both = jnp.concatenate([r, -r], axis=1)[:, :, None]
        back = jnp.where(Z > 0, both, jnp.zeros_like(Z))
        value += jnp.sum(omega * loss.value(score, Y))
        return (value, total + pull_back(X, back)), (z, r)

    (value, total), (z, R) = jax.lax.scan(
        block,
        (jnp.zeros((), V.dtype), jnp.zeros((d, K * P), V.dtype)),
        (program.X, program.Y, program.omega),
    )
    return Slope(value, z, R, weights_of(total, P))


@partial(jit, static_argnames="loss")
def own_bound(program: Program, loss: Loss, beta: Array, V: Array) -> tuple[Array, Array]:
    """Residual (B, b, C) at V, and its dual value in the program of V's own neurons, ().

    Without multipliers of the cones: a weaker bound than the certificate's.
    """
    at = slope(program, loss, V)
    return at.R, _dual(program, loss, beta, V, at)


def _dual(program: Program, loss: Loss, beta: Array, V: Array, at: Slope) -> Array:
    # Neurons that are off need no dual constraint: they are not part of the program.
    norm = jnp.max(jnp.where(neuron_norms(V) > 0, neuron_norms(at.G), 0))
    return scaled_dual(program, loss, at.R, dual_scale(norm, beta))


def objective(program: Program, loss: Loss, beta: Array, V: Array, z: Array) -> Array:
    """The network's objective, from neurons and their scores."""
    rows = loss.value(program.z0 + z, program.Y)
    return jnp.sum(program.omega * rows) + beta * jnp.sum(neuron_norms(V))


@partial(jit, static_argnames="loss")
def init(program: Program, loss: Loss, beta: Array, V: Array, L: Array) -> State:
    """State at neurons V (P, d, 2 C); L is a first guess of the Lipschitz constant."""
    z = network_scores(program, V)
    dtype = z.dtype
    return State(
        V=V,
        V_prev=V,
        z=z,
        R=jnp.zeros_like(z),
        L=jnp.asarray(L, dtype),
        primal=objective(program, loss, beta, V, z),
        dual=jnp.full((), -jnp.inf, dtype),
        passes=jnp.full((), 0.5, dtype),
        iterations=jnp.zeros((), jnp.int32),
        idle=jnp.zeros((), jnp.int32),
    )


def step(program: Program, loss: Loss, h: Array, beta: Array, tolerance: Array, s: State) -> State:
    """One step; see the module's docstring."""
    U = 2 * s.V - s.V_prev
    at = slope(program, loss, U)
    hk = h[None, :, None]
    slack = 8 * jnp.finfo(at.loss.dtype).eps * jnp.abs(at.loss)

    def attempt(carry: tuple) -> tuple:
        L, tries, *_ = carry
        L = jnp.where(tries > 0, 2 * L, L)
        V = prox_neurons(U - at.G / (L * hk), h, beta / L)
        z = network_scores(program, V)
        f = jnp.sum(program.omega * loss.value(program.z0 + z, program.Y))
        move = V - U
        quadratic = L / 2 * jnp.sum(hk * move * move)
        return L, tries + 1, V, z, f <= at.loss + jnp.sum(at.G * move) + quadratic + slack

    L, tries, V, z, _ = jax.lax.while_loop(
        lambda carry: ~carry[-1] & (carry[1] < _MAX_TRIES),
        attempt,
        (s.L, jnp.zeros((), jnp.int32), s.V, s.z, jnp.zeros((), bool)),
    )
    primal = objective(program, loss, beta, V, z)
    better = primal < s.primal
    against = jnp.sum(hk * (U - V) * (V - s.V)) > 0
    new = jnp.where(better, V, s.V)
    return State(
        V=new,
        V_prev=jnp.where(better & ~against, s.V, new),
        z=jnp.where(better, z, s.z),
        R=at.R,
        L=jnp.where(better, L * _L_SHRINK, L),
        primal=jnp.minimum(primal, s.primal),
        # Of U's patterns: a guide, until the descent has ended.
        dual=_dual(program, loss, beta, U, at),
        passes=s.passes + 1 + 0.5 * tries.astype(s.passes.dtype),
        iterations=s.iterations + 1,
        idle=jnp.where(s.primal - primal > _PROGRESS * tolerance * s.primal, 0, s.idle + 1),
    )


@partial(jit, static_argnames=("loss", "steps"))
def advance(
    program: Program, loss: Loss, h: Array, beta: Array, tolerance: Array, s: State, steps: int
) -> State:
    """At most `steps` steps, fewer if the gap closes or progress ends."""

    def go_on(carry: tuple[Array, State]) -> Array:
        k, s = carry
        return (k < steps) & (s.gap > tolerance) & (s.idle < _MAX_IDLE)

    return jax.lax.while_loop(
        go_on,
        lambda c: (c[0] + 1, step(program, loss, h, beta, tolerance, c[1])),
        (jnp.int32(0), s),
    )[1]


@partial(jit, static_argnames="loss")
def rescale(program: Program, loss: Loss, beta: Array, V: Array) -> Array:
    r"""The best lengths of neurons whose directions stay: V (P, d, 2 C) -> V.

    .. math:: \min_{\alpha \ge 0}\; \sum_j \omega_j\, l\Big(z_0 + \sum_{ik} \pm\alpha_{ik}
              \Big(X \tfrac{v_{ik}}{\|v_{ik}\|}\Big)_+\Big)_j + \beta \sum_{ik} \alpha_{ik}

    is convex, and its optimum is the convex program of the network's neurons restricted to the
    rays of its neurons. Hidden values (n, 2 P C) are kept, so a step of accelerated proximal
    gradient costs a d-th of a data pass; lengths are only changed to lower the objective.
    """
    P = V.shape[0]
    length = neuron_norms(V)
    rays = V / jnp.where(length > 0, length, 1)[:, None, :]
    columns = columns_of(rays)
    values = jax.lax.map(lambda X: jax.nn.relu(hidden(X, columns, P)), program.X)
    curvature = loss.curvature * jnp.einsum("nb,nbkp->kp", program.omega, values * values)
    curvature = jnp.maximum(curvature, jnp.finfo(V.dtype).tiny)

    def scores(a: Array) -> Array:
        positive, negative = jnp.split(jnp.einsum("nbkp,kp->nbk", values, a), 2, axis=-1)
        return positive - negative

    def value(z: Array) -> Array:
        return jnp.sum(program.omega * loss.value(program.z0 + z, program.Y))

    def body(_: Array, carry: tuple) -> tuple:
        a, previous, L, lowest = carry
        u = 2 * a - previous
        zu = scores(u)
        R = program.omega[..., None] * loss.gradient(program.z0 + zu, program.Y)
        g = jnp.einsum("nbkp,nbk->kp", values, jnp.concatenate([R, -R], axis=-1))
        new = jnp.maximum(0, u - (g + beta) / (L * curvature))
        f, move = value(scores(new)), new - u
        bound = value(zu) + jnp.sum(g * move) + L / 2 * jnp.sum(curvature * move * move)
        objective = f + beta * jnp.sum(new)
        fits = f <= bound + 8 * jnp.finfo(f.dtype).eps * jnp.abs(f)
        better = fits & (objective < lowest)
        against = jnp.sum(curvature * (u - new) * (new - a)) > 0
        kept = jnp.where(better, new, a)
        return (
            kept,
            jnp.where(better & ~against, a, kept),
            jnp.where(fits, 0.9, 2) * L,
            jnp.where(better, objective, lowest),
        )

    a = length.T
    start = a, a, jnp.ones((), V.dtype), value(scores(a)) + beta * jnp.sum(a)
    a = jax.lax.fori_loop(0, _RESCALE_STEPS, body, start)[0]
    return rays * a.T[:, None, :]


def minimise(
    program: Program,
    loss: Loss,
    beta: float,
    *,
    h: Array,
    V: Array,
    L: float | Array = 1.0,
    limits: Limits | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> tuple[Solution, State]:
    """Descends from neurons V for one beta.

    Args:
        program: the blocked data; its patterns are not used.
        loss: the row loss.
        beta: penalty, absolute, >= 0.
        h: positive metric (d,).
        V: neurons (P, d, 2 C) to start from, not all zero: a neuron that is zero stays so.
        L: first guess of the Lipschitz constant in that metric; it adapts.
        limits: when to stop.
        on_record: called with every history record, every few steps.

    Returns:
        The solution (``value`` V (P, d, 2 C)) and the final state.
    """
    limits = limits or Limits()
    start = time.perf_counter()
    dtype = program.X.dtype
    beta_, tolerance = jnp.asarray(beta, dtype), jnp.asarray(limits.tolerance, dtype)
    state = init(program, loss, beta_, V, jnp.asarray(L, dtype))
    passes, spent, status = 0.0, 0.0, Status.STATIONARY
    history: list[Record] = []

    def later(record: Record) -> None:
        """The record counted from the beginning of the whole solve."""
        history.append(record.after(passes, spent))
        if on_record is not None:
            on_record(history[-1])

    for _ in range(_MAX_ROUNDS):
        before, status, _ = drive(
            lambda s: advance(program, loss, h, beta_, tolerance, s, steps=_CHUNK),
            state,
            limits.after(passes, spent),
            max_idle=_MAX_IDLE,
            on_record=later,
        )
        passes, spent = passes + float(before.passes), time.perf_counter() - start
        state = init(program, loss, beta_, rescale(program, loss, beta_, before.V), before.L)
        state = state._replace(iterations=before.iterations)
        gain = float((before.primal - state.primal) / before.primal)
        if status is not Status.STALLED or gain < _WORTH * limits.tolerance:
            break
    R, dual = own_bound(program, loss, beta_, state.V)
    state = state._replace(R=R, dual=dual, passes=state.passes + passes + 1)
    if status is Status.STALLED:
        status = Status.STATIONARY
    figures = stats(state, time.perf_counter() - start, program.X.shape[1])
    return Solution(state.V, status, figures, tuple(history), state.z, state.R), state

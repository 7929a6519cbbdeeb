r"""Sequential subspace optimisation for gated programs: proximal steps with an exact search.

The program, with omega the row weights (summing to one) and F the gated map of
:mod:`convex_heads.operators`:

.. math:: \min_W\; \sum_j \omega_j\, l\big((z_0 + F W)_j, y_j\big) + \beta \sum_i \|W_i\|_F .

One step, a data pass (Narkiss & Zibulevsky 2005; with proximal directions, Elad, Matalon &
Zibulevsky 2007, section 4):

    R  = omega * dl/dz(z0 + F W),  G = F'R                          half a pass
    W+ = prox of the penalty in the metric L diag(h) at W - G / (L h),  z+ = F W+   half a pass
    W <- the minimiser of the objective over W + span{W+ - W, the last m steps}

The last minimisation needs no data (:mod:`convex_heads.span`). On a quadratic the step is conjugate
gradients; the span holds the step of every accelerated method with these directions, so there is no
momentum to tune, nothing to restart and nothing to backtrack: L only shapes the direction, and
follows the length that the search chose along it.

The metric is the diagonal of X' Lambda X, Lambda the curvature of the loss at the current scores,
in features rotated to their principal axes: rows that are fitted have none, and the smaller beta
is, the more of them there are. It may change at any step: no step relies on the ones before.

The patterns of P gates overlap: what all gates do together has a curvature P times that of what
one does alone, so L has to be of the size of P, and steps in everything else are short. The first
gate is always on, and does alone what all do together: its part e of W+ - W has an L of its own and
is a direction of its own, as the coarse level of a two-level preconditioner is (Smith, Bjorstad &
Gropp 1996, section 1.3). Its image is all that it costs, 1/(2P) of a pass.

A ridge penalty is a quadratic and has no zeros to keep. There the span is searched by the quadratic
model at W, whose gradient and residuals are at hand, in one round over the images without an
exponential; where the objective is not what the model says, the exact search follows. A single gate
has no part beside it, and needs no more than its last step: this is preconditioned conjugate
gradients, and scarcely more than its products with the data.

Every R, scaled into the dual ball, is a dual point (:mod:`convex_heads.duality`), so the gap is
known at every step without extra passes. Now and then the gates are levelled
(:mod:`convex_heads.levelling`), which yields a much better dual point, and another direction. Where
comparing objectives drowns in round-off, FISTA (:mod:`convex_heads.fista`) goes on from there, its
gates levelled now and then too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads import fista
from convex_heads.driver import drive, going_on, stats
from convex_heads.duality import relative_gap, residual
from convex_heads.levelling import Levelled, levelled
from convex_heads.limits import Limits
from convex_heads.losses import Loss
from convex_heads.operators import Program, adjoint, apply
from convex_heads.penalties import GROUP, Penalty
from convex_heads.precision import Precision, jit, product
from convex_heads.proximal import metric, proximal_step
from convex_heads.solution import Record, Solution, Status
from convex_heads.span import newton, roundoff, search, span_at
from convex_heads.subspace_state import State, objective, own_directions, restate, zero_state

# Steps between two looks at the clock: a step on real data takes 0.05 to 0.2 s.
_CHUNK = 8
# Steps after which F W is computed anew: between them its round-off adds up.
_REFRESH = 32
# Steps between two levellings, which cost a pass and a half each, or a few times that.
_LEVEL = 6
# Where the model at W tells the gain to this share, there is no search.
_TOLD = 0.25
# What one step may divide L by, squared; the first where W+ went so far that nothing was gained,
# by so many times round-off: within it, the search takes lengths from noise, and L would run away.
_USELESS, _SHORTEST, _LONGEST = 1e-3, 0.25, 2.0
_FAR = 32
# So many steps in which neither objective nor bound gained this share of the gap mean that
# round-off has been reached; a span that proved unsound counts for several.
_PROGRESS = 1e-4
MAX_IDLE = 15
_UNSOUND = 8


def step(
    program: Program,
    loss: Loss,
    penalty: Penalty,
    beta: Array,
    tolerance: Array,
    s: State,
    last: Array,
) -> State:
    """One step; see the module's docstring. beta is the absolute penalty.

    The last step goes to W+, unless that opens the gap: W+ has exact zeros, and the span leaves
    weights of round-off size at gates that are off at the optimum.
    """
    at = proximal_step(program, loss, penalty, beta, s.W, s.z, s.first_L, s.L)
    m = len(s.kept) - own_directions(len(s.W), penalty)
    slot = s.iterations % m
    R, dual, kept, rounds = at.R, at.dual, s.kept, jnp.zeros_like(s.passes)
    places, moves, scores, known = [slot], [at.W - s.W], [at.z - s.z], [jnp.array(True)]
    if len(s.W) > 1:
        first = jnp.zeros_like(s.W).at[0].set(moves[0][0])
        own = jnp.where(program.D[:, :, :1], product(program.X, first[0], program.precision), 0)
        places, known = [slot, m], known * 2
        moves, scores = [moves[0] - first, first], [scores[0] - own, own]
        rounds = rounds + 0.5 / len(s.W)
    back = jnp.zeros(len(kept), s.z.dtype).at[jnp.array(places)].set(-1)
    # Under a ridge penalty every residual is a dual point as it is.
    if penalty.sparse:
        due = ~last & (s.iterations % _LEVEL == _LEVEL - 1)
        even = jax.lax.cond(
            due,
            lambda: levelled(program, loss, beta, s.W, s.z, at.R, at.G, s.primal),
            lambda: Levelled(s.steps[:, -1], s.images[:, -1], at.R, at.G, at.dual, jnp.int32(0)),
        )
        R, dual = jnp.where(even.dual > dual, even.R, R), jnp.maximum(even.dual, dual)
        places, known = [*places, len(kept) - 1], [*known, due | kept[-1]]
        moves, scores = [*moves, even.move], [*scores, even.image]
        rounds = rounds + even.passes
    kept = kept.at[jnp.array(places)].set(jnp.stack(known))
    steps = s.steps.at[:, jnp.array(places)].set(jnp.stack(moves, 1))
    images = s.images.at[:, jnp.array(places)].set(jnp.stack(scores, 1))
    span = span_at(at.W, at.z, steps, images, kept)

    def point(t: Array, plain: Array) -> tuple[Array, ...]:
        """Where the coefficients t lead: t, objective at W+, W, F W, objective."""
        # Gate by gate, block by block: in one product, the compiler would transpose a copy of all.
        combine = partial(jnp.tensordot, t, axes=1)
        W, z = at.W + jax.lax.map(combine, steps), at.z + jax.lax.map(combine, images)
        return t, plain, W, z, objective(program, loss, penalty, beta, W, z)

    def searched() -> tuple[Array, ...]:
        return point(
            *jax.lax.cond(
                last,
                lambda: (jnp.zeros_like(back), s.primal),
                lambda: search(program, loss, penalty, beta, s.primal, span, back),
            )
        )

    if penalty.sparse:
        t, plain, W, z, primal = searched()
    else:
        slope = jnp.einsum("pkdc,pdc->k", steps, at.G)
        t, gain = newton(program, loss, penalty, beta, span, back, at.R, slope)
        near = point(t, jnp.full_like(s.primal, jnp.inf))
        told = jnp.abs(s.primal - near[-1] - gain) <= _TOLD * gain
        t, plain, W, z, primal = jax.lax.cond(told, lambda: near, searched)
    move, image = W - s.W, z - s.z
    noise = roundoff(s.primal)
    higher = dual > s.dual
    dual = jnp.maximum(dual, s.dual)
    # As good as the step before; the last one need only keep the gap.
    good = jnp.where(
        last,
        (primal <= s.primal) | (relative_gap(primal, dual) <= tolerance),
        primal <= s.primal + noise,
    )
    # A short step is a reason for a larger L only where W+ itself went too far.
    far = (primal >= s.primal - noise) & (plain > s.primal + _FAR * noise)
    shortest = jnp.where(far, _USELESS, _SHORTEST)
    shortest = jnp.where(plain > s.primal + noise, shortest, 1)
    W, believed = jnp.where(good, W, s.W), jnp.where(good, primal, s.primal)
    # Scores are summed up over many steps, and every search prefers the directions whose images
    # err in its favour: no gap is believed that rests on them, and a span whose images no longer
    # belong to its steps is given up.
    drifted = at.drift > noise
    refresh = ~good | ~last & (
        drifted
        | (s.iterations % _REFRESH == _REFRESH - 1)
        | (believed - dual <= tolerance * believed)
    )

    def summed_anew() -> tuple[Array, Array]:
        z = apply(program, W)
        return z, objective(program, loss, penalty, beta, W, z)

    z, primal = jax.lax.cond(refresh, summed_anew, lambda: (z, believed))
    sound = good & (jnp.abs(primal - believed) <= roundoff(primal))
    gain = jnp.maximum(s.lowest - primal, dual - s.dual)
    progress = gain > _PROGRESS * (primal - dual)
    return State(
        W=W,
        z=z,
        steps=steps.at[:, slot].set(move),
        images=images.at[:, slot].set(image),
        kept=kept & sound & ~drifted,
        R=jnp.where(higher, R, s.R),
        L=_stretched(s.L, 1 + t[slot], shortest),
        first_L=_stretched(s.first_L, 1 + t[places[len(s.W) > 1]], shortest),
        primal=primal,
        lowest=jnp.minimum(s.lowest, primal),
        dual=dual,
        passes=s.passes + jnp.where(refresh, 1.5, 1) + rounds,
        iterations=s.iterations + 1,
        idle=jnp.where(sound, jnp.where(progress, 0, s.idle + 1), s.idle + _UNSOUND),
    )


def _stretched(L: Array, length: Array, shortest: Array) -> Array:
    """L after a step of which the search took `length`."""
    return L / jnp.sqrt(jnp.clip(length, shortest, _LONGEST))


@partial(jit, static_argnames=("loss", "penalty"), donate_argnames="s")
def advance(
    program: Program,
    loss: Loss,
    penalty: Penalty,
    beta: Array,
    tolerance: Array,
    s: State,
    steps: Array | int,
) -> State:
    """At most `steps` steps, fewer if the gap closes or progress ends; 0 for the last one.

    The state is written over: ``s`` cannot be used again.
    """
    # One compiled step serves for both: compiling takes longer than solving many a program.
    last = jnp.asarray(steps == 0)

    def go_on(carry: tuple[Array, State]) -> Array:
        k, s = carry
        return jnp.where(last, k < 1, (k < steps) & (s.gap > tolerance) & (s.idle < MAX_IDLE))

    return jax.lax.while_loop(
        go_on,
        lambda c: (c[0] + 1, step(program, loss, penalty, beta, tolerance, c[1], last)),
        (jnp.int32(0), s),
    )[1]


def minimise(
    program: Program,
    loss: Loss,
    beta: float,
    *,
    penalty: Penalty = GROUP,
    warm: State | None = None,
    limits: Limits | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> tuple[Solution, State]:
    """Solves one gated program for one beta.

    Args:
        program: the blocked data, features rotated to their principal axes (or the metric is
            poor).
        loss: the row loss.
        beta: penalty, absolute (not a fraction of beta_max), >= 0.
        penalty: of the weights; ridge needs beta > 0.
        warm: final state of a solve with the same X and D (beta, Y and omega may differ): its
            weights and its span are where this one starts. It is used up: the memory of its span
            is written over. None starts from zero.
        limits: when to stop.
        on_record: called with every history record, every few steps.

    Returns:
        The solution and the final state, which serves warm starts.
    """
    limits = limits or Limits()
    began = time.perf_counter()
    dtype = program.X.dtype
    beta_, tolerance = jnp.asarray(beta, dtype), jnp.asarray(limits.tolerance, dtype)
    if warm is None:
        start = zero_state(program, penalty)
    else:
        # The span is taken over; these are a part of the solution that they came with.
        theirs = {field: jnp.copy(getattr(warm, field)) for field in ("W", "z", "R")}
        start = warm._replace(**theirs)
    run = partial(advance, program, loss, penalty, beta_, tolerance)
    state, status, history = drive(
        lambda s: run(s, _CHUNK),
        restate(program, loss, penalty, beta_, start),
        limits,
        max_idle=MAX_IDLE,
        on_record=on_record,
    )
    if status is Status.STALLED and program.precision is Precision.FLOAT32:
        state, status, polished = _polish(
            program, loss, penalty, beta, state, limits, began, on_record
        )
        history += polished
    if penalty.sparse:
        state = run(state, 0)
    figures = stats(state, time.perf_counter() - began, program.X.shape[1])
    return Solution(state.W, status, figures, history, state.z, state.R), state


def _polish(
    program: Program,
    loss: Loss,
    penalty: Penalty,
    beta: float,
    s: State,
    limits: Limits,
    began: float,
    on_record: Callable[[Record], None] | None,
) -> tuple[State, Status, tuple[Record, ...]]:
    """Goes on by FISTA, which need not compare objectives, where round-off ends the search."""
    spent, passes = time.perf_counter() - began, float(s.passes)
    h = metric(program, loss, residual(program, loss, s.z))
    history: list[Record] = []

    solution, end = fista.minimise(
        program,
        loss,
        beta,
        penalty=penalty,
        h=h,
        W=s.W,
        limits=limits.after(passes, spent),
        on_record=going_on(history, passes, spent, on_record),
        sharpen=partial(sharpened, program, loss, jnp.asarray(beta, h.dtype))
        if penalty.sparse
        else None,
    )
    higher = end.dual > s.dual
    state = s._replace(
        W=end.best,
        z=end.z_best,
        kept=jnp.zeros_like(s.kept),
        R=jnp.where(higher, end.R, s.R),
        primal=end.primal,
        dual=jnp.maximum(end.dual, s.dual),
        passes=s.passes + end.passes,
        iterations=s.iterations + end.iterations,
    )
    return state, solution.status, tuple(history)


@partial(jit, static_argnames="loss", donate_argnames="s")
def sharpened(program: Program, loss: Loss, beta: Array, s: fista.State) -> fista.State:
    """The best dual point, or that of the levelled gates at the best weights if it is better."""
    R = residual(program, loss, s.z_best)
    G = adjoint(program, R)
    even = levelled(program, loss, beta, s.best, s.z_best, R, G, s.primal)
    higher = even.dual > s.dual
    return s._replace(
        R=jnp.where(higher, even.R, s.R),
        dual=jnp.maximum(even.dual, s.dual),
        passes=s.passes + 0.5 + even.passes,
        idle=jnp.where(higher, 0, s.idle),
    )

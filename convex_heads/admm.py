r"""One step of the ADMM of :mod:`convex_heads.cronos`.

Three splits, each with a penalty of its own: u = t (the norms), G u = s >= 0 (the cones) and
F(v - w) = z (the loss). Every loss is a row-wise proximal map, and the linear system of one step
never changes but for the penalties (:mod:`convex_heads.linear_system`).

One step (over-relaxed by alpha; scaled multipliers; Boyd et al. 2011, sections 3.1.1 and 3.4.3) is
one sweep over the rows, forward and back, and the linear system, inexact with summable tolerances
(Eckstein & Bertsekas 1992, theorem 8), warm-started. The penalties follow the residuals of their
splits (Wohlberg 2017: relative residuals, so no units matter) and settle.

Slack and multiplier of a cone are the positive and the negative part of one number, so (n, 2 P C)
numbers are all that the cones keep.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads import linear_system
from convex_heads.cones import signs
from convex_heads.losses import Loss
from convex_heads.operators import Program, columns_of, hidden, pull_back, weights_of
from convex_heads.penalties import soft_threshold
from convex_heads.precision import jit

# Steps between two looks at the gap.
CHUNK = 20
# Looks after which the penalties stay: ADMM converges for fixed ones.
_SETTLE = 40


class Recipe(NamedTuple):
    """How ADMM is run; the defaults are ours, :func:`paper` is the published recipe.

    Attributes:
        rho: first penalties of the splits u = t, G u = s and F(v - w) = z, in units of the loss's
            curvature (features standardised, losses averaged).
        relax: over-relaxation, in (0, 2); 1 is none.
        balance: whether the penalties follow the residuals of their splits.
        split_loss: whether z is a variable of its own. Without (squared loss only), F u meets the
            targets in the linear system itself.
        rank: of the Nystrom preconditioner, or ``adaptive``; 0 (default) for the structured one,
            which follows the penalties. A sketch is for penalties that are not balanced.
        sparse: whether t is what a solve returns (its neurons are exactly zero where the penalty
            says so), or u (the published choice, which no constraint has been applied to).
    """

    rho: tuple[float, float, float] = (0.2, 1.5, 0.25)
    relax: float = 1.6
    balance: bool = True
    split_loss: bool = True
    rank: int | str = 0
    sparse: bool = True


def paper(n: int) -> Recipe:
    """The recipe of the published code for n rows: rho = 1 on sums, rank 20, u returned.

    Losses are sums there and means here, so that rho_1 is 1 / n here. The published stopping rule
    is a handful of steps, chosen on validation rows.
    """
    return Recipe(
        rho=(1 / n, 1, 1), relax=1, balance=False, split_loss=False, rank=20, sparse=False
    )


class Split(NamedTuple):
    """Squared sizes of one split, for balancing: the constraint's residual and its scale."""

    primal: Array
    move: Array
    value: Array
    multiplier: Array


class State(NamedTuple):
    """Where a solve stands.

    Attributes:
        u: weights of the last linear system (P, d, 2 C): v, then w.
        t: sparse weights (P, d, 2 C).
        l1: scaled multipliers of u = t, (P, d, 2 C).
        q: slacks and scaled multipliers of the cones, (B, b, 2 C, P): s = max(q, 0), l = min(q, 0).
        z: scores without offset (B, b, C).
        l3: scaled multipliers of F(v - w) = z, (B, b, C).
        rho: (3,).
        k: steps taken, ().
        passes: data passes, ().
    """

    u: Array
    t: Array
    l1: Array
    q: Array
    z: Array
    l3: Array
    rho: Array
    k: Array
    passes: Array


def zero_state(program: Program, loss: Loss, recipe: Recipe) -> State:
    """All zero, penalties at their first guess."""
    P, d, C = program.shape
    B, b = program.omega.shape
    dtype = program.X.dtype
    return State(
        u=jnp.zeros((P, d, 2 * C), dtype),
        t=jnp.zeros((P, d, 2 * C), dtype),
        l1=jnp.zeros((P, d, 2 * C), dtype),
        q=jnp.zeros((B, b, 2 * C, P), dtype),
        z=jnp.zeros((B, b, C), dtype) if recipe.split_loss else program.Y - program.z0,
        l3=jnp.zeros((B, b, C), dtype),
        rho=loss.curvature * jnp.asarray(recipe.rho, dtype),
        k=jnp.zeros((), jnp.int32),
        passes=jnp.zeros((), dtype),
    )


def _sweep(
    program: Program, loss: Loss, recipe: Recipe, u: Array, s: State
) -> tuple[Array, Array, Array, Array, Split, Split]:
    """The row-wise half of a step: new q, z and l3, and what they pull u towards.

    The pull rho_2 G'(omega (s - l)) + rho_3 B'F'(omega (z - l3)) is summed up in the same sweep.
    """
    P, d, K = u.shape
    C = K // 2
    columns, rho2, rho3 = columns_of(u), s.rho[1], s.rho[2]
    relax = recipe.relax

    def block(carry: tuple, rows: tuple[Array, ...]) -> tuple[tuple, tuple[Array, ...]]:
        pull, cone, fit = carry
        X, D, Y, omega, q, z, l3 = rows
        sign = signs(D, X.dtype)
        Z = hidden(X, columns, P)
        g = sign * Z
        slack, multiplier = jnp.maximum(q, 0), jnp.minimum(q, 0)
        q = relax * g + (1 - relax) * slack + multiplier
        new, multiplier = jnp.maximum(q, 0), jnp.minimum(q, 0)
        f = jnp.sum(jnp.where(D[:, None, :], Z[:, :C] - Z[:, C:], 0), axis=2)
        z_new = z
        if recipe.split_loss:
            v = relax * f + (1 - relax) * z + l3
            z_new = loss.prox(program.z0 + v, Y, rho3, program.z0 + z) - program.z0
            l3 = v - z_new
        toward = jnp.concatenate([z_new - l3, l3 - z_new], axis=1)[:, :, None]
        weight = omega[:, None, None]
        back = weight * (rho2 * sign * jnp.abs(q) + rho3 * jnp.where(D[:, None, :], toward, 0))
        pull = pull + pull_back(X, back)

        def square(A: Array) -> Array:
            return jnp.sum(omega * jnp.sum(A * A, axis=tuple(range(1, A.ndim))))

        cone = jax.tree.map(
            jnp.add,
            cone,
            Split(square(g - new), square(new - slack), square(new), square(multiplier)),
        )
        fit = jax.tree.map(
            jnp.add, fit, Split(square(f - z_new), square(z_new - z), square(z_new), square(l3))
        )
        return (pull, cone, fit), (q, z_new, l3)

    zero = jnp.zeros((), u.dtype)
    none = Split(zero, zero, zero, zero)
    (pull, cone, fit), (q, z, l3) = jax.lax.scan(
        block,
        (jnp.zeros((d, K * P), u.dtype), none, none),
        (program.X, program.D, program.Y, program.omega, s.q, s.z, s.l3),
    )
    return weights_of(pull, P), q, z, l3, cone, fit


def _pull(program: Program, s: State) -> Array:
    """What :func:`_sweep` returns first, for a state whose penalties have changed."""
    P, d, C = program.shape
    K = 2 * C

    def block(pull: Array, rows: tuple[Array, ...]) -> tuple[Array, None]:
        X, D, omega, q, z, l3 = rows
        toward = jnp.concatenate([z - l3, l3 - z], axis=1)[:, :, None]
        back = s.rho[1] * signs(D, X.dtype) * jnp.abs(q) + s.rho[2] * jnp.where(
            D[:, None, :], toward, 0
        )
        return pull + pull_back(X, omega[:, None, None] * back), None

    pull, _ = jax.lax.scan(
        block,
        jnp.zeros((d, K * P), s.t.dtype),
        (program.X, program.D, program.omega, s.q, s.z, s.l3),
    )
    return weights_of(pull, P)


def step(
    program: Program,
    loss: Loss,
    recipe: Recipe,
    system: linear_system.System,
    beta: Array,
    s: State,
    pull: Array,
) -> tuple[State, Array, tuple[Split, Split, Split]]:
    """One step, from the pull of the last one."""
    tolerance = jnp.minimum(0.1, 1 / (1 + s.k.astype(s.t.dtype)) ** 1.2)
    b = s.rho[0] * (s.t - s.l1) + pull
    u, products = linear_system.solve(program, system, s.rho, b, s.u, tolerance)
    pull, q, z, l3, cone, fit = _sweep(program, loss, recipe, u, s)
    a = recipe.relax * u + (1 - recipe.relax) * s.t + s.l1
    t = soft_threshold(a, beta / s.rho[0])
    norm = Split(
        *(jnp.sum(A * A) for A in (u - t, t - s.t, t, a - t)),
    )
    new = State(
        u=u,
        t=t,
        l1=a - t,
        q=q,
        z=z,
        l3=l3,
        rho=s.rho,
        k=s.k + 1,
        passes=s.passes + products + 2,  # the sweep has 2 C columns for every gate
    )
    return new, pull, (norm, cone, fit)


def _balanced(rho: Array, splits: tuple[Split, ...]) -> Array:
    """Penalties moved towards equal relative residuals, by at most a factor of two."""

    def factor(split: Split) -> Array:
        tiny = jnp.finfo(rho.dtype).tiny
        primal = split.primal / jnp.maximum(split.value, tiny)
        dual = split.move / jnp.maximum(split.multiplier, tiny)
        ratio = jnp.sqrt(jnp.sqrt(primal / jnp.maximum(dual, tiny)))
        return jnp.where(jnp.abs(jnp.log(ratio)) > 0.5, jnp.clip(ratio, 0.5, 2), 1)

    return rho * jnp.stack([factor(split) for split in splits])


@partial(jit, static_argnames=("loss", "recipe", "steps"))
def advance(
    program: Program,
    loss: Loss,
    recipe: Recipe,
    system: linear_system.System,
    beta: Array,
    s: State,
    steps: int,
) -> State:
    """Some steps, and then the penalties for the next ones."""

    def body(_: int, carry: tuple) -> tuple:
        s, pull, _ = carry
        return step(program, loss, recipe, system, beta, s, pull)

    zero = jnp.zeros((), s.t.dtype)
    none = (Split(zero, zero, zero, zero),) * 3
    s, _, splits = jax.lax.fori_loop(0, steps, body, (s, _pull(program, s), none))
    if not recipe.balance:
        return s
    rho = jnp.where(s.k <= _SETTLE * CHUNK, _balanced(s.rho, splits), s.rho)
    change = s.rho / rho
    q = jnp.where(s.q < 0, s.q * change[1], s.q)
    return s._replace(rho=rho, l1=s.l1 * change[0], q=q, l3=s.l3 * change[2])

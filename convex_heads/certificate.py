r"""The optimality certificate: primal, dual and gap, independent of any solver.

Weights may come from anywhere. Their bound (:mod:`convex_heads.duality`) is the best of three: of
their own residual, of that with the gates levelled (:mod:`convex_heads.levelling`), and of the best
one that a solver met, where it is known.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from convex_heads.duality import dual_value, loss_value, reported_gap, residual
from convex_heads.levelling import levelled
from convex_heads.losses import Loss
from convex_heads.operators import Program, adjoint, adjoint_of_gates, apply, columns_of, hidden
from convex_heads.penalties import GROUP, Penalty, dual_norm, group_norms
from convex_heads.precision import jit
from convex_heads.sharding import sum_blocks

_CLIMBERS = 16
# Outputs beyond which trial gates are compared on so many random mixtures of the outputs.
_SKETCHED = 64
# Fresh gates drawn for a pattern violation.
TRIAL_GATES = 256


class Certificate(NamedTuple):
    """Proof of how far weights are from the global optimum of their program.

    Attributes:
        primal: objective at the weights.
        dual: lower bound of the objective at *any* weights of that program. That of a ReLU network
            is the program of its own neurons: each pattern with the output and sign that it has.
        relative_gap: (primal - dual) / primal; 0 is exact optimality.
        beta: absolute penalty of the program.
        beta_max: smallest group penalty at which all weights are zero.
        active_gates: gates with non-zero weights; neurons of a ReLU network.
        n_gates: gates offered; neurons of a ReLU network.
        cone_violation: worst violation of the cone constraints, relative; 0 for gated programs,
            which have none, and for a ReLU network in the program of its own neurons.
        pattern_violation: max over freshly drawn gates g of ||X' D_g R||_F / beta, R the residual
            of these weights. Above 1, a small weight on the worst of them lowers the objective;
            at or below 1, none that was tried does by itself. NaN under ridge, where every gate
            gains something. For ReLU networks of neurons v: ``max |R_c'(X v)_+| / (||v|| beta)``.
    """

    primal: float
    dual: float
    relative_gap: float
    beta: float
    beta_max: float
    active_gates: int
    n_gates: int
    cone_violation: float
    pattern_violation: float


@partial(jit, static_argnames="loss")
def beta_max(program: Program, loss: Loss) -> Array:
    """Smallest beta at which all weights are zero: max_i ||X' D_i R0||_F, R0 = R at W = 0."""
    return dual_norm(adjoint(program, residual(program, loss, jnp.zeros_like(program.Y))))


@partial(jit, static_argnames=("loss", "penalty"))
def _bounds(
    program: Program, loss: Loss, penalty: Penalty, W: Array, beta: Array, R_hint: Array
) -> tuple[Array, Array, Array, Array]:
    z = apply(program, W)
    primal = loss_value(program, loss, z) + beta * penalty.value(W)
    R = residual(program, loss, z)
    G = adjoint(program, R)
    dual = dual_value(program, loss, R, G, beta, penalty)
    hint = dual_value(program, loss, R_hint, adjoint(program, R_hint), beta, penalty)
    dual = jnp.fmax(dual, hint)
    if penalty.sparse:
        dual = jnp.fmax(dual, levelled(program, loss, beta, W, z, R, G, primal).dual)
    return primal, dual, R, jnp.sum(group_norms(W) > 0)


def _norms(program: Program, R: Array, gates: Array) -> Array:
    """||X'D_g R||_F of gates (P', d): (P',)."""
    return group_norms(adjoint_of_gates(program, gates, R))


def _uphill(program: Program, R: Array, gates: Array) -> Array:
    """For each gate (P', d) one with a larger ||X'D_g R||_F, if the step goes well.

    With V = X' D_g R, row j adds x_j' V R_j to the square of the norm while it is switched on; the
    least-squares-like direction sum_j (x_j' V R_j) x_j switches on the rows that add.
    """
    V = adjoint_of_gates(program, gates, R)
    P, d, _ = V.shape
    columns = columns_of(V)

    def block(total: Array, XR: tuple[Array, Array]) -> tuple[Array, None]:
        X, r = XR
        gain = jnp.sum(hidden(X, columns, P) * r[:, :, None], axis=1)
        return total + gain.T @ X, None

    return sum_blocks(block, jnp.zeros((P, d), R.dtype), (program.X, R))


def pattern_violation(
    program: Program, R: Array, beta: float, gates: Array, *, ascent_steps: int = 3
) -> float:
    """max_g ||X' D_g R||_F / beta over trial gates (P', d) and a few steps of local ascent.

    Of more than 64 outputs, trial gates and ascent see random mixtures R S of them, S (C, 64) with
    E[S S'] = I, and the norms of the best sixteen are then computed with all: on 1,000 classes
    hundreds of gates would cost more than the solve.

    Args:
        program: the blocked data (its own patterns are not used).
        R: residual at the solution (B, b, C).
        beta: absolute penalty; 0 gives infinity.
        gates: trial gates, in the coordinates of program.X.
        ascent_steps: steps of local ascent from the best sixteen trial gates.
    """
    if beta <= 0:
        return float("inf")
    return float(_largest_norm(program, R, gates, ascent_steps)) / beta


@partial(jit, static_argnames="ascent_steps")
def _largest_norm(program: Program, R: Array, gates: Array, ascent_steps: int) -> Array:
    C = R.shape[-1]
    if C <= _SKETCHED:
        return jnp.max(climb(program, R, gates, ascent_steps=ascent_steps)[1])
    S = jax.random.normal(jax.random.key(0), (C, _SKETCHED), R.dtype)
    mixed = R @ (S / math.sqrt(_SKETCHED))
    tried, norms = climb(program, mixed, gates, ascent_steps=ascent_steps)
    return jnp.max(_norms(program, R, tried[jnp.argsort(-norms)[:_CLIMBERS]]))


@partial(jit, static_argnames="ascent_steps")
def climb(
    program: Program, R: Array, gates: Array, *, ascent_steps: int = 3
) -> tuple[Array, Array]:
    """Trial gates and those found by local ascent from the best sixteen, with ||X'D_g R||_F.

    Args:
        program: the blocked data (its own patterns are not used).
        R: residual (B, b, C).
        gates: trial gates (P', d), in the coordinates of program.X.
        ascent_steps: steps of local ascent.

    Returns:
        gates (P'', d), the given ones first, and their norms (P'',).
    """

    def ascend(gates: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        gates = _uphill(program, R, gates)
        return gates, (gates, _norms(program, R, gates))

    given = _norms(program, R, gates)
    best = gates[jnp.argsort(-given)[:_CLIMBERS]]
    _, (found, norms) = jax.lax.scan(ascend, best, length=ascent_steps)
    return (
        jnp.concatenate([gates, found.reshape(-1, gates.shape[1])]),
        jnp.concatenate([given, norms.ravel()]),
    )


def certify_program(
    program: Program,
    loss: Loss,
    W: Array,
    beta: float,
    *,
    R: Array | None = None,
    trial_gates: ArrayLike | None = None,
    penalty: Penalty = GROUP,
    largest: float | None = None,
) -> Certificate:
    """Certifies weights of a gated program.

    Args:
        program: the blocked data.
        loss: the row loss.
        W: weights (P, d, C), from wherever.
        beta: absolute penalty.
        R: another residual (B, b, C) to try as a dual point (a solver's best); it is checked
            like the weights' own, so a wrong one can only be useless.
        trial_gates: fresh gates (P', d) for the pattern violation; NaN is reported without,
            and under a ridge penalty, where every gate gains something.
        penalty: of the weights.
        largest: beta_max, where it is known; half a data pass otherwise.
    """
    dtype = program.X.dtype
    beta_ = jnp.asarray(beta, dtype)
    # What weighs nothing has no part in a dual point.
    hint = jnp.zeros_like(program.Y) if R is None else jnp.where(program.omega[..., None] > 0, R, 0)
    primal, dual, own, active = _bounds(program, loss, penalty, W, beta_, hint)
    violation = (
        float("nan")
        if trial_gates is None or not penalty.sparse
        else pattern_violation(program, own, beta, jnp.asarray(trial_gates, dtype))
    )
    primal_, dual_ = float(primal), float(dual)
    return Certificate(
        primal=primal_,
        dual=dual_,
        relative_gap=reported_gap(primal_, dual_),
        beta=float(beta),
        beta_max=float(beta_max(program, loss)) if largest is None else largest,
        active_gates=int(active),
        n_gates=int(W.shape[0]),
        cone_violation=0.0,
        pattern_violation=violation,
    )

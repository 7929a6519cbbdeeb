r"""ReLU heads: programs, solvers and certificates that match :mod:`convex_heads.gated`'s.

.. math:: \min_{v, w}\; \frac1n \sum_j l\Big(\big(z_0 + \sum_i D_i X (v_i - w_i)\big)_j, y_j\Big)
          + \beta \sum_{ic} (\|v_{ic}\| + \|w_{ic}\|)
          \quad\text{s.t.}\quad (2 D_i - I) X v_{ic} \ge 0,\; (2 D_i - I) X w_{ic} \ge 0,

.. math:: f_c(x) = z_{0c} + \sum_i (x'v_{ic})_+ - (x'w_{ic})_+

(Pilanci & Ergen 2020, eq. 8; Feng, Frangella, Pilanci 2024, eq. 4). Where rows are many, the cones
of gates drawn at random are little more than rays, and the program offers little: ``admm`` solves
it as it stands (:mod:`convex_heads.cronos`). ``descent``, the default, finds the patterns on the
way (:mod:`convex_heads.descent`). What is certified is in both cases the program of the neurons
that there are in the end: each pattern with the output and the sign that it has, no others. The
network is a feasible point of it whatever they are. A pattern may serve another output in another
network, whose objective can be below this bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads import cronos, descent, gated
from convex_heads.certificate import TRIAL_GATES, Certificate
from convex_heads.cones import projection_norms
from convex_heads.decode import ReluNetwork
from convex_heads.duality import reported_gap, residual, scaled_dual
from convex_heads.gated import Prepared
from convex_heads.gates import DEFAULT_SAMPLER, sample_gates
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES, Loss
from convex_heads.operators import (
    Program,
    adjoint,
    build_program,
    column_moments,
    columns_of,
    hidden,
    pull_back,
    weights_of,
)
from convex_heads.penalties import GROUP, Penalty, dual_scale, neuron_norms
from convex_heads.precision import full_precision, jit
from convex_heads.scaling import Scaling
from convex_heads.solution import Record, Solution
from convex_heads.sources import RowSource

SOLVERS = ("descent", "admm")
# Multipliers of the cones, for a certificate and for beta_max: more steps, tighter bounds.
_MULTIPLIER_STEPS = 60
_CLIMBS = 3


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
    """As :func:`convex_heads.gated.prepare`; beta_max is that of the ReLU program."""
    return _with_beta_max(gated.prepare(X, Y, omega, loss, n_gates, key, penalty, sampler))


def reweight(prepared: Prepared, omega: np.ndarray) -> Prepared:
    """As :func:`convex_heads.gated.reweight`."""
    return _with_beta_max(gated.reweight(prepared, omega))


def _with_beta_max(prepared: Prepared) -> Prepared:
    largest = beta_max(prepared.program, prepared.loss, _moments(prepared))
    return prepared._replace(beta_max=largest)


def beta_max(program: Program, loss: Loss, h: Array) -> float:
    """max_ic ||Proj_{K_i}(+-X' D_i R0_c)||, within a percent from above; h (d,) as elsewhere."""
    G = adjoint(program, residual(program, loss, jnp.zeros_like(program.Y)))
    norms, _ = projection_norms(
        program, h, jnp.concatenate([G, -G], axis=2), steps=_MULTIPLIER_STEPS
    )
    return float(jnp.max(norms))


def _moments(prepared: Prepared) -> Array:
    """The diagonal (d,) of X' diag(omega) X; all of it, unless rows were weighted anew."""
    return column_moments(prepared.program)


def start(prepared: Prepared) -> Array:
    """Neurons (P, d, 2 C) to descend from: of directions drawn like gates, all of them different.

    Their values have spread 1 / sqrt(P) on the training rows.
    """
    P, d, C = prepared.program.shape
    key = jax.random.fold_in(prepared.key, 1)
    drawn = gated.fresh_gates(prepared, key, 2 * C * P)
    spread = np.sqrt((drawn * drawn) @ np.asarray(_moments(prepared)))
    drawn = drawn / np.where(spread > 0, spread, 1)[:, None] / np.sqrt(P)
    rotated = drawn.reshape(P, 2 * C, d).transpose(0, 2, 1)
    return jnp.asarray(rotated, prepared.program.X.dtype)


def with_solver(prepared: Prepared, solver: str) -> tuple[Prepared, str]:
    """As :func:`convex_heads.gated.with_solver`."""
    return prepared, SOLVERS[0] if solver == "auto" else solver


def minimise(
    prepared: Prepared,
    beta: float,
    *,
    solver: str = "descent",
    warm: Any = None,
    limits: Limits | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> tuple[Solution, Any]:
    """As :func:`convex_heads.gated.minimise`; ``value`` is (P, d, 2 C), v and then w.

    ``scores`` are those of the deployed network.
    """
    program, loss = prepared.program, prepared.loss
    if solver == "admm":
        solution, run = cronos.minimise(
            program,
            loss,
            beta,
            h=_moments(prepared),
            warm=warm,
            limits=limits,
            on_record=on_record,
        )
        return solution._replace(scores=descent.network_scores(program, solution.value)), run
    V = start(prepared) if warm is None else warm.V
    L = 1.0 if warm is None else warm.L
    return descent.minimise(
        program, loss, beta, h=prepared.h, V=V, L=L, limits=limits, on_record=on_record
    )


def resume(prepared: Prepared, W: Array, *, solver: str = "descent") -> Any:
    """As :func:`convex_heads.gated.resume`."""
    program, loss = prepared.program, prepared.loss
    if solver == "admm":
        return cronos.run_at(program, loss, W)
    return descent.init(program, loss, jnp.zeros((), W.dtype), W, jnp.ones((), W.dtype))


def decode(
    scaling: Scaling, gates: np.ndarray, V: np.ndarray, offset: np.ndarray, loss: str
) -> ReluNetwork:
    """The deployed network of neurons V (P, d + 1, 2 C) in standardised coordinates.

    Neurons that are zero are dropped; the others have output weights of 1 or -1.
    """
    del gates
    P, k, K = V.shape
    neurons = V.transpose(0, 2, 1).reshape(P * K, k)
    one = np.eye(K // 2, dtype=V.dtype)
    output = np.tile(np.concatenate([one, -one]), (P, 1))
    alive = neurons.any(axis=1)
    return ReluNetwork(scaling, neurons[alive], output[alive], np.asarray(offset), loss)


def certify_prepared(
    prepared: Prepared, V: Array, beta: float, *, R: Array | None = None, key: Array
) -> Certificate:
    """The certificate of rotated neurons V (P, d, 2 C) for the program of these neurons."""
    del R  # a dual point of other neurons' program says nothing about this one
    return certify_neurons(
        prepared.program,
        prepared.loss,
        V,
        beta,
        h=_moments(prepared),
        beta_max=prepared.beta_max,
        trial=np.asarray(gated.trial_gates(prepared, key)),
    )


def certify_network(
    network: ReluNetwork, X: np.ndarray, Y: np.ndarray, omega: np.ndarray, beta: float, key: Array
) -> Certificate:
    """The certificate of a network whose weights came from anywhere.

    Args:
        network: neurons h_j (m, d) with output weights a_j (m, C).
        X: standardised features (n, d), the last column constant one.
        Y: targets (n, C).
        omega: row weights (n,), non-negative, not all zero.
        beta: penalty, absolute.
        key: JAX random key of the trial neurons.
    """
    moment = (X.T * (omega / omega.sum())) @ X
    h, Q = np.linalg.eigh(moment)
    hidden, output = network.hidden @ Q.astype(X.dtype), network.output
    m = len(hidden)
    # Neurons that are zero are no neurons, and round numbers of them share compiled code.
    fill = ((0, max(1, _round(m)) - m), (0, 0))
    hidden, output = np.pad(hidden, fill), np.pad(output, fill)
    # Each neuron in as many copies as it has outputs, with their weights pulled in front of it.
    V = hidden[:, :, None] * np.concatenate([output, -output], axis=1).clip(0)[:, None, :]
    rotated = X @ Q.astype(X.dtype)
    # Without neurons, beta_max is that of the gate that is always on.
    patterns = rotated @ hidden.T > 0 if m else np.ones((len(X), 1), bool)
    program = build_program(rotated, patterns, Y, omega.astype(X.dtype), network.offset)
    loss, moments = LOSSES[network.loss], jnp.asarray(h, X.dtype)
    trial = np.asarray(sample_gates(key, jnp.asarray(moment, X.dtype), TRIAL_GATES + 1))[1:]
    return certify_neurons(
        program,
        loss,
        jnp.asarray(V),
        beta,
        h=moments,
        beta_max=beta_max(program, loss, moments),
        trial=trial @ Q.astype(trial.dtype),
    )._replace(n_gates=max(1, m) * V.shape[2])


def _round(m: int) -> int:
    """The next number from m that is round to within a quarter.

    Example:
        >>> [_round(m) for m in (1, 7, 8, 9, 100, 129)]
        [1, 7, 8, 10, 112, 160]
    """
    step = 1 << max(0, m.bit_length() - 3)
    return -(-m // step) * step


@full_precision
def certify_neurons(
    program: Program,
    loss: Loss,
    V: Array,
    beta: float,
    *,
    h: Array,
    beta_max: float,
    trial: np.ndarray,
) -> Certificate:
    r"""Certifies a ReLU network as a point of the convex program of its own neurons.

    The program has a vector for each of the network's neurons: its pattern, with the output and
    sign that it has. Networks of the same patterns with other outputs or signs are not in it and
    may be below the bound; the pattern violation looks at all outputs and both signs. A neuron is
    in the cone of its own pattern, so the network is feasible and its objective is the program's.
    Without neurons, the program is that of the pattern that is always on, with all outputs and
    signs.

    The multipliers of the cones are computed anew: with g the gradient of the loss for a neuron,
    its dual constraint is min_{y >= 0} ||-g + X'(2 D - I) y|| <= beta, the norm of a projection on
    the cone (:func:`convex_heads.cones.projection_norms`).

    Args:
        program: the blocked data, features in principal axes; patterns are not used.
        loss: the row loss.
        V: neurons (P, d, 2 C).
        beta: penalty, absolute.
        h: second moments (d,): X' diag(omega) X = diag(h).
        beta_max: to be reported.
        trial: directions (m, d) of neurons that might be added, for the pattern violation:
            ``max_v |R_c' (X v)_+| / (||v|| beta)`` over them and a few steps of ascent. At or below
            1, no neuron that was tried can lower the network's objective.
    """
    P, _, K = V.shape
    at = descent.slope(program, loss, V)
    norms = np.asarray(neuron_norms(V))
    alive = norms > 0
    beta_ = jnp.asarray(beta, V.dtype)
    primal = float(at.loss) + beta * float(norms.sum())
    if alive.any():
        own = np.asarray(V).transpose(0, 2, 1)[alive]
        slopes = -np.asarray(at.G).transpose(0, 2, 1)[alive]
    else:
        # Of a network without neurons: the gate that is always on, with either sign.
        up = np.asarray(_always_on(program, at.R)).T
        slopes = np.concatenate([up, -up])
        own = None
    # A norm that is within beta already needs no multipliers.
    hard = np.linalg.norm(slopes, axis=1) > beta
    norm = jnp.asarray(np.linalg.norm(slopes[~hard], axis=1).max(initial=0), V.dtype)
    if hard.any():
        fill = ((0, _round(int(hard.sum())) - int(hard.sum())), (0, 0))
        steep = jnp.asarray(np.pad(slopes[hard], fill))
        if own is None:
            D = jnp.ones((*program.omega.shape, len(steep)), bool)
        else:
            D = _patterns(program.X, jnp.asarray(np.pad(own[hard], fill)))
        bounds, _ = projection_norms(
            program._replace(D=D), h, steep[:, :, None], steps=_MULTIPLIER_STEPS, rho=1
        )
        norm = jnp.maximum(norm, jnp.max(bounds))
    dual = float(scaled_dual(program, loss, at.R, dual_scale(norm, beta_)))
    return Certificate(
        primal=primal,
        dual=dual,
        relative_gap=reported_gap(primal, dual),
        beta=float(beta),
        beta_max=beta_max,
        active_gates=int(alive.sum()),
        n_gates=P * K,
        cone_violation=0.0,
        pattern_violation=_pattern_violation(program, at.R, beta, jnp.asarray(trial, V.dtype)),
    )


@jit
def _patterns(X: Array, own: Array) -> Array:
    """Where neurons (m, d) are on, (B, b, m)."""
    return jax.lax.map(lambda rows: rows @ own.T > 0, X)


@jit
def _always_on(program: Program, R: Array) -> Array:
    """X'R: (d, C)."""
    return jnp.einsum("nbd,nbc->dc", program.X, R)


def _pattern_violation(program: Program, R: Array, beta: float, trial: Array) -> float:
    """max |R_c'(X v)_+| / (||v|| beta) over trial directions (m, d) and a few ascent steps."""
    if beta <= 0:
        return float("inf")
    C = R.shape[-1]
    v = jnp.repeat(trial[:, :, None], C, axis=2)
    best = 0.0
    for _ in range(_CLIMBS + 1):
        value, v = _climb(program, R, v)
        # NaN stays: it is no violation of zero.
        best = float(np.maximum(best, float(value)))
    return best / beta


@jit
def _climb(program: Program, R: Array, v: Array) -> tuple[Array, Array]:
    """max |R_c'(X v)_+| / ||v|| of directions (m, d, C), and directions that are no worse.

    R_c'(X v)_+ is v'u with u = X' D_v R_c, homogeneous in v, so u itself is the steepest ascent.
    """
    m, d, C = v.shape
    columns = columns_of(v)

    def block(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
        X, r = rows
        on = hidden(X, columns, m) > 0
        return total + pull_back(X, jnp.where(on, r[:, :, None], 0)), None

    total, _ = jax.lax.scan(block, jnp.zeros((d, C * m), v.dtype), (program.X, R))
    u, size = weights_of(total, m), neuron_norms(v)
    value = jnp.abs(jnp.sum(u * v, axis=1)) / jnp.where(size > 0, size, 1)
    return jnp.max(value), u

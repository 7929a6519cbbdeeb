"""A head solved again on more rows, or more classes: same scaling, same gates, same absolute beta.

The program is the one that a fit from scratch on all rows would solve with them, so that the
certificate says how far from its optimum the new head is. Where it is the features that have moved
and the rows stay, see `convex_heads.warm`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from convex_heads import relu
from convex_heads.certificate import Certificate
from convex_heads.decode import Network, ReluNetwork
from convex_heads.gated import (
    certify_prepared,
    fresh_gates,
    minimise,
    prepare_given,
    resume,
    rotate,
    unrotate,
    with_solver,
)
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES, targets
from convex_heads.penalties import PENALTIES
from convex_heads.solution import Status
from convex_heads.warm import neurons_of, objective


@dataclass(frozen=True)
class Refitted:
    """A head solved again.

    Attributes:
        network: what predicts.
        certificate: of its weights on all rows.
        status: how the solve ended.
        passes: data passes it took.
        primal_before: the objective of the weights it began with.
    """

    network: Network | ReluNetwork
    certificate: Certificate
    status: Status
    passes: float
    primal_before: float


def solve_more(
    network: Network | ReluNetwork,
    X: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    beta: float,
    *,
    penalty: str = "group",
    omega: np.ndarray | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    warm: bool = True,
) -> Refitted:
    """Solves the program of a network's scaling, gates and classes (or more) on other rows.

    Args:
        network: a head; its classes come first among the new ones.
        X: raw features (n, d), all rows.
        labels: (n,) class numbers; every class occurs.
        n_classes: C, at least as many as the network has. A logistic head of two classes that gets
            a third one becomes a softmax head; one-vs-rest heads stay what they are.
        beta: absolute penalty, > 0.
        penalty: ``group`` or ``ridge``; ReLU heads have the first.
        omega: row weights (n,), normalised here to sum to one; None: all alike.
        limits: when to stop.
        seed: of the trial gates of the certificate.
        warm: whether to begin at the network's weights; else at zero.

    Raises:
        ValueError: shapes that do not belong together.

    Example:
        >>> from convex_heads import ConvexHeadClassifier
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 4)).astype("float32")
        >>> y = (X[:, 0] * X[:, 1] > 0).astype(int)
        >>> first = ConvexHeadClassifier(beta=0.05, n_gates=8).fit(X[:150], y[:150])
        >>> given, penalty = (first.network_, X, y, 2, first.certificate_.beta), first.penalty_
        >>> more = solve_more(*given, penalty=penalty)
        >>> cold = solve_more(*given, penalty=penalty, warm=False)
        >>> more.certificate.relative_gap <= 1e-3, more.passes <= cold.passes
        (True, True)
    """
    limits = limits or Limits()
    loss_name = "softmax" if len(network.offset) == 1 and n_classes > 2 else network.loss
    loss = LOSSES[loss_name]
    if labels.shape != (len(X),) or X.shape[1] != network.dim:
        raise ValueError(f"X (n, {network.dim}) and labels (n,): got {X.shape}, {labels.shape}")
    Y = targets(labels, loss_name, n_classes)
    weights = np.ones(len(X)) if omega is None else np.asarray(omega, np.float64)
    weights = weights / weights.sum()
    if isinstance(network, ReluNetwork):
        return _descend(
            network, X, Y, weights, beta, loss_name, limits=limits, seed=seed, warm=warm
        )
    gates, W = _with_linear_gate(network)
    W = _widened(W, network.loss, loss_name, Y.shape[1])
    z0 = loss.offset(jnp.asarray(weights @ Y, jnp.float32))
    key, trial_key = jax.random.split(jax.random.key(seed))
    prepared = prepare_given(
        network.scaling.transform(X, np.float32),
        Y,
        weights,
        loss,
        gates,
        np.asarray(z0),
        key,
        PENALTIES[penalty],
    )
    prepared, solver = with_solver(prepared, "auto")
    rotated = rotate(prepared, W)
    start = resume(prepared, rotated, solver=solver) if warm else None
    before = certify_prepared(prepared, rotated, beta, key=trial_key).primal
    solution, _ = minimise(prepared, beta, solver=solver, warm=start, limits=limits)
    certificate = certify_prepared(
        prepared, solution.value, beta, R=solution.residual, key=trial_key
    )
    found = Network.decode(
        network.scaling, gates, unrotate(prepared, solution.value), np.asarray(z0), loss_name
    )
    status = solution.status.judged_by(certificate.relative_gap, limits.tolerance)
    return Refitted(found, certificate, status, solution.stats.passes, before)


def _descend(
    network: ReluNetwork,
    X: np.ndarray,
    Y: np.ndarray,
    omega: np.ndarray,
    beta: float,
    loss_name: str,
    *,
    limits: Limits,
    seed: int,
    warm: bool,
) -> Refitted:
    """The same for ReLU neurons; columns of V (P, d + 1, 2 C) that are empty get drawn ones."""
    C, loss = Y.shape[1], LOSSES[loss_name]
    z0 = np.asarray(loss.offset(jnp.asarray(omega @ Y, jnp.float32)))
    V = _more_outputs(neurons_of(network, len(network.offset)), network.loss, loss_name, C)
    if not warm:
        V = np.zeros_like(V)
    key, draw_key, trial_key = jax.random.split(jax.random.key(seed), 3)
    prepared = prepare_given(
        network.scaling.transform(X, np.float32),
        Y,
        omega,
        loss,
        np.ascontiguousarray(V.transpose(0, 2, 1).reshape(-1, V.shape[1])),
        z0,
        key,
    )
    rotated = np.asarray(rotate(prepared, V))
    before = relu.decode(network.scaling, V, V, z0, loss_name)
    primal_before = objective(before, X, Y, omega, beta)
    P, d, _ = rotated.shape
    empty = ~rotated.any(axis=(0, 1))
    if empty.any():  # descent cannot begin at zero
        drawn = fresh_gates(prepared, draw_key, P * int(empty.sum()))
        drawn = drawn / np.linalg.norm(drawn, axis=1, keepdims=True) / np.sqrt(P)
        rotated = rotated.copy()
        rotated[:, :, empty] = drawn.reshape(P, -1, d).transpose(0, 2, 1)
    at = relu.resume(prepared, jnp.asarray(rotated))
    solution, _ = relu.minimise(prepared, beta, warm=at, limits=limits)
    certificate = relu.certify_prepared(prepared, solution.value, beta, key=trial_key)
    found = relu.decode(network.scaling, V, unrotate(prepared, solution.value), z0, loss_name)
    status = solution.status.judged_by(certificate.relative_gap, limits.tolerance)
    return Refitted(found, certificate, status, solution.stats.passes, primal_before)


def _more_outputs(V: np.ndarray, before: str, after: str, C: int) -> np.ndarray:
    """Neurons (P, d + 1, 2 C) of more classes, as `_widened` does it with weights."""
    v, w = np.split(V, 2, axis=2)
    if before == "logistic" and after != "logistic":
        v, w = np.concatenate([w, v], axis=2) / 2, np.concatenate([v, w], axis=2) / 2
    more = ((0, 0), (0, 0), (0, C - v.shape[2]))
    return np.concatenate([np.pad(v, more), np.pad(w, more)], axis=2)


def _with_linear_gate(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Gates and weights; the gate that is always on is offered again where it had been dropped."""
    k, C = network.dim + 1, len(network.offset)
    gates = network.gates.astype(np.float32)
    W = network.weights.astype(np.float32)
    always = (gates[:, :-1] == 0).all(axis=1) & (gates[:, -1] >= 0) if len(gates) else []
    if not np.any(always):
        first = np.zeros((1, k), np.float32)
        first[0, -1] = 1
        gates = np.concatenate([first, gates])
        W = np.concatenate([np.zeros((1, k, C), np.float32), W])
    return gates, W


def _widened(W: np.ndarray, before: str, after: str, C: int) -> np.ndarray:
    """Weights (P, k, C) of more classes: those of new ones are zero.

    The score of a logistic head is that of class 1 against class 0: half to each.
    """
    if before == "logistic" and after != "logistic":
        W = np.concatenate([-W / 2, W / 2], axis=2)
    return np.pad(W, ((0, 0), (0, 0), (0, C - W.shape[2])))

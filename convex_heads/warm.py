r"""A head solved again on features that have moved: same scaling, same gates, same absolute beta.

Where the features x_j of a program are themselves trained (CRONOS-AM: Feng, Frangella & Pilanci
2024, section 5), rounds minimise one and the same function of head and features,

.. math:: J(W, X) = \sum_j \omega_j\, l\Big(z_0 + \sum_i 1[g_i'\tilde x_j \ge 0]\,
          W_i'\tilde x_j,\; y_j\Big) + \beta\, h(W),

only if everything but W stays: the standardisation :math:`x \mapsto \tilde x`, the gates g_i,
z_0, beta in the loss's own units and the row weights. Patterns are taken from the gates anew, of a
ReLU head from its neurons. The weights before are where the solve starts, so that J never rises.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convex_heads import working
from convex_heads.certificate import Certificate
from convex_heads.decode import Network, ReluNetwork, TwoLayer
from convex_heads.gated import prepare_given, rotate, unrotate
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES
from convex_heads.penalties import PENALTIES
from convex_heads.programs import ACTIVATIONS
from convex_heads.solution import Record, Status


class Again(NamedTuple):
    """A head solved again.

    Attributes:
        network: what predicts now.
        certificate: of its weights on the features it was given.
        objective: J there, (): computed from the network itself, summed in double precision.
        status: how the solve ended.
        history: its records.
    """

    network: TwoLayer
    certificate: Certificate
    objective: float
    status: Status
    history: tuple[Record, ...]


def objective(
    network: TwoLayer,
    X: np.ndarray,
    Y: np.ndarray,
    omega: np.ndarray,
    beta: float,
    penalty: str = "group",
) -> float:
    """J of a deployed network on raw features, (); see the module's text.

    Args:
        network: gated or ReLU.
        X: raw features (n, d).
        Y: targets (n, C), see :func:`convex_heads.losses.targets`.
        omega: row weights (n,), non-negative, not all zero.
        beta: absolute.
        penalty: ``group`` or ``ridge``; ReLU networks have the group penalty of their neurons.
    """
    z = jnp.asarray(network.scores(X), jnp.float32)
    losses = np.asarray(LOSSES[network.loss].value(z, jnp.asarray(Y, jnp.float32)), np.float64)
    if isinstance(network, ReluNetwork):
        sizes = np.linalg.norm(network.hidden.astype(np.float64), axis=1)
        h = float((sizes[:, None] * np.abs(network.output)).sum())
    else:
        assert isinstance(network, Network)
        norms = np.linalg.norm(network.weights.astype(np.float64), axis=(1, 2))
        h = float((norms if penalty == "group" else norms**2 / 2).sum())
    return float(np.average(losses, weights=np.asarray(omega, np.float64))) + beta * h


def solve_again(
    network: TwoLayer,
    gates: np.ndarray,
    X: np.ndarray,
    Y: np.ndarray,
    omega: np.ndarray,
    beta: float,
    *,
    penalty: str = "group",
    solver: str = "auto",
    limits: Limits | None = None,
    seed: int = 0,
) -> Again:
    """Solves for the weights on moved features, from the weights before.

    Args:
        network: the head before; its scaling and offset stay.
        gates: all gates offered (P, d + 1), standardised coordinates
            (``ConvexHeadClassifier.gates_``); ReLU heads take their patterns from the neurons.
        X: raw features (n, d), where they are now.
        Y: targets (n, C).
        omega: row weights (n,), non-negative, not all zero.
        beta: absolute penalty.
        penalty: ``group`` or ``ridge``.
        solver: one of the activation's, or ``auto``.
        limits: when to stop.
        seed: of the trial gates of the certificate.

    Returns:
        The head with the lower J: the one solved for, or the one before where round-off or the
        limits left the solve above it; then the certificate is of the one before.

    Raises:
        ValueError: shapes that do not belong together, or a ReLU network whose output weights are
            not 1 and -1, as no solve leaves them.

    Example:
        >>> from convex_heads import ConvexHeadClassifier
        >>> from convex_heads.losses import targets
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 4)).astype("float32")
        >>> y = (X[:, 0] * X[:, 1] > 0).astype(int)
        >>> head = ConvexHeadClassifier(beta=0.05).fit(X, y)
        >>> moved, Y, ones = X + 0.1 * np.sign(X), targets(y, "logistic", 2), np.ones(300)
        >>> before = objective(head.network_, moved, Y, ones, head.certificate_.beta)
        >>> again = solve_again(head.network_, head.gates_, moved, Y, ones,
        ...                     head.certificate_.beta)
        >>> again.objective <= before, again.certificate.relative_gap <= 1e-3
        (True, True)
    """
    limits = limits or Limits()
    k = X.shape[1] + 1
    if len(Y) != len(X) or omega.shape != (len(X),) or gates.shape[1] != k:
        raise ValueError(
            f"X (n, d), Y (n, C), omega (n,) and gates (P, d + 1) must agree; got {X.shape}, "
            f"{Y.shape}, {omega.shape}, {gates.shape}"
        )
    relu = isinstance(network, ReluNetwork)
    activation = ACTIVATIONS["relu" if relu else "gated_relu"]
    before = objective(network, X, Y, omega, beta, penalty)
    if isinstance(network, ReluNetwork):
        W = neurons_of(network, Y.shape[1])
        gates = np.ascontiguousarray(W.transpose(0, 2, 1).reshape(-1, W.shape[1]))
    else:
        assert isinstance(network, Network)
        W = _all_weights(network, gates)
    prepared = prepare_given(
        network.scaling.transform(X, np.float32),
        Y,
        omega,
        LOSSES[network.loss],
        gates,
        network.offset,
        jax.random.key(seed),
        PENALTIES[penalty],
    )
    prepared, solver = activation.with_solver(prepared, solver)
    rotated = rotate(prepared, W)
    history: tuple[Record, ...] = ()
    status = Status.STATIONARY
    value, R = rotated, None
    if not relu or np.asarray(rotated).any():  # descent cannot begin at zero
        if solver == "subspace" and working.pays(prepared):
            solution = working.minimise(prepared, beta, rotated, limits=limits)
        else:
            warm = activation.resume(prepared, rotated, solver=solver)
            solution, _ = activation.minimise(
                prepared, beta, solver=solver, warm=warm, limits=limits
            )
        value, R = solution.value, solution.residual
        history, status = solution.history, solution.status
    found = activation.decode(
        network.scaling, gates, unrotate(prepared, value), network.offset, network.loss
    )
    after = objective(found, X, Y, omega, beta, penalty)
    if not after <= before:
        found, after, value, R = network, before, rotated, None
    certificate = activation.certify(
        prepared, value, beta, R=R, key=jax.random.fold_in(jax.random.key(seed), 1)
    )
    return Again(found, certificate, after, status, history)


def _all_weights(network: Network, gates: np.ndarray) -> np.ndarray:
    """Weights (P, d + 1, C) of all gates; zero where the network has dropped them."""
    P, k, C = len(gates), network.gates.shape[1], network.weights.shape[2]
    W = np.zeros((P, k, C), network.weights.dtype)
    place = {gate.tobytes(): i for i, gate in reversed(list(enumerate(gates)))}
    for gate, weights in zip(network.gates.astype(gates.dtype), network.weights, strict=True):
        i = place.get(gate.tobytes())
        if i is None:
            raise ValueError("the network has a gate that is not among those offered")
        # Gates that are equal are one gate, with the sum of their weights.
        W[i] += weights
    return W


def neurons_of(network: ReluNetwork, C: int) -> np.ndarray:
    """Neurons (P, d + 1, 2 C) of a network whose output weights are 1 or -1 and otherwise 0."""
    column = np.concatenate([network.output, -network.output], axis=1)
    if (
        not (np.sort(column.clip(0), axis=1)[:, -1] == 1).all()
        or (np.count_nonzero(network.output, axis=1) != 1).any()
    ):
        raise ValueError("the output weights of a ReLU head are 1 or -1, one for each neuron")
    at = column.argmax(axis=1)
    P = max(1, int(np.bincount(at, minlength=2 * C).max()))
    V = np.zeros((P, network.hidden.shape[1], 2 * C), network.hidden.dtype)
    filled = np.zeros(2 * C, int)
    for neuron, c in zip(network.hidden, at, strict=True):
        V[filled[c], :, c] = neuron
        filled[c] += 1
    return V

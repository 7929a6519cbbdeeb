r"""The certificate of a deployed network: how far its weights are from the best there can be.

A gated network f(x) = z0 + sum_i 1[g_i'x >= 0] W_i'x is a point of the convex program

.. math:: \min_W\; \sum_j \omega_j\, l\big(z_0 + \sum_i D_i X W_i,\, Y\big)_j
          + \beta \sum_i \|W_i\|_F

of its own gates, wherever its weights came from, so :mod:`convex_heads.certificate` bounds what
they lose against the optimum. A ReLU network f_c(x) = z0_c + sum_j a_jc (h_j'x)_+ is a feasible
point of the ReLU program of its own neurons (:func:`convex_heads.relu.certify_neurons`), which has
each pattern with the output and sign that it has in the network,
with the penalty ``sum_jc |a_jc| ||h_j||``. The offset z0 is not a variable: the bound is right
for any of them.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from convex_heads import relu
from convex_heads.certificate import TRIAL_GATES, Certificate, certify_program
from convex_heads.decode import Network, ReluNetwork
from convex_heads.gates import distinct_patterns, row_basis, sample_gates
from convex_heads.losses import LOSSES, check_targets
from convex_heads.mappings import make_room
from convex_heads.operators import build_program
from convex_heads.penalties import PENALTIES


def certify(
    network: Network | ReluNetwork,
    X: ArrayLike,
    Y: ArrayLike,
    beta: float,
    *,
    sample_weight: ArrayLike | None = None,
    gates: ArrayLike | None = None,
    penalty: str = "group",
    key: Array | int = 0,
) -> Certificate:
    r"""Certifies a network on training rows; knows nothing of the solver that trained it.

    The bound comes from the residual of the network on these rows alone, so a solver, which has
    seen other residuals, may have proven a smaller gap.
    Weights that were stopped early may look worse than they are, never better.

    What is certified is the program of the network's own gates. A fitted head has dropped the
    gates that it does not use (:meth:`convex_heads.decode.Network.decode`), and they are not
    offered again unless ``gates`` names them; the pattern violation says what gates beyond those
    of the program could gain.

    Args:
        network: gated or ReLU; its scaling says how X is standardised.
        X: raw features (n, d), finite.
        Y: targets (n, C): one-hot for softmax, 0 or 1 for logistic (C = 1 for two classes), real
            for squared.
        beta: penalty, absolute (not a fraction of beta_max), >= 0; the loss is averaged over rows.
        sample_weight: row weights (n,), non-negative, not all zero; None weighs rows equally.
        gates: more gates (P', d + 1) that the program offers, in standardised coordinates; those
            that have the pattern of another gate are left out. Without any gate at all the
            program is that of a linear head. For gated networks only.
        penalty: ``group`` (default) or ``ridge``, sum_i ||W_i||_F^2 / 2, which has no pattern
            violation and needs beta > 0. ReLU networks have ``group`` alone.
        key: JAX random key, or seed, of the gates drawn for the pattern violation. Default 0.

    Returns:
        The :class:`convex_heads.certificate.Certificate`. Computed in float32, or in float64 where
        JAX has been told to.

    Raises:
        TypeError: the network is neither.
        ValueError: rows, targets, weights or beta that do not fit the network, in one sentence.

    Source: arXiv 2411.01088 for the program; the dual is derived in
    :mod:`convex_heads.certificate`.

    Example:
        >>> import numpy as np
        >>> from convex_heads import ConvexHeadClassifier
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 4)).astype("float32")
        >>> y = (X[:, 0] * X[:, 1] > 0).astype(int)
        >>> head = ConvexHeadClassifier(beta=0.1, tolerance=1e-3).fit(X, y)
        >>> beta, penalty = head.certificate_.beta, head.penalty_
        >>> proof = certify(head.network_, X, y[:, None], beta, penalty=penalty)
        >>> proof.dual <= proof.primal, proof.relative_gap < 1e-2
        (True, True)
    """
    if not isinstance(network, Network | ReluNetwork):
        raise TypeError(
            f"certify takes a convex_heads.Network or ReluNetwork; got a {type(network).__name__}"
        )
    dtype = jax.dtypes.canonicalize_dtype(np.float64).type
    X, Y, omega = _rows(network, _numbers("X", X), _numbers("Y", Y), sample_weight)
    if not (np.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta is an absolute penalty, finite and at least 0; got {beta}")
    if penalty not in PENALTIES:
        raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}; got {penalty!r}")
    if penalty == "ridge" and beta == 0:
        raise ValueError("beta is 0, at which the ridge penalty gives no bound: it must be above 0")
    if isinstance(network, ReluNetwork) and (gates is not None or penalty != "group"):
        raise ValueError(
            "a ReLU network is certified in the program of its own neurons, under the group "
            "penalty: gates and penalty='ridge' are for gated networks"
        )
    if not isinstance(key, Array):
        key = jax.random.key(key)
    if network.loss == "squared":
        # Of targets with a large mean, single precision would keep the mean alone.
        offset = np.asarray(network.offset, np.float64)
        Y, network = Y - offset, replace(network, offset=np.zeros_like(offset))
    network = _with_gates(network, gates) if isinstance(network, Network) else network
    # Standardised as given: single precision would lose the digits of columns with a large mean.
    scaling, network = network.scaling, network.astype(dtype)
    _check_finite(network)
    X, Y = scaling.transform(X, dtype), Y.astype(dtype)
    make_room()
    if isinstance(network, ReluNetwork):
        return relu.certify_network(network, X, Y, omega, beta, key)
    D = X @ network.gates.T >= 0
    # Patterns that weights own stay, equal or not: the penalty counts them one by one.
    keep = np.union1d(distinct_patterns(D), np.flatnonzero(network.weights.any(axis=(1, 2))))
    omega = omega / omega.sum()
    basis = row_basis(X)
    rows = X if basis is None else X @ basis
    second_moment = jnp.asarray((rows.T * omega) @ rows, dtype)
    trial = np.asarray(sample_gates(key, second_moment, TRIAL_GATES + 1))[1:]
    return certify_program(
        build_program(X, D[:, keep], Y, omega.astype(dtype), network.offset),
        LOSSES[network.loss],
        jnp.asarray(network.weights[keep]),
        beta,
        trial_gates=trial if basis is None else trial @ basis.T,
        penalty=PENALTIES[penalty],
    )


def _with_gates(network: Network, gates: ArrayLike | None) -> Network:
    """The network with more gates (P', d + 1), their weights zero; at least one gate in all."""
    k, C = network.dim + 1, len(network.offset)
    more = np.zeros((0, k)) if gates is None else _numbers("gates", gates)
    if more.ndim != 2 or more.shape[1] != k or not np.isfinite(more).all():
        raise ValueError(
            f"gates must be finite, of shape (P, {k}): one column for each feature and one for the "
            f"constant; got shape {more.shape}"
        )
    if len(network.gates) + len(more) == 0:
        more = np.eye(k)[-1:]
    return replace(
        network,
        gates=np.concatenate([network.gates, more]),
        weights=np.concatenate([network.weights, np.zeros((len(more), k, C))]),
    )


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be an array of real numbers; got {array.dtype} values")
    return array


def _check_finite(network: Network | ReluNetwork) -> None:
    """Refuses a network that computes no numbers in the precision that it is in."""
    relu_network = isinstance(network, ReluNetwork)
    weights = network.output if relu_network else network.weights
    neurons = network.hidden if relu_network else network.gates
    if not all(np.isfinite(part).all() for part in (neurons, weights, network.offset)):
        raise ValueError(
            f"the network holds NaN, infinity or numbers beyond {network.offset.dtype}: certify "
            f"takes finite weights, gates and offsets"
        )


def _rows(
    network: Network | ReluNetwork, X: np.ndarray, Y: np.ndarray, sample_weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, targets and weights (n,), checked against the network."""
    C = len(network.offset)
    if X.ndim != 2 or X.shape[1] != network.dim or not len(X) or not np.isfinite(X).all():
        raise ValueError(
            f"X must hold finite raw features, shape (n, {network.dim}) with n >= 1; got shape "
            f"{X.shape}" + ("" if np.isfinite(X).all() else " with values that are not finite")
        )
    if Y.shape != (len(X), C):
        raise ValueError(f"Y must hold finite targets, shape ({len(X)}, {C}); got shape {Y.shape}")
    check_targets(Y, network.loss)
    weight = np.ones(len(X)) if sample_weight is None else _numbers("sample_weight", sample_weight)
    if weight.shape != (len(X),) or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(
            f"sample_weight must be finite and non-negative, shape ({len(X)},); got shape "
            f"{weight.shape}"
        )
    if not weight.any():
        raise ValueError("sample_weight is zero everywhere: at least one row must count")
    return X, Y, weight

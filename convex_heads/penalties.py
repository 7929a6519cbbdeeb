"""The penalties of the weights: value, proximal map, dual bound, and model on a span.

A group is everything one gate owns: W[i] of shape (d, C).

=======  ========================  =======================================================
penalty  h(W)                      the dual of  min phi(F W) + beta h(W)
=======  ========================  =======================================================
group    sum_i ||W_i||_F           max -phi*(nu)  subject to  ||X'D_i nu||_F <= beta
ridge    (1/2) sum_i ||W_i||_F^2   max -phi*(nu) - (1/(2 beta)) sum_i ||X'D_i nu||_F^2
=======  ========================  =======================================================

The group penalty switches whole gates off, so an optimum uses few of the gates it was offered;
ridge uses them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convex_heads.precision import jit

# The reciprocal root of the sum below is concave and increasing in tau, so Newton from the left
# rises monotonically to its root; 12 steps reach float64 round-off from any start met in practice.
_NEWTON_STEPS = 12
# A metric's smallest entry, relative to its largest: directions in which the features do not vary
# must not divide by zero, and steps along them need not be longer than this.
_METRIC_FLOOR = 1e-4
# The norm, relative to the largest, that a gate at zero is given where its curvature is needed.
_SMALL = 1e-5


class Penalty(NamedTuple):
    """One penalty h. Hashable, so that it can be a static argument under ``jit``.

    Attributes:
        name: ``group`` or ``ridge``.
        value: W (P, d, C) -> h(W), ().
        prox: (A (P, d, C), metric (d,) or (P, d), t ()) -> the V that minimises
            sum_k metric_k ||V_ik - A_ik||^2 / 2 over all gates i, plus t h(V).
        dual: (G = F'R (P, d, C), beta ()) -> (s, cost), both (): s R is a dual point, and the
            penalty's share of its dual value is -cost.
        on_span: (q (P,), b (P, k), B (P, k, k), t (k,)) -> value (), gradient (k,) and Hessian
            (k, k) of h at W + sum_j t_j V_j, where q_i = ||W_i||^2, b_ij = <W_i, V_ji> and
            B_ijl = <V_ji, V_li>.
        sparse: whether weights are exactly zero above some beta.
    """

    name: str
    value: Callable[[Array], Array]
    prox: Callable[[Array, Array, Array], Array]
    dual: Callable[[Array, Array], tuple[Array, Array]]
    on_span: Callable[[Array, Array, Array, Array], tuple[Array, Array, Array]]
    sparse: bool


@jit
def group_norms(W: Array) -> Array:
    """||W_i||_F of every gate: (P, d, C) -> (P,)."""
    return jnp.sqrt(jnp.sum(W * W, axis=(1, 2)))


def neuron_norms(V: Array) -> Array:
    """||v|| of every neuron: (P, d, K) -> (P, K)."""
    return jnp.sqrt(jnp.sum(V * V, axis=1))


def group_l21(W: Array) -> Array:
    """Penalty sum_i ||W_i||_F: (P, d, C) -> ()."""
    return jnp.sum(group_norms(W))


def dual_norm(G: Array) -> Array:
    """Dual norm max_i ||G_i||_F: (P, d, C) -> ()."""
    return jnp.max(group_norms(G))


@jit
def floored_metric(h: Array) -> Array:
    """A non-negative diagonal (d,) made a positive metric: at least 1e-4 of its largest entry."""
    top = jnp.max(h)
    return jnp.where(top > 0, jnp.maximum(h, _METRIC_FLOOR * top), jnp.ones_like(h))


@jit
def prox_group_l21(A: Array, h: Array, threshold: Array) -> Array:
    r"""Proximal map of the group penalty in a diagonal metric.

    .. math:: \arg\min_V \tfrac12 \sum_k h_k \|V_{ik} - A_{ik}\|^2 + t \|V_i\|_F
              \quad\text{for every gate } i.

    The minimiser is zero if ||h A_i|| <= t; else V = h tau / (h tau + t) * A where tau = ||V|| is
    the root of sum_k (h_k A_k / (h_k tau + t))^2 = 1, found by Newton's method on the reciprocal
    root of that sum (as in trust-region methods). With h = 1 it is the usual block soft threshold.

    Args:
        A: points (P, d, C).
        h: positive metric (d,), one entry for each feature direction, or one of each gate (P, d).
        threshold: t >= 0, a scalar.

    Returns:
        V (P, d, C).
    """
    # The secular equation needs A only through the squares a_k = sum_c (h_k A_kc)^2: (P, d).
    a = h * h * jnp.sum(A * A, axis=2)
    alive = jnp.sqrt(jnp.sum(a, axis=1)) > threshold

    def newton(_: int, tau: Array) -> Array:
        q = h * tau[:, None] + threshold
        u2 = a / (q * q)
        g = jnp.sum(u2, axis=1)
        slope = jnp.sum(u2 * h / q, axis=1)  # = -g'/2
        # phi = g^(-1/2) - 1, phi' = g^(-3/2) * slope  =>  step = (g^(1/2) - 1) g / slope
        step = (jnp.sqrt(g) - 1) * g / slope
        return jnp.where(alive, jnp.maximum(tau + step, 0), jnp.zeros_like(tau))

    # ||A - V|| <= t / min h, so this is left of the root; it is the root itself when t = 0.
    start = jnp.maximum(group_norms(A) - threshold / jnp.min(h, axis=-1), 0)
    tau = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    ratio = h * tau[:, None] / (h * tau[:, None] + threshold)
    return jnp.where(alive[:, None, None], ratio[:, :, None] * A, jnp.zeros_like(A))


def prox_neurons(V: Array, h: Array, threshold: Array) -> Array:
    """Proximal map of threshold times the sum of neuron norms in the metric diag(h): (P, d, K)."""
    P, d, K = V.shape
    single = V.transpose(0, 2, 1).reshape(P * K, d, 1)
    return prox_group_l21(single, h, threshold).reshape(P, K, d).transpose(0, 2, 1)


def soft_threshold(V: Array, t: Array) -> Array:
    """:func:`prox_neurons` in the Euclidean metric, in closed form: (P, d, K)."""
    norm = neuron_norms(V)[:, None, :]
    return V * jnp.maximum(0, 1 - t / jnp.where(norm > 0, norm, 1))


def dual_scale(norm: Array, beta: Array) -> Array:
    """The largest s in [0, 1] with s * norm <= beta, ()."""
    return jnp.minimum(1, beta / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))


def _group_dual(G: Array, beta: Array) -> tuple[Array, Array]:
    s = dual_scale(dual_norm(G), beta)
    return s, jnp.zeros_like(s)


def _group_on_span(q: Array, b: Array, B: Array, t: Array) -> tuple[Array, Array, Array]:
    slope = b + B @ t
    norms = jnp.sqrt(jnp.maximum(q + (b + slope) @ t, 0))
    value = jnp.sum(norms)
    # A gate that is zero has no curvature to speak of; a small norm stands in for it.
    norms = jnp.maximum(norms, _SMALL * jnp.max(norms) + jnp.finfo(t.dtype).tiny)
    unit = slope / norms[:, None]
    hessian = jnp.sum(B / norms[:, None, None], axis=0) - (unit / norms[:, None]).T @ unit
    return value, jnp.sum(unit, axis=0), hessian


def _ridge_value(W: Array) -> Array:
    return jnp.sum(W * W) / 2


def _ridge_prox(A: Array, h: Array, threshold: Array) -> Array:
    scale = h + threshold
    return A * (h / scale)[..., None]


def _ridge_dual(G: Array, beta: Array) -> tuple[Array, Array]:
    # Every residual is feasible. Its own scale is the best one at the optimum.
    squares = jnp.sum(G * G)
    return jnp.ones_like(squares), squares / (2 * beta)


def _ridge_on_span(q: Array, b: Array, B: Array, t: Array) -> tuple[Array, Array, Array]:
    slope = b + B @ t
    return (
        jnp.sum(jnp.maximum(q + (b + slope) @ t, 0)) / 2,
        jnp.sum(slope, axis=0),
        jnp.sum(B, axis=0),
    )


GROUP = Penalty("group", group_l21, prox_group_l21, _group_dual, _group_on_span, True)
RIDGE = Penalty("ridge", _ridge_value, _ridge_prox, _ridge_dual, _ridge_on_span, False)

PENALTIES = {penalty.name: penalty for penalty in (GROUP, RIDGE)}

"""The group penalty sum_i ||W_i||_F over gates: value, dual norm, proximal maps.

A group is everything one gate owns: W[i] of shape (d, C). The penalty switches whole gates off, so
an optimum uses few of the gates it was offered.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

# The reciprocal root of the sum below is concave and increasing in tau, so Newton from the left
# rises monotonically to its root; 12 steps reach float64 round-off from any start met in practice.
_NEWTON_STEPS = 12
# A metric's smallest entry, relative to its largest: directions in which the features do not vary
# must not divide by zero, and steps along them need not be longer than this.
_METRIC_FLOOR = 1e-4


def group_norms(W: Array) -> Array:
    """||W_i||_F of every gate: (P, d, C) -> (P,)."""
    return jnp.sqrt(jnp.sum(W * W, axis=(1, 2)))


def group_l21(W: Array) -> Array:
    """Penalty sum_i ||W_i||_F: (P, d, C) -> ()."""
    return jnp.sum(group_norms(W))


def dual_norm(G: Array) -> Array:
    """Dual norm max_i ||G_i||_F: (P, d, C) -> ()."""
    return jnp.max(group_norms(G))


def floored_metric(h: Array) -> Array:
    """A non-negative diagonal (d,) made a positive metric: at least 1e-4 of its largest entry."""
    top = jnp.max(h)
    return jnp.where(top > 0, jnp.maximum(h, _METRIC_FLOOR * top), jnp.ones_like(h))


@jax.jit
def prox_group_l21(A: Array, h: Array, threshold: Array) -> Array:
    r"""Proximal map of the group penalty in a diagonal metric.

    .. math:: \arg\min_V \tfrac12 \sum_k h_k \|V_{ik} - A_{ik}\|^2 + t \|V_i\|_F
              \quad\text{for every gate } i.

    The minimiser is zero if ||h A_i|| <= t; else V = h tau / (h tau + t) * A where tau = ||V|| is
    the root of sum_k (h_k A_k / (h_k tau + t))^2 = 1, found by Newton's method on the reciprocal
    root of that sum (as in trust-region methods). With h = 1 it is the usual block soft threshold.

    Args:
        A: points (P, d, C).
        h: positive metric (d,), one entry for each feature direction.
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
    start = jnp.maximum(group_norms(A) - threshold / jnp.min(h), 0)
    tau = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    ratio = h * tau[:, None] / (h * tau[:, None] + threshold)
    return jnp.where(alive[:, None, None], ratio[:, :, None] * A, jnp.zeros_like(A))

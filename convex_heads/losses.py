"""Row losses l(z, y) of the convex programs: value, gradient, conjugate, curvature.

A loss acts on one row of scores z (C,) and one row of targets y (C,); every function takes arrays
of any leading shape (..., C) and reduces the last axis only. The conjugate is taken at a
gradient: for any s in [0, 1], ``conjugate(s * gradient(z, y), y)`` is finite, which is what makes
every scaled-down residual a dual point (see :mod:`convex_heads.certificate`).

============  =======================  =============================  ===============  =========
loss          l(z, y)                  l*(g; y)                       targets y        curvature
============  =======================  =============================  ===============  =========
squared       ||z - y||^2 / 2          ||g||^2 / 2 + <g, y>           real (C,)        1
logistic      sum_c log(1 + e^z_c)     sum_c p_c log p_c              0 or 1 (C,)      1/4
              - y_c z_c                + (1-p_c) log(1-p_c), p = y+g
softmax       logsumexp(z) - <y, z>    sum_c p_c log p_c, p = y+g     one-hot (C,)     1/2
============  =======================  =============================  ===============  =========
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import DTypeLike

from convex_heads.precision import jit


class Loss(NamedTuple):
    """One row loss. Hashable, so that it can be a static argument under ``jit``.

    Attributes:
        name: ``squared``, ``logistic`` or ``softmax``.
        value: (z, y) -> l(z, y), shapes (..., C), (..., C) -> (...).
        gradient: (z, y) -> dl/dz, shape (..., C).
        conjugate: (g, y) -> l*(g; y), shape (...).
        curvature: an upper bound of the largest eigenvalue of the Hessian d2l/dz2.
        hessian: (g, y) -> (a, u), both (..., C): the Hessian where the gradient is g is
            diag(a) - u u'.
        offset: mean target (C,) -> z0 (C,), the best constant score; finite for any mean.
        prox: (v, y, rho, start) -> ``argmin_z l(z, y) + rho/2 |z - v|^2``, shape (..., C),
            from a first guess ``start``.
    """

    name: str
    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    conjugate: Callable[[Array, Array], Array]
    curvature: float
    hessian: Callable[[Array, Array], tuple[Array, Array]]
    offset: Callable[[Array], Array]
    prox: Callable[[Array, Array, Array, Array], Array]


# From the last step's scores three or four Newton steps reach float32 round-off.
_PROX_STEPS = 6
# Units in the last place, for each output, that a gradient may be outside the domain of the
# conjugate; beyond it the conjugate is infinite, so that no residual that is none raises a bound.
_ROUNDOFF = 16


def _entropy_term(p: Array) -> Array:
    """P log p, with 0 log 0 = 0; p in [0, 1]."""
    positive = p > 0
    return jnp.where(positive, p * jnp.log(jnp.where(positive, p, jnp.ones_like(p))), 0)


def _entropy_term_from_one(a: Array) -> Array:
    """(1 - a) log(1 - a) for a in [0, 1], exact where a is tiny."""
    below = a < 1
    return jnp.where(below, (1 - a) * jnp.log1p(-jnp.where(below, a, jnp.zeros_like(a))), 0)


def _probability(mean: Array) -> Array:
    # A class (or its complement) that is absent would have an infinite log prior.
    tiny = jnp.finfo(mean.dtype).eps
    return jnp.clip(mean, tiny, 1 - tiny)


@jit
def _squared_value(z: Array, y: Array) -> Array:
    return jnp.sum((z - y) ** 2, axis=-1) / 2


def _squared_conjugate(g: Array, y: Array) -> Array:
    return jnp.sum(g**2 / 2 + g * y, axis=-1)


# Targets of the next two are 0 or 1, and a well-fitted row has a loss far below the float epsilon
# of 1: every formula below keeps the small quantity small instead of subtracting it from 1.


@jit
def _logistic_value(z: Array, y: Array) -> Array:
    return jnp.sum(jax.nn.softplus((1 - 2 * y) * z), axis=-1)


def _logistic_gradient(z: Array, y: Array) -> Array:
    sign = 1 - 2 * y
    return sign * jax.nn.sigmoid(sign * z)


def _slack(g: Array) -> float:
    """How far round-off may take a row's gradient (..., C) out of the conjugate's domain."""
    return _ROUNDOFF * g.shape[-1] * float(jnp.finfo(g.dtype).eps)


def _inside(a: Array) -> Array:
    """Whether all of a row's a (..., C) are in [0, 1], but for round-off."""
    slack = _slack(a)
    return jnp.all((a >= -slack) & (a <= 1 + slack), axis=-1)


def _logistic_conjugate(g: Array, y: Array) -> Array:
    a = (1 - 2 * y) * g  # distance of p = y + g from y
    inside = _inside(a)
    a = jnp.clip(a, 0, 1)
    value = jnp.sum(_entropy_term(a) + _entropy_term_from_one(a), axis=-1)
    return jnp.where(inside, value, jnp.inf)


@jit
def _softmax_value(z: Array, y: Array) -> Array:
    z = z - jnp.sum(z * y, axis=-1, keepdims=True)
    top = jnp.maximum(jnp.max(jnp.where(y > 0, -jnp.inf, z), axis=-1), 0)
    others = jnp.sum(jnp.where(y > 0, 0, jnp.exp(z - top[..., None])), axis=-1)
    # log(e^0 + sum of the others), the larger of the two taken out
    return jnp.where(top > 0, top + jnp.log(others + jnp.exp(-top)), jnp.log1p(others))


def _softmax_gradient(z: Array, y: Array) -> Array:
    others = jax.nn.softmax(z, axis=-1) * (1 - y)
    return others - y * jnp.sum(others, axis=-1, keepdims=True)


def _softmax_conjugate(g: Array, y: Array) -> Array:
    a = (1 - 2 * y) * g  # distance of p = y + g from y, per entry
    inside = _inside(a) & (jnp.abs(jnp.sum(g, axis=-1)) <= _slack(g))
    a = jnp.clip(a, 0, 1)
    others = jnp.sum(jnp.where(y > 0, 0, _entropy_term(a)), axis=-1)
    # y is one-hot: one entry of a row is near one, and one logarithm of it is enough.
    value = others + _entropy_term_from_one(jnp.sum(a * y, axis=-1))
    return jnp.where(inside, value, jnp.inf)


@jit
def _logit(mean: Array) -> Array:
    p = _probability(mean)
    return jnp.log(p) - jnp.log1p(-p)


def _squared_hessian(g: Array, y: Array) -> tuple[Array, Array]:
    return jnp.ones_like(g), jnp.zeros_like(g)


def _logistic_hessian(g: Array, y: Array) -> tuple[Array, Array]:
    # p (1 - p): either |g| is p and 1 - |g| is 1 - p, or the reverse.
    return jnp.abs(g) * (1 - jnp.abs(g)), jnp.zeros_like(g)


def _squared_prox(v: Array, y: Array, rho: Array, start: Array) -> Array:
    return (y + rho * v) / (1 + rho)


def _newton_prox(loss_gradient: Callable, loss_hessian: Callable) -> Callable:
    """The proximal map by Newton's method, from ``start``.

    A step is cut where it would move a score by more than two: there the curvature of the logistic
    and softmax losses could be another one (they are self-concordant in the sense of Bach 2010).
    """

    def prox(v: Array, y: Array, rho: Array, start: Array) -> Array:
        def newton(_: int, z: Array) -> Array:
            g = loss_gradient(z, y)
            a, u = loss_hessian(g, y)
            # (diag(a + rho) - u u')^-1 by Sherman and Morrison
            step = (g + rho * (z - v)) / (a + rho)
            along = u / (a + rho)
            share = jnp.sum(u * step, axis=-1) / (1 - jnp.sum(u * along, axis=-1))
            step = step + along * share[..., None]
            size = jnp.max(jnp.abs(step), axis=-1, keepdims=True)
            return z - step * jnp.minimum(1, 2 / jnp.maximum(size, 1e-6))

        return jax.lax.fori_loop(0, _PROX_STEPS, newton, start)

    return prox


def _softmax_hessian(g: Array, y: Array) -> tuple[Array, Array]:
    return y + g, y + g


SQUARED = Loss(
    "squared",
    _squared_value,
    lambda z, y: z - y,
    _squared_conjugate,
    1.0,
    _squared_hessian,
    lambda m: m,
    _squared_prox,
)
LOGISTIC = Loss(
    "logistic",
    _logistic_value,
    _logistic_gradient,
    _logistic_conjugate,
    0.25,
    _logistic_hessian,
    _logit,
    _newton_prox(_logistic_gradient, _logistic_hessian),
)
SOFTMAX = Loss(
    "softmax",
    _softmax_value,
    _softmax_gradient,
    _softmax_conjugate,
    0.5,
    _softmax_hessian,
    lambda m: jnp.log(_probability(m)),
    _newton_prox(_softmax_gradient, _softmax_hessian),
)

LOSSES = {loss.name: loss for loss in (SQUARED, LOGISTIC, SOFTMAX)}


def targets(
    labels: np.ndarray, loss: str, n_classes: int, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Class numbers (n,) -> what a loss compares with: one-hot (n, C).

    Two classes under ``logistic`` have one output, (n, 1); more of them are told one from the rest.

    Example:
        >>> targets(np.array([1, 0]), "logistic", 2).tolist()
        [[1.0], [0.0]]
        >>> targets(np.array([1, 0]), "logistic", 3).tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    if loss == "logistic" and n_classes <= 2:
        return labels[:, None].astype(dtype)
    return np.eye(n_classes, dtype=dtype)[labels]


def check_targets(Y: np.ndarray, loss: str) -> None:
    """Whether targets (n, C) are those that a loss is defined for.

    Raises:
        ValueError: they are not, said in one sentence. Of others the conjugates would be no
            conjugates, and the bounds no bounds.
    """
    if Y.dtype.kind not in "biuf":
        raise ValueError(f"Y must be an array of real numbers; got {Y.dtype} values")
    if not np.isfinite(Y).all():
        raise ValueError(
            f"Y must hold finite targets; got NaN or infinity among shape {tuple(Y.shape)}"
        )
    if loss != "squared" and not np.isin(Y, (0, 1)).all():
        raise ValueError(f"targets of the {loss} loss are 0 or 1; Y holds other values")
    if loss == "softmax" and (Y.sum(axis=-1) != 1).any():
        raise ValueError("targets of the softmax loss are one-hot: every row of Y sums to 1")

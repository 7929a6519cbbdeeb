"""Losses: gradients, conjugates and curvature against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convex_heads.losses import LOSSES

pytestmark = pytest.mark.x64
CASES = [("squared", 3), ("squared", 1), ("logistic", 1), ("logistic", 3)]
CASES += [("softmax", 4), ("softmax", 2)]


def _point(name: str, C: int, seed: int):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(6, C)) * rng.choice([0.1, 1, 10])
    if name == "squared":
        y = rng.normal(size=(6, C))
    elif name == "logistic":
        y = rng.integers(0, 2, size=(6, C)).astype(float)
    else:
        y = np.eye(C)[rng.integers(0, C, 6)]
    return jnp.asarray(z), jnp.asarray(y)


@pytest.mark.parametrize(("name", "C"), CASES)
def test_gradient_is_the_derivative_of_the_value(name, C):
    loss = LOSSES[name]
    z, y = _point(name, C, 0)
    expected = jax.grad(lambda z: jnp.sum(loss.value(z, y)))(z)
    np.testing.assert_allclose(loss.gradient(z, y), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "C"), CASES)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 1))
def test_fenchel_inequality_holds_and_is_tight_at_the_gradient(name, C, seed, scale):
    loss = LOSSES[name]
    z, y = _point(name, C, seed)
    g = loss.gradient(z, y)
    inner = jnp.sum(g * z, axis=-1)
    np.testing.assert_allclose(loss.value(z, y) + loss.conjugate(g, y), inner, rtol=1e-8, atol=1e-8)
    # Young: l(z') + l*(s g) >= <s g, z'> at any other z', for the scaled gradient as well.
    other, _ = _point(name, C, seed + 1)
    slack = loss.value(other, y) + loss.conjugate(scale * g, y) - jnp.sum(scale * g * other, -1)
    assert float(slack.min()) >= -1e-9


@pytest.mark.parametrize(("name", "C"), CASES)
def test_curvature_bounds_every_hessian_and_is_attained(name, C):
    loss = LOSSES[name]
    points = [_point(name, C, seed) for seed in range(30)]
    z = jnp.concatenate([jnp.zeros((1, C)), *(z for z, _ in points)])
    y = jnp.concatenate([points[0][1][:1], *(y for _, y in points)])
    largest = float(jnp.linalg.eigvalsh(jax.vmap(jax.hessian(loss.value))(z, y)).max())
    assert largest <= loss.curvature + 1e-12
    assert largest >= 0.95 * loss.curvature or (name, C) == ("softmax", 4)


@pytest.mark.parametrize(("name", "C"), CASES)
def test_offset_is_the_best_constant_score(name, C):
    loss = LOSSES[name]
    _, y = _point(name, C, 3)
    y = jnp.concatenate([y, 1 - y if name == "logistic" else y[:, ::-1]])
    mean = y.mean(axis=0)
    z0 = loss.offset(mean)
    gradient = loss.gradient(jnp.broadcast_to(z0, y.shape), y).mean(axis=0)
    present = np.asarray((mean > 0) & (mean < 1)) if name != "squared" else slice(None)
    np.testing.assert_allclose(np.asarray(gradient)[present], 0, atol=1e-10)
    assert np.isfinite(loss.offset(jnp.zeros(C))).all()

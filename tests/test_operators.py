"""The streamed operators against the dense formula, and against each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convex_heads import operators
from convex_heads.operators import (
    adjoint,
    adjoint_of_gates,
    apply,
    block_rows,
    build_program,
    column_moments,
    rows,
    spool_program,
)


def _random(seed, n, d, P, C, dtype):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(dtype)
    D = rng.random((n, P)) < 0.5
    Y = rng.normal(size=(n, C)).astype(dtype)
    program = build_program(X, D, Y, np.ones(n, dtype), np.zeros(C, dtype))
    return X, D, Y, program


@settings(max_examples=5)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 9),
    d=st.integers(1, 4),
    P=st.integers(1, 4),
    C=st.integers(1, 3),
)
@pytest.mark.x64
def test_streamed_products_equal_the_dense_ones(seed, n, d, P, C):
    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr(operators, "_MAX_BLOCK_ROWS", 4)  # several blocks, the last one padded
        X, D, Y, program = _random(seed, n, d, P, C, np.float64)
        W = np.random.default_rng(seed + 1).normal(size=(P, d, C))
        dense = sum(D[:, [i]] * (X @ W[i]) for i in range(P))
        np.testing.assert_allclose(rows(apply(program, jnp.asarray(W)), n), dense, atol=1e-12)
        back = np.stack([X.T @ (D[:, [i]] * Y) for i in range(P)])
        np.testing.assert_allclose(adjoint(program, program.Y), back, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.x64
@pytest.mark.usefixtures("strict_promotion")
def test_adjoint_identity(dtype):
    *_, program = _random(5, 3000, 7, 6, 4, dtype)
    rng = np.random.default_rng(0)
    W = jnp.asarray(rng.normal(size=program.shape).astype(dtype))
    R = jnp.asarray(rng.normal(size=program.Y.shape).astype(dtype))
    left, right = jnp.sum(apply(program, W) * R), jnp.sum(W * adjoint(program, R))
    assert apply(program, W).dtype == dtype
    np.testing.assert_allclose(left, right, rtol=1e-3 if dtype == np.float32 else 1e-10)


def test_blocks_are_equal_bounded_and_cover_all_rows():
    for n, P, C in [(1, 1, 1), (14_130, 64, 6), (1_281_167, 16, 1000), (5, 10_000, 10_000)]:
        b = block_rows(n, P, C)
        assert 1 <= b <= max(n, 64)
        assert b * P * C <= max(operators._BLOCK_ENTRIES, P * C)
        assert -n % b < b
    # As few blocks as fit, and no longer than they need to be: 28 of 505 rows are 28 of 512.
    for (n, P, C), b in {
        (14_130, 64, 6): 512,
        (600, 4, 3): 304,
        (300, 4, 3): 320,
        (1, 1, 1): 64,
        (10, 0, 3): 64,  # a head without gates
        (1_281_167, 16, 1000): 262,
    }.items():
        assert block_rows(n, P, C) == b


def test_rows_of_a_block_are_divided_among_devices(monkeypatch):
    monkeypatch.setattr(operators, "devices_here", lambda: 4)
    assert block_rows(1000, 1, 1) == 4 * 256  # 250 rows each, in round numbers


@pytest.mark.x64
def test_other_gates_switch_on_the_rows_on_their_boundary_too():
    X, _, Y, program = _random(7, 30, 3, 3, 2, np.float64)
    gates = np.r_[np.random.default_rng(7).normal(size=(4, 3)), np.zeros((1, 3))]  # three at a time
    on = X @ gates.T >= 0
    assert on[:, -1].all()
    found = adjoint_of_gates(program, jnp.asarray(gates), program.Y)
    expected = np.stack([X.T @ (on[:, [i]] * Y) for i in range(5)])
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.x64
def test_column_moments_are_the_weighted_squares():
    X, D, Y, _ = _random(4, 600, 3, 2, 1, np.float64)
    omega = np.random.default_rng(4).random(600)
    program = build_program(X, D, Y, omega, np.zeros(1))
    expected = (omega / omega.sum()) @ X**2
    np.testing.assert_allclose(column_moments(program), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 512, 600])
def test_a_spooled_program_is_the_one_in_memory(n):
    X, D, Y, program = _random(6, n, 3, 2, 2, np.float32)
    omega, z0 = np.ones(n, np.float32), np.zeros(2, np.float32)
    spooled = spool_program([X[: n // 2], X[n // 2 :]], 3, D, Y, omega, z0)
    for one, other in zip(spooled[:5], program[:5], strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_row_weights_are_normalised_and_padding_weighs_nothing():
    _X, _D, _Y, program = _random(1, 1500, 2, 2, 2, np.float32)
    assert float(program.omega.sum()) == pytest.approx(1, rel=1e-5)
    assert program.omega.size >= 1500
    assert not rows(program.omega, program.omega.size)[1500:].any()

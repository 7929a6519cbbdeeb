"""Levelling the gates: what it promises to first order, and that it raises the bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import random_problem

from convex_heads import levelling, subspace
from convex_heads.certificate import dual_value, loss_value, residual
from convex_heads.levelling import level
from convex_heads.losses import LOSSES
from convex_heads.operators import adjoint, apply, build_program
from convex_heads.penalties import GROUP, group_norms

pytestmark = pytest.mark.x64


def _after_steps(seed: int, loss: str, steps: int, fraction: float = 0.05):
    problem = random_problem(seed, loss)
    program = build_program(problem.X, problem.D, problem.Y, problem.omega, problem.z0)
    beta = jnp.asarray(fraction * problem.beta_max())
    start = subspace.restate(program, LOSSES[loss], GROUP, beta, subspace.zero_state(program))
    state = subspace.advance(program, LOSSES[loss], GROUP, beta, jnp.zeros(()), start, steps)
    R = residual(program, LOSSES[loss], state.z)
    return problem, program, beta, state, R, adjoint(program, R)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_curvature_is_the_hessian_of_the_loss(loss):
    _, program, _, state, R, G = _after_steps(0, loss, 3)

    def along(t):
        return loss_value(program, LOSSES[loss], state.z + apply(program, t[:, None, None] * G))

    found = levelling._curvature(program, LOSSES[loss], R, G)
    np.testing.assert_allclose(found, jax.hessian(along)(jnp.zeros(len(G))), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_coordinate_descent_solves_the_nonnegative_program(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(12, 8))
    M, e = jnp.asarray(A.T @ A + 0.5 * np.eye(8)), jnp.asarray(rng.normal(size=8))
    a = np.asarray(levelling._nonnegative(M, e))
    damped = np.asarray(M) + levelling._DAMPING * np.diag(np.diag(M))
    slope = damped @ a - np.asarray(e)
    assert a.min() >= 0
    assert slope.min() >= -1e-4  # no coordinate wants to grow
    np.testing.assert_allclose(slope[a > 0], 0, atol=1e-4)


def test_norms_of_a_quadratic_come_down_to_beta():
    _, program, beta, state, R, G = _after_steps(3, "squared", 6)
    move, image = level(program, LOSSES["squared"], R, G, beta)
    np.testing.assert_allclose(image, apply(program, move), atol=1e-12)
    above = float(jnp.max(group_norms(G)) / beta)
    after = adjoint(program, residual(program, LOSSES["squared"], state.z + image))
    assert above > 1.002
    # Along the gates' own gradients all is linear; what is left is of second order.
    assert float(jnp.max(group_norms(after)) / beta) - 1 < 0.2 * (above - 1)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_bound_is_one_and_mostly_a_better_one(loss):
    better = 0
    for seed in range(6):
        problem, program, beta, state, R, G = _after_steps(seed, loss, 5)
        optimum, _ = problem.solve(float(beta))
        own = float(dual_value(program, LOSSES[loss], R, G, beta))
        _, image = level(program, LOSSES[loss], R, G, beta)
        R = residual(program, LOSSES[loss], state.z + image)
        bound = float(dual_value(program, LOSSES[loss], R, adjoint(program, R), beta))
        assert bound <= optimum * (1 + 1e-7) + 1e-8
        better += bound > own or float(state.gap) < 1e-4
    assert better >= 5


def test_more_gates_than_are_moved():
    problem = random_problem(1, "softmax")
    D = np.repeat(problem.D, -(-2 * levelling.MOST // problem.D.shape[1]), axis=1)
    program = build_program(problem.X, D, problem.Y, problem.omega, problem.z0)
    R = residual(program, LOSSES["softmax"], jnp.zeros_like(program.Y))
    G = adjoint(program, R)
    beta = 0.3 * jnp.max(group_norms(G))
    move, image = level(program, LOSSES["softmax"], R, G, beta)
    moved = np.flatnonzero(np.asarray(group_norms(move)))
    assert 0 < len(moved) <= levelling.MOST
    np.testing.assert_allclose(image, apply(program, move), atol=1e-12)

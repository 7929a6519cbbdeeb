"""Levelling the gates: what it promises to first order, and that it raises the bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import random_problem

from convex_heads import levelling, subspace, subspace_state
from convex_heads.duality import dual_value, loss_value, residual
from convex_heads.levelling import level, levelled
from convex_heads.losses import LOSSES
from convex_heads.operators import adjoint, apply, build_program
from convex_heads.penalties import GROUP, group_norms

pytestmark = pytest.mark.x64


def _after_steps(seed: int, loss: str, steps: int, fraction: float = 0.05):
    problem = random_problem(seed, loss)
    program = build_program(problem.X, problem.D, problem.Y, problem.omega, problem.z0)
    beta = jnp.asarray(fraction * problem.beta_max())
    start = subspace_state.restate(
        program, LOSSES[loss], GROUP, beta, subspace_state.zero_state(program, GROUP)
    )
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
def test_coordinate_descent_solves_the_bounded_program(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(12, 8))
    M, e = jnp.asarray(A.T @ A + 0.5 * np.eye(8)), jnp.asarray(rng.normal(size=8))
    least = -jnp.asarray(rng.random(8) * (rng.random(8) < 0.5))
    a = np.asarray(levelling._minimiser(M, e, least))
    damped = np.asarray(M) + levelling._DAMPING * np.diag(np.diag(M))
    slope = damped @ a - np.asarray(e)
    free = a > least
    assert (a >= least).all() and free.any() and not free.all()
    assert slope.min() >= -1e-4  # no coordinate wants to grow
    np.testing.assert_allclose(slope[free], 0, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_a_quadratic_come_to_beta_along_themselves(seed):
    _, program, beta, state, R, G = _after_steps(seed, "squared", 6)
    move, image = level(program, LOSSES["squared"], state.W, R, G, beta)
    np.testing.assert_allclose(image, apply(program, move), atol=1e-12)
    after = adjoint(program, residual(program, LOSSES["squared"], state.z + image))
    norms = group_norms(G)
    U = G / norms[:, None, None]
    excess = float(jnp.max(norms / beta)) - 1
    along = np.asarray(jnp.sum(after * U, axis=(1, 2)) / beta)
    # Complementary slackness: a gate that keeps something along its gradient is at beta, from
    # below as from above. Damping and margin are a hundredth and a tenth of the excess.
    free = np.asarray(-jnp.sum((state.W + move) * U, axis=(1, 2))) > 1e-9
    assert excess > 2e-3 and free.any()
    np.testing.assert_allclose(along[free], 1, atol=0.15 * excess)
    assert along.max() <= 1 + 0.02 * excess


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_bound_is_one_and_a_much_better_one(loss):
    shares = []
    for seed in range(6):
        problem, program, beta, state, R, G = _after_steps(seed, loss, 12)
        optimum, _ = problem.solve(float(beta))
        own = float(dual_value(program, LOSSES[loss], R, G, beta))
        at = levelled(program, LOSSES[loss], beta, state.W, state.z, R, G, state.primal)
        scores = state.z + at.image
        np.testing.assert_allclose(at.R, residual(program, LOSSES[loss], scores), atol=1e-12)
        np.testing.assert_allclose(scores, apply(program, state.W + at.move), atol=1e-9)
        assert float(at.dual) <= optimum * (1 + 1e-7) + 1e-8
        shares.append((float(state.primal) - float(at.dual)) / (float(state.primal) - own))
    assert np.median(shares) < 0.5


def test_rounds_go_on_while_they_help():
    _, program, beta, state, R, G = _after_steps(0, "softmax", 4, fraction=0.01)
    at = levelled(program, LOSSES["softmax"], beta, state.W, state.z, R, G, state.primal)
    _, image = level(program, LOSSES["softmax"], state.W, R, G, beta)
    once = residual(program, LOSSES["softmax"], state.z + image)
    first = dual_value(program, LOSSES["softmax"], once, adjoint(program, once), beta)
    assert at.rounds > 1 and at.dual > first
    assert at.passes == at.rounds * 1.5


def test_more_gates_than_are_moved():
    problem = random_problem(1, "softmax")
    D = np.repeat(problem.D, -(-2 * levelling._MOST // problem.D.shape[1]), axis=1)
    program = build_program(problem.X, D, problem.Y, problem.omega, problem.z0)
    R = residual(program, LOSSES["softmax"], jnp.zeros_like(program.Y))
    G = adjoint(program, R)
    beta = 0.3 * jnp.max(group_norms(G))
    move, image = level(program, LOSSES["softmax"], jnp.zeros_like(G), R, G, beta)
    moved = np.flatnonzero(np.asarray(group_norms(move)))
    assert 0 < len(moved) <= levelling._MOST
    np.testing.assert_allclose(image, apply(program, move), atol=1e-12)

"""The ridge penalty against a linear system, SciPy's minimiser and automatic derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Problem, random_problem
from scipy.optimize import minimize as scipy_minimize

from convex_heads import (
    ConvexHeadClassifier,
    Limits,
    Options,
    certify,
    fista,
    kernel,
    solve,
    subspace,
)
from convex_heads.certificate import certify_program
from convex_heads.losses import LOSSES
from convex_heads.operators import build_program
from convex_heads.penalties import PENALTIES, RIDGE

LIMITS = Limits(tolerance=1e-7, max_passes=20_000)


def _program(problem: Problem):
    return build_program(problem.X, problem.D, problem.Y, problem.omega, problem.z0)


def _objective(problem: Problem, W: np.ndarray, beta: float) -> float:
    return problem.loss_value(W) + beta / 2 * float(np.sum(W**2))


def _optimum(problem: Problem, beta: float) -> np.ndarray:
    """Weights (P, d, C): of the normal equations for the squared loss, else of L-BFGS."""
    P, d, C = problem.D.shape[1], problem.X.shape[1], problem.Y.shape[1]
    F, omega = problem.F, problem.omega[:, None]
    if problem.loss == "squared":
        matrix = F.T @ (omega * F) + beta * np.eye(P * d)
        return np.linalg.solve(matrix, F.T @ (omega * (problem.Y - problem.z0))).reshape(P, d, C)

    def both(w: np.ndarray) -> tuple[float, np.ndarray]:
        W = w.reshape(P, d, C)
        return _objective(problem, W, beta), (F.T @ problem.residual(W)).ravel() + beta * w

    options = {"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-10}
    found = scipy_minimize(both, np.zeros(P * d * C), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(P, d, C)


def _by_kernel(program, loss, beta, *, penalty, limits):
    assert penalty is RIDGE
    return kernel.minimise(program, kernel.gram(program), loss, beta, limits=limits)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("minimise", "loss"),
    [
        (fista.minimise, "squared"),
        (fista.minimise, "logistic"),
        (fista.minimise, "softmax"),
        (subspace.minimise, "softmax"),
        (_by_kernel, "softmax"),
        (_by_kernel, "squared"),
        pytest.param(_by_kernel, "logistic", marks=pytest.mark.slow),
        pytest.param(subspace.minimise, "squared", marks=pytest.mark.slow),
        pytest.param(subspace.minimise, "logistic", marks=pytest.mark.slow),
    ],
)
def test_weights_equal_an_independent_solution(minimise, loss):
    for seed, beta in ((0, 0.3), (1, 0.03), (2, 0.003)):
        problem = random_problem(seed, loss)
        program = _program(problem)
        expected = _optimum(problem, beta)
        optimum = _objective(problem, expected, beta)
        solution, _ = minimise(program, LOSSES[loss], beta, penalty=RIDGE, limits=LIMITS)
        assert solution.stats.primal == pytest.approx(optimum, rel=1e-6)
        np.testing.assert_allclose(solution.value, expected, atol=2e-2 * np.abs(expected).max())
        proof = certify_program(
            program, LOSSES[loss], solution.value, beta, R=solution.residual, penalty=RIDGE
        )
        assert proof.dual <= optimum * (1 + 1e-9)
        assert proof.relative_gap <= 1e-6
        at_optimum = certify_program(
            program, LOSSES[loss], jnp.asarray(expected), beta, penalty=RIDGE
        )
        assert at_optimum.relative_gap <= 1e-6


@pytest.mark.x64
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_one_gate_is_solved_by_little_more_than_its_products(loss):
    problem = random_problem(7, loss, P=1)
    program, beta = _program(problem), 0.01
    limits = Limits(tolerance=1e-7, max_passes=100)
    solution, state = subspace.minimise(program, LOSSES[loss], beta, penalty=RIDGE, limits=limits)
    optimum = _objective(problem, _optimum(problem, beta), beta)
    assert solution.stats.primal == pytest.approx(optimum, rel=1e-6)
    # A pass a step, and F W anew at the end; the last two steps are all that is kept.
    assert solution.stats.iterations < solution.stats.passes <= solution.stats.iterations + 1
    assert state.images.shape[1] == 2


@pytest.mark.x64
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_bound_holds_for_any_weights_and_any_residual(loss):
    problem = random_problem(3, loss)
    program, beta = _program(problem), 0.05
    best = _optimum(problem, beta)
    optimum = _objective(problem, best, beta)
    rng = np.random.default_rng(0)
    gaps = []
    for scale in (0.0, 0.01, 0.1, 1.0):
        W = best + scale * rng.normal(size=program.shape)
        proof = certify_program(program, LOSSES[loss], jnp.asarray(W), beta, penalty=RIDGE)
        assert proof.primal == pytest.approx(_objective(problem, W, beta), rel=1e-12)
        assert proof.dual <= optimum * (1 + 1e-9)
        gaps.append(proof.relative_gap)
    assert gaps == sorted(gaps)


@pytest.mark.x64
@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_the_model_on_a_span_has_the_derivatives_of_the_penalty(name):
    penalty = PENALTIES[name]
    rng = np.random.default_rng(0)
    W, V = jnp.asarray(rng.normal(size=(5, 4, 2))), jnp.asarray(rng.normal(size=(3, 5, 4, 2)))
    q = jnp.sum(W * W, axis=(1, 2))
    b, B = jnp.einsum("kpdc,pdc->pk", V, W), jnp.einsum("kpdc,lpdc->pkl", V, V)

    def along(t):
        return penalty.value(W + jnp.tensordot(t, V, 1))

    for t in (jnp.zeros(3), jnp.asarray(rng.normal(size=3))):
        value, gradient, hessian = penalty.on_span(q, b, B, t)
        np.testing.assert_allclose(value, along(t), rtol=1e-12)
        np.testing.assert_allclose(gradient, jax.grad(along)(t), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(hessian, jax.hessian(along)(t), rtol=1e-9, atol=1e-12)


@pytest.mark.x64
def test_the_prox_has_a_zero_gradient():
    rng = np.random.default_rng(1)
    A, h = rng.normal(size=(4, 3, 2)), rng.uniform(0.1, 2, 3)
    for t in (0.0, 0.3, 10.0):
        V = np.asarray(RIDGE.prox(jnp.asarray(A), jnp.asarray(h), jnp.asarray(t)))
        np.testing.assert_allclose(h[:, None] * (V - A) + t * V, 0, atol=1e-14)


@pytest.mark.usefixtures("strict_promotion")
def test_solve_takes_the_penalty_as_an_option():
    rng = np.random.default_rng(2)
    X = np.c_[rng.normal(size=(300, 5)), np.ones(300)].astype(np.float32)
    Y = (X[:, :1] + np.abs(X[:, 1:2])).astype(np.float32)
    limits = Limits(tolerance=1e-4)
    options = Options(
        beta=0.01, n_gates=8, loss="squared", penalty="ridge", solver="fista", limits=limits
    )
    solution = solve(X, Y, options, jax.random.key(0))
    D = X @ np.asarray(solution.gates).T >= 0
    problem = Problem(X, D, Y, np.full(300, 1 / 300), Y.mean(axis=0), "squared")
    # The scale of beta is the beta_max of the group penalty.
    beta = 0.01 * problem.beta_max()
    optimum = _objective(problem, _optimum(problem, beta), beta)
    assert solution.stats.primal == pytest.approx(optimum, rel=2e-4)
    with pytest.raises(ValueError, match="group, ridge"):
        Options(penalty="lasso")


def test_ridge_has_a_path_and_gates_of_its_own():
    """Where hardly anything can be learnt, ridge wants more than the group penalty's beta_max."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(2100, 10)).astype(np.float32)
    y = (X[:, 0] + 8 * rng.normal(size=2100) > 0).astype(int)
    ridge, group = (ConvexHeadClassifier(penalty=name).fit(X, y) for name in ("ridge", "group"))
    assert (len(ridge.gates_), len(group.gates_)) == (256, 64)
    assert ridge.beta_ > 1 >= group.path_[0].fraction
    assert ridge.certificate_.relative_gap <= 1e-3
    assert ConvexHeadClassifier(penalty="ridge", beta=2.0).fit(X, y).beta_ == 2
    with pytest.raises(ValueError, match="at most 1 under the group penalty"):
        ConvexHeadClassifier(beta=2.0, penalty="group").fit(X, y)


def test_a_ridge_head_uses_all_gates_and_its_network_is_certified():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(200, 4)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    head = ConvexHeadClassifier(
        n_gates=16, beta=0.02, penalty="ridge", tolerance=1e-3, solver="fista"
    ).fit(X, y)
    assert head.certificate_.relative_gap <= 1e-3
    assert head.certificate_.active_gates == head.certificate_.n_gates == len(head.network_.gates)
    assert np.isnan(head.certificate_.pattern_violation)
    proof = certify(head.network_, X, y[:, None], head.certificate_.beta, penalty="ridge")
    assert proof.primal == pytest.approx(head.certificate_.primal, rel=1e-5)
    assert proof.relative_gap <= 5e-3
    for change, word in (({"penalty": "lasso"}, "group, ridge"), ({"beta": 0.0}, "above 0")):
        given = {"beta": 0.1, "penalty": "ridge"} | change
        with pytest.raises(ValueError, match=word):
            certify(head.network_, X, y[:, None], **given)

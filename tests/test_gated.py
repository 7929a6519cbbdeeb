"""The gated solver and its certificate against an independent solver."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Problem, random_problem

from convex_heads import Limits, Options, Status, fista, gated, solve, subspace
from convex_heads.certificate import beta_max, certify_program, pattern_violation
from convex_heads.duality import dual_value, residual
from convex_heads.levelling import levelled
from convex_heads.losses import LOSSES
from convex_heads.operators import adjoint, apply, build_program, rows
from convex_heads.traced import status_of

pytestmark = pytest.mark.x64
EXACT = Limits(tolerance=1e-9, max_passes=20_000)
SOLVERS = {"fista": fista.minimise, "subspace": subspace.minimise}
# The search compares objectives, so its weights are exact to the root of round-off only.
LIMITS = {"fista": EXACT, "subspace": Limits(tolerance=1e-6, max_passes=5_000)}


def _program(problem: Problem):
    return build_program(problem.X, problem.D, problem.Y, problem.omega, problem.z0)


def _check_against_oracle(solver: str, loss: str, seed: int, C: int | None = None) -> None:
    problem = random_problem(seed, loss, C=C)
    program = _program(problem)
    fraction = float(np.random.default_rng(seed).choice([0.5, 0.1, 0.03, 0.01]))
    beta = fraction * problem.beta_max()
    assert float(beta_max(program, LOSSES[loss])) == pytest.approx(problem.beta_max(), rel=1e-10)
    optimum, _ = problem.solve(beta)
    solution, _ = SOLVERS[solver](program, LOSSES[loss], beta, limits=LIMITS[solver])
    value = problem.objective(np.asarray(solution.value), beta)
    assert value == pytest.approx(optimum, rel=1e-5, abs=1e-8)  # abs: what the oracle was asked for
    assert solution.stats.primal == pytest.approx(value, rel=1e-10)
    certificate = certify_program(program, LOSSES[loss], solution.value, beta, R=solution.residual)
    assert certificate.dual <= optimum * (1 + 1e-8)
    assert certificate.dual <= certificate.primal
    assert certificate.relative_gap <= 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("seed", range(8))
def test_value_equals_an_interior_point_solution(solver, loss, seed):
    _check_against_oracle(solver, loss, seed)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(4))
def test_one_vs_rest_is_one_convex_program(solver, seed):
    _check_against_oracle(solver, "logistic", seed, C=3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("seed", range(100, 120))
def test_value_equals_an_interior_point_solution_on_many_programs(solver, loss, seed):
    _check_against_oracle(solver, loss, seed)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_bound_holds_for_any_weights_and_any_residual(loss):
    problem = random_problem(3, loss)
    program = _program(problem)
    beta = 0.05 * problem.beta_max()
    optimum, _ = problem.solve(beta)
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.1, 1.0, 10.0):
        W = jnp.asarray(scale * rng.normal(size=program.shape))
        # A residual of other weights is a legitimate dual point too.
        other = residual(program, LOSSES[loss], apply(program, 0.3 * W))
        for hint in (None, other):
            certificate = certify_program(program, LOSSES[loss], W, beta, R=hint)
            assert certificate.dual <= optimum * (1 + 1e-9)
            assert certificate.primal >= optimum * (1 - 1e-9)
            assert certificate.primal == pytest.approx(problem.objective(np.asarray(W), beta))


def test_the_bound_is_the_best_of_three():
    problem, loss = random_problem(3, "softmax"), LOSSES["softmax"]
    program, beta = _program(problem), 0.05 * problem.beta_max()
    best = jnp.asarray(problem.solve(beta)[1])
    W = best + 0.1 * jax.random.normal(jax.random.key(0), best.shape, best.dtype)

    def plain(W: jax.Array) -> float:
        R = residual(program, loss, apply(program, W))
        return float(dual_value(program, loss, R, adjoint(program, R), jnp.asarray(beta)))

    z = apply(program, W)
    R = residual(program, loss, z)
    primal = jnp.asarray(problem.objective(np.asarray(W), beta))
    G = adjoint(program, R)
    level = float(levelled(program, loss, jnp.asarray(beta), W, z, R, G, primal).dual)
    near = residual(program, loss, apply(program, best))
    assert plain(W) < level < plain(best)
    assert certify_program(program, loss, W, beta).dual == pytest.approx(level, rel=1e-9)
    with_hint = certify_program(program, loss, W, beta, R=near).dual
    assert with_hint == pytest.approx(plain(best), rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_beta_max_is_where_the_head_vanishes(solver, loss):
    problem = random_problem(4, loss)
    program = _program(problem)
    largest = problem.beta_max()
    at, _ = SOLVERS[solver](program, LOSSES[loss], 1.0001 * largest, limits=LIMITS[solver])
    below, _ = SOLVERS[solver](program, LOSSES[loss], 0.99 * largest, limits=LIMITS[solver])
    assert not np.asarray(at.value).any()
    assert at.stats.relative_gap <= LIMITS[solver].tolerance
    assert np.asarray(below.value).any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_always_on_gate_is_ridge_like_logistic_regression(solver):
    # One group: at the optimum the gradient of the loss is -beta W / ||W||, the condition of a
    # ridge-penalised regression with C = ||W|| / beta on the same data.
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=(200, 5)), np.ones(200)]
    y = (X[:, 0] + 0.5 * rng.normal(size=200) > 0).astype(float)
    program = build_program(X, np.ones((200, 1), bool), y[:, None], np.ones(200), np.zeros(1))
    loss = LOSSES["logistic"]
    beta = 0.05 * float(beta_max(program, loss))
    solution, _ = SOLVERS[solver](program, loss, beta, limits=EXACT)
    W = np.asarray(solution.value)[0, :, 0]
    ridge = LogisticRegression(
        C=np.linalg.norm(W) / beta / 200, fit_intercept=False, tol=1e-10, max_iter=10_000
    ).fit(X, y)
    np.testing.assert_allclose(W, ridge.coef_[0], rtol=1e-4)


def test_metric_and_plain_steps_reach_the_same_value():
    problem = random_problem(5, "softmax", n=60, d=6, P=6)
    program = _program(problem)
    beta = 0.02 * problem.beta_max()
    h = 0.5 * jnp.asarray(problem.omega @ problem.X**2)
    plain, _ = fista.minimise(program, LOSSES["softmax"], beta, limits=EXACT)
    metric, _ = fista.minimise(program, LOSSES["softmax"], beta, h=h, limits=EXACT)
    assert metric.stats.primal == pytest.approx(plain.stats.primal, rel=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_objective_never_increases_and_the_bound_never_falls(solver):
    problem = random_problem(6, "softmax")
    solution, _ = SOLVERS[solver](_program(problem), LOSSES["softmax"], 0.01, limits=LIMITS[solver])
    primal = [record.primal for record in solution.history]
    dual = [record.dual for record in solution.history]
    assert all(np.diff(primal) <= 1e-12)
    assert all(np.diff(dual) >= 0)
    assert solution.status is Status.CONVERGED


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_limit_is_kept_and_said(solver):
    problem = random_problem(7, "softmax")
    solution, _ = SOLVERS[solver](
        _program(problem), LOSSES["softmax"], 1e-4, limits=Limits(tolerance=1e-12, max_passes=20)
    )
    assert solution.status is Status.MAX_PASSES
    assert solution.stats.passes <= 60
    assert solution.stats.relative_gap > 1e-12


@pytest.mark.usefixtures("strict_promotion")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solve_in_both_precisions(solver, dtype):
    rng = np.random.default_rng(1)
    X = np.c_[rng.normal(size=(300, 5)), np.ones(300)].astype(dtype)
    Y = np.eye(3, dtype=dtype)[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0)]
    options = Options(
        beta=0.03, n_gates=20, solver=solver, limits=Limits(tolerance=1e-3, max_passes=2000)
    )
    solution = solve(X, Y, options, jax.random.key(0))
    assert solution.status is Status.CONVERGED
    assert solution.value.dtype == dtype
    # What is returned is in the coordinates of X: its objective is the reported one.
    D = X @ np.asarray(solution.gates).T >= 0
    mean = Y.mean(axis=0)
    problem = Problem(X, D, Y, np.full(300, 1 / 300), np.log(mean), "softmax")
    beta = options.beta * problem.beta_max()
    value = problem.objective(np.asarray(solution.value), beta)
    assert value == pytest.approx(solution.stats.primal, rel=1e-4)


def test_pattern_violation_finds_a_gate_that_is_missing():
    rng = np.random.default_rng(2)
    X = np.c_[rng.normal(size=(500, 3)), np.ones(500)]
    Y = np.eye(2)[(X[:, 0] * X[:, 1] > 0).astype(int)]  # no linear head can do this
    one = build_program(X, np.ones((500, 1), bool), Y, np.ones(500), np.log([0.5, 0.5]))
    loss = LOSSES["softmax"]
    beta = 0.1 * float(beta_max(one, loss))
    linear, _ = fista.minimise(one, loss, beta, limits=EXACT)
    trial = rng.normal(size=(64, 4))
    own = residual(one, loss, apply(one, linear.value))
    missing = pattern_violation(one, own, beta, jnp.asarray(trial))
    assert missing > 1.5
    assert pattern_violation(one, own, 0.0, jnp.asarray(trial)) == np.inf
    # With the trial gates in the program, no trial gate is left to add.
    D = np.c_[np.ones(500, bool), X @ trial.T >= 0]
    many = build_program(X, D, Y, np.ones(500), np.log([0.5, 0.5]))
    rich, _ = fista.minimise(many, loss, beta, limits=EXACT)
    R = residual(many, loss, apply(many, rich.value))
    assert pattern_violation(many, R, beta, jnp.asarray(trial), ascent_steps=0) <= 1 + 1e-6
    assert pattern_violation(many, R, beta, jnp.asarray(trial)) < missing


def test_pattern_violation_of_many_outputs_is_that_of_all_of_them():
    rng = np.random.default_rng(3)
    X = np.c_[rng.normal(size=(400, 5)), np.ones(400)]
    Y = np.eye(100)[(10 * np.abs(X[:, 0])).astype(int)]
    program = build_program(X, np.ones((400, 4), bool), Y, np.ones(400), np.zeros(100))
    R = residual(program, LOSSES["softmax"], jnp.zeros_like(program.Y))
    trial = rng.normal(size=(40, 6))
    exact = max(np.linalg.norm(X.T @ ((X @ g >= 0)[:, None] * rows(R, 400))) for g in trial)
    found = pattern_violation(program, R, 1.0, jnp.asarray(trial), ascent_steps=0)
    assert 0.97 * exact <= found <= exact * (1 + 1e-9)
    assert pattern_violation(program, R, 1.0, jnp.asarray(trial)) > 0.97 * exact


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("beta", 0.0, "fraction"),
        ("beta", -1.0, "fraction"),
        ("beta", 1.5, "fraction"),
        ("n_gates", 0, "at least 1"),
        ("loss", "hinge", "softmax"),
        ("solver", "adam", "subspace"),
    ],
)
def test_options_refuse_nonsense_when_built(field, value, word):
    with pytest.raises(ValueError, match=word):
        Options(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("tolerance", 0), ("tolerance", 1), ("max_passes", 0), ("max_seconds", 0)]
)
def test_limits_refuse_nonsense_when_built(field, value):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


def test_fewer_rows_than_features_are_solved_in_the_span_of_the_rows():
    rng = np.random.default_rng(0)
    n, d, loss = 20, 60, LOSSES["softmax"]
    X = np.c_[rng.normal(size=(n, d - 1)), np.ones(n)]
    Y = np.eye(3)[rng.integers(0, 3, n)]
    prepared = gated.prepare(X, Y, np.ones(n), loss, 6, jax.random.key(0))
    assert prepared.Q.shape == (d, n + 1)
    z0 = np.asarray(prepared.program.z0)
    problem = Problem(X, X @ prepared.gates.T >= 0, Y, np.full(n, 1 / n), z0, "softmax")
    assert prepared.beta_max == pytest.approx(problem.beta_max(), rel=1e-10)
    beta = 0.1 * prepared.beta_max
    optimum, _ = problem.solve(beta)
    solution, _ = gated.minimise(prepared, beta, limits=Limits(tolerance=1e-6))
    value = problem.objective(gated.unrotate(prepared, solution.value), beta)
    assert value == pytest.approx(optimum, rel=1e-5)


@pytest.mark.parametrize("n", [200, 20], ids=["tall", "wide"])
def test_the_gates_of_a_certificate_are_drawn_from_the_axes_at_hand(n):
    rng = np.random.default_rng(0)
    rows, key = rng.normal(size=(n, 40)) @ rng.normal(size=(40, 40)), jax.random.key(3)
    Y, ones, loss = np.eye(2)[rng.integers(0, 2, n)], np.ones(n), LOSSES["softmax"]
    prepared = gated.prepare(np.c_[rows - rows.mean(axis=0), ones], Y, ones, loss, 4, key)
    trial = np.asarray(gated.trial_gates(prepared, key))
    fresh = gated.fresh_gates(prepared, key, len(trial))
    np.testing.assert_allclose(trial, fresh, atol=1e-6)
    # Features whose mean has moved: no threshold, and the covariance of the features alone.
    moved = np.c_[rows + 5, ones]
    z0 = np.asarray(prepared.program.z0)
    prepared = gated.prepare_given(moved, Y, ones, loss, prepared.gates, z0, key)
    keys = jax.random.split(key, 40)
    drawn = np.concatenate([gated.trial_gates(prepared, k) for k in keys]) @ prepared.Q.T
    S = moved[:, :-1].T @ moved[:, :-1] / n
    assert np.abs(drawn[:, -1]).max() <= 1e-9 * np.abs(drawn).max()
    found = drawn[:, :-1].T @ drawn[:, :-1] / len(drawn)
    assert np.linalg.norm(found - S) <= 0.05 * np.linalg.norm(S)


def test_a_traced_solve_finds_what_the_driven_one_finds():
    rng = np.random.default_rng(0)
    n, d = 60, 5
    X = np.c_[rng.normal(size=(n, d - 1)), np.ones(n)]
    labels = rng.integers(0, 3, (2, n))
    options = Options(beta=0.05, n_gates=6, limits=Limits(tolerance=1e-6, max_passes=2000))
    key = jax.random.key(0)
    both = jax.jit(jax.vmap(lambda Y: solve(X, Y, options, key)))(jnp.asarray(np.eye(3)[labels]))
    for k in range(2):
        alone = solve(X, np.eye(3)[labels[k]], options, key)
        assert status_of(both.status[k]) is alone.status is Status.CONVERGED
        assert both.stats.primal[k] == pytest.approx(alone.stats.primal, rel=2e-6)
        assert both.stats.dual[k] <= alone.stats.primal * (1 + 1e-12)
        D, gates = X @ np.asarray(both.gates[k]).T >= 0, np.asarray(alone.gates)
        assert len(np.unique(D, axis=1).T) == len(gates)
        scores = np.einsum("np,nd,pdc->nc", D, X, both.value[k])
        np.testing.assert_allclose(scores, np.asarray(both.scores[k]).reshape(-1, 3)[:n], atol=1e-9)
    few = replace(options, limits=Limits(tolerance=1e-9, max_passes=3))
    stopped = jax.jit(lambda X: solve(X, np.eye(3)[labels[0]], few, key))(X)
    assert status_of(stopped.status) is Status.MAX_PASSES


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gates": "pairs"}, "picks rows"),
        ({"solver": "fista"}, "solver='auto' alone"),
        ({"activation": "relu"}, "activation='gated_relu'"),
        ({"limits": Limits(max_seconds=1.0)}, "no clock"),
    ],
)
def test_a_traced_solve_refuses_what_needs_values(change, word):
    options = replace(Options(n_gates=3), **change)
    with pytest.raises(ValueError, match=word):
        jax.jit(lambda X: solve(X, np.ones((5, 1)), options, jax.random.key(0)))(np.ones((5, 2)))

"""ReLU programs: ADMM against an independent solver, descent, certificates, estimators."""

from __future__ import annotations

from itertools import pairwise

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from relu_programs import make, oracle
from sklearn.exceptions import ConvergenceWarning

from convex_heads import ConvexHeadClassifier, ConvexHeadRegressor, Options, relu, solve
from convex_heads.cones import projection_norms, violation
from convex_heads.decode import ReluNetwork
from convex_heads.descent import minimise as descend
from convex_heads.descent import network_scores, objective, rescale, slope
from convex_heads.gated import unrotate
from convex_heads.limits import Limits
from convex_heads.penalties import neuron_norms
from convex_heads.robustness import robustness_radius
from convex_heads.scaling import Scaling
from convex_heads.solution import Status


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ["squared", "logistic", "softmax"])
def test_beta_max_of_the_relu_program_is_where_the_weights_vanish(x64, name):
    prepared = make(3, name)
    zero = float(objective_at_zero(prepared))
    assert oracle(prepared, 1.001 * prepared.beta_max) == pytest.approx(zero, rel=1e-6)
    assert oracle(prepared, 0.9 * prepared.beta_max) < zero * (1 - 1e-6)


def objective_at_zero(prepared):
    P, d, C = prepared.program.shape
    V, z = jnp.zeros((P, d, 2 * C)), jnp.zeros_like(prepared.program.Y)
    return objective(prepared.program, prepared.loss, jnp.asarray(0.0), V, z)


def test_projection_norms_are_those_of_an_interior_point_method(x64):
    prepared = make(4, "softmax", n=40)
    program = prepared.program
    A = jax.random.normal(jax.random.key(0), (*program.shape[:2], 2))
    bounds, points = projection_norms(program, relu._moments(prepared), A, steps=3000, rho=3)
    d = program.X.shape[2]
    X = np.asarray(program.X).reshape(-1, d)
    sign = np.where(np.asarray(program.D).reshape(len(X), -1), 1, -1)
    alive = np.asarray(program.omega).ravel() > 0
    for i in range(A.shape[0]):
        for k in range(A.shape[2]):
            v = cp.Variable(d)
            inside = [cp.multiply(sign[alive, i], X[alive] @ v) >= 0]
            a = np.asarray(A[i, :, k])
            cp.Problem(cp.Minimize(cp.sum_squares(v - a)), inside).solve(solver="CLARABEL")
            exact = np.linalg.norm(v.value)
            assert exact - 1e-6 <= float(bounds[i, k]) <= exact + 2e-2 * np.linalg.norm(a)
    assert float(violation(program, points)) < 0.05


def test_descent_never_rises_and_its_certificate_holds_against_the_oracle(x64):
    prepared = make(5, "softmax", n=300, P=2)
    beta = 0.1 * prepared.beta_max
    records = []
    solution, _ = relu.minimise(
        prepared, beta, limits=Limits(tolerance=1e-4), on_record=records.append
    )
    objectives = [record.primal for record in records]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(objectives))
    V = solution.value
    proof = relu.certify_prepared(prepared, V, beta, key=jax.random.key(1))
    assert proof.relative_gap < 5e-2
    # The program of its own neurons, solved anew: between the bound and the network's objective.
    alive = np.argwhere(np.asarray(neuron_norms(V)) > 0)
    value = own_program_value(prepared, np.asarray(V), alive, beta)
    assert proof.dual <= value * (1 + 1e-6)
    assert value <= proof.primal * (1 + 1e-6)


def own_program_value(prepared, V: np.ndarray, alive: np.ndarray, beta: float) -> float:
    program = prepared.program
    d, C = program.X.shape[2], program.Y.shape[2]
    X, Y = np.asarray(program.X).reshape(-1, d), np.asarray(program.Y).reshape(-1, C)
    omega, z0 = np.asarray(program.omega).ravel(), np.asarray(program.z0)
    v = [cp.Variable(d) for _ in alive]
    z: list = [z0[c] for c in range(C)]
    cones = []
    for each, (i, k) in zip(v, alive, strict=True):
        on = X @ V[i, :, k] > 0
        cones.append(cp.multiply(np.where(on, 1, -1), X @ each) >= 0)
        z[k % C] = z[k % C] + (1 if k < C else -1) * cp.multiply(on, X @ each)
    Z = cp.vstack(z).T
    fit = omega @ (cp.log_sum_exp(Z, axis=1) - cp.sum(cp.multiply(Z, Y), axis=1))
    problem = cp.Problem(cp.Minimize(fit + beta * sum(cp.norm(each) for each in v)), cones)
    problem.solve(solver="CLARABEL")
    return float(problem.value)


@pytest.mark.slow
def test_slope_is_the_gradient_of_the_network(x64):
    prepared = make(6, "softmax", n=50)
    program, loss = prepared.program, prepared.loss
    V = relu.start(prepared)

    def value(V):
        return objective(program, loss, jnp.asarray(0.0), V, network_scores(program, V))

    at = slope(program, loss, V)
    np.testing.assert_allclose(at.loss, value(V), rtol=1e-12)
    np.testing.assert_allclose(at.G, jax.grad(value)(V), atol=1e-12)


def test_rescaling_lowers_the_objective_and_leaves_neurons_balanced(x64):
    prepared = make(7, "logistic", n=80)
    program, loss = prepared.program, prepared.loss
    beta = jnp.asarray(0.02 * prepared.beta_max)
    V = relu.start(prepared)
    W = rescale(program, loss, beta, V)
    before = objective(program, loss, beta, V, network_scores(program, V))
    after = objective(program, loss, beta, W, network_scores(program, W))
    assert float(after) < float(before)
    length = np.asarray(neuron_norms(W))
    # Directions stay, and the best lengths balance loss and penalty: -<G, v> = beta ||v||.
    along = np.asarray(-jnp.sum(slope(program, loss, W).G * W, axis=1))
    balanced = length > 1e-6
    np.testing.assert_allclose(along[balanced], float(beta) * length[balanced], rtol=2e-2)


def three_classes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that no linear head separates."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    return X, (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)


def test_the_relu_classifier_learns_what_a_linear_head_cannot_and_says_what_is_proven():
    X, y = three_classes(600, 0)
    Xt, yt = three_classes(400, 1)
    head = ConvexHeadClassifier(activation="relu", n_gates=8, beta=0.02, tolerance=0.1).fit(X, y)
    assert isinstance(head.network_, ReluNetwork)
    assert head.score(Xt, yt) > 0.85
    proof = head.certificate_
    assert 0 <= proof.relative_gap < 0.1
    assert proof.cone_violation == 0
    assert head.solver_ == "descent"
    # The certificate's primal is the deployed network's own objective.
    z = head.network_.scores(X)
    Y = np.eye(3)[y]
    top = z.max(axis=1, keepdims=True)
    nll = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - (z * Y).sum(axis=1)
    length = np.linalg.norm(head.network_.hidden, axis=1).sum()
    assert proof.primal == pytest.approx(nll.mean() + proof.beta * length, rel=1e-4)
    assert (robustness_radius(head.network_, Xt[:20]) >= 0).all()
    again = ConvexHeadClassifier(activation="relu", n_gates=8, beta=0.02, tolerance=0.1)
    again.fit(X, y)
    np.testing.assert_array_equal(head.network_.hidden, again.network_.hidden)


@pytest.mark.slow
def test_the_relu_regressor_reports_in_the_units_of_y():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3)).astype(np.float32)
    y = 100 * np.abs(X[:, 0]) + 7
    head = ConvexHeadRegressor(activation="relu", n_gates=6, beta=0.01, tolerance=0.1).fit(X, y)
    assert head.score(X, y) > 0.95
    z = head.predict(X)
    length = np.linalg.norm(head.network_.hidden, axis=1) * np.abs(head.network_.output[:, 0])
    assert head.certificate_.primal == pytest.approx(
        np.mean((z - y) ** 2) / 2 + head.certificate_.beta * length.sum(), rel=1e-3
    )


@pytest.mark.slow
def test_a_relu_path_is_reported_from_large_to_small_beta():
    X, y = three_classes(400, 2)
    with pytest.warns(ConvergenceWarning):
        head = ConvexHeadClassifier(
            activation="relu", n_gates=4, beta=[0.1, 0.02], tolerance=1e-5, max_passes=60
        ).fit(X, y)
    assert [point.fraction for point in head.path_] == [0.1, 0.02]
    assert head.beta_ == min(head.path_, key=lambda point: point.loss).fraction
    assert len(head.coef_path_) == 2
    assert head.coef_path_[0].shape == (4, 7, 6)


@pytest.mark.slow
def test_solve_returns_a_relu_solution_in_the_given_coordinates():
    X, y = three_classes(300, 3)
    X = np.c_[X, np.ones(300, np.float32)]
    Y = np.eye(3, dtype=np.float32)[y]
    for solver in ("auto", "admm"):
        options = Options(activation="relu", solver=solver, n_gates=4, beta=0.1)
        solution = solve(X, Y, options, jax.random.key(0))
        assert solution.value.shape == (4, 7, 6)
        Z = np.maximum(np.einsum("nd,pdk->npk", X, solution.value), 0).sum(axis=1)
        scores = np.asarray(solution.scores).reshape(-1, 3)[:300]
        np.testing.assert_allclose(Z[:, :3] - Z[:, 3:], scores, atol=1e-3)


def test_zero_neurons_are_dropped_and_the_rest_keep_their_sign():
    V = np.zeros((1, 3, 4), np.float32)
    V[0, :, 1] = [1, 2, 3]
    V[0, :, 3] = [4, 5, 6]
    scaling = Scaling(np.zeros(2, np.float32), np.ones(2, np.float32), np.ones(2, bool))
    network = relu.decode(scaling, np.zeros((1, 3)), V, np.zeros(2, np.float32), "softmax")
    np.testing.assert_array_equal(network.hidden, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(network.output, [[0, 1], [0, -1]])
    prepared = make(0, "softmax", dtype=np.float32)
    assert unrotate(prepared, jnp.zeros((3, 4, 6))).shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation must be one of gated_relu, relu; got 'gelu'"),
        ({"activation": "relu", "solver": "subspace"}, "solver must be one of auto, descent, admm"),
        ({"activation": "relu", "penalty": "ridge"}, "the ReLU program has the group penalty"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


@pytest.mark.slow
def test_the_descent_stops_at_its_limits():
    prepared = make(0, "softmax", n=200, dtype=np.float32)
    solution, _ = descend(
        prepared.program,
        prepared.loss,
        1e-3 * prepared.beta_max,
        h=prepared.h,
        V=relu.start(prepared),
        limits=Limits(tolerance=1e-6, max_passes=30),
    )
    assert solution.status.name == "MAX_PASSES"
    assert solution.stats.passes <= 60


def test_a_head_whose_certificate_misses_the_tolerance_does_not_say_that_it_converged() -> None:
    # ADMM solves the program of the drawn gates; what is certified is the network that is deployed.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)).astype("f4")
    head = ConvexHeadClassifier(
        activation="relu", solver="admm", n_gates=4, beta=0.03, tolerance=0.1
    )
    with pytest.warns(ConvergenceWarning, match="certificate of the network that is deployed"):
        head.fit(X, X[:, 0] * X[:, 1] > 0)
    assert head.certificate_.relative_gap > 0.1
    assert head.status_ is Status.UNPROVEN

"""The certificate of a network: right for fitted, perturbed and foreign weights alike."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from foreign import foreign
from reference import Problem

from convex_heads import ConvexHeadClassifier, Limits, Network, ReluNetwork, certify
from convex_heads.gated import certify_prepared, minimise, prepare, unrotate
from convex_heads.losses import LOSSES
from convex_heads.scaling import Scaling

ROUND_OFF = 1e-5


def _gradient_descent(problem: Problem, beta: float, steps: int) -> np.ndarray:
    """Plain subgradient descent from small random weights, as somebody without a solver would."""
    shape = problem.D.shape[1], problem.X.shape[1], problem.Y.shape[1]
    W = 0.1 * np.random.default_rng(1).normal(size=shape)
    for k in range(steps):
        G = (problem.F.T @ problem.residual(W)).reshape(shape)
        norms = np.linalg.norm(W, axis=(1, 2), keepdims=True)
        W = W - 0.2 / (1 + 0.01 * k) * (G + beta * W / np.maximum(norms, 1e-12))
    return W


@pytest.mark.x64
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_weights_from_anywhere_get_an_honest_gap(loss):
    network, X, problem = foreign(loss)
    beta = 0.03 * problem.beta_max()
    optimum, best = problem.solve(beta)
    rng = np.random.default_rng(2)
    gaps = []
    for W in (
        best,
        best + 0.01 * rng.normal(size=best.shape),
        best + rng.normal(size=best.shape),
        _gradient_descent(problem, beta, 800),
        network.weights,
    ):
        proof = certify(
            replace(network, weights=W), X, problem.Y, beta, sample_weight=7 * problem.omega
        )
        assert proof.primal == pytest.approx(problem.objective(W, beta), rel=1e-12)
        assert proof.beta_max == pytest.approx(problem.beta_max(), rel=1e-12)
        assert proof.dual <= optimum * (1 + 1e-7) <= proof.primal * (1 + 2e-7)
        assert proof.relative_gap == max(0, proof.primal - proof.dual) / proof.primal
        assert proof.n_gates == 5
        assert proof.active_gates == np.count_nonzero(W.any(axis=(1, 2)))
        assert proof.cone_violation == 0
        gaps.append(proof.relative_gap)
    at_optimum, near, far, trained, zero = gaps
    assert at_optimum < 1e-3  # the oracle's 1e-8 in the objective is its square
    assert at_optimum < near < far
    assert trained < 0.1 < zero  # the bound is no empty one


@pytest.mark.x64
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_bound_holds_for_any_offset(loss):
    network, X, problem = foreign(loss, seed=3)
    z0 = problem.z0 + np.random.default_rng(0).normal(size=problem.z0.shape)
    network, problem = replace(network, offset=z0), replace(problem, z0=z0)
    beta = 0.1 * problem.beta_max()
    optimum, best = problem.solve(beta)
    proof = certify(replace(network, weights=best), X, problem.Y, beta, sample_weight=problem.omega)
    assert proof.dual <= optimum * (1 + 1e-7)
    assert proof.relative_gap < 1e-3


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_single_precision_bounds_the_same_optimum(loss):
    network, X, problem = foreign(loss, seed=4)
    beta = 0.03 * problem.beta_max()
    optimum, _ = problem.solve(beta)
    network = replace(network, weights=_gradient_descent(problem, beta, 400))
    proof = certify(network, X, problem.Y, beta, sample_weight=problem.omega)
    assert proof.primal == pytest.approx(problem.objective(network.weights, beta), rel=1e-5)
    assert proof.dual <= optimum * (1 + 1e-5)
    same = certify(
        network.astype(np.float32), X.astype("f"), problem.Y, beta, sample_weight=problem.omega
    )
    # Features that lose their last digits before they are standardised.
    assert same == pytest.approx(proof, rel=1e-4)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("loss", "C"),
    [
        ("softmax", 3),
        pytest.param("logistic", 1, marks=pytest.mark.slow),
        pytest.param("squared", 2, marks=pytest.mark.slow),
    ],
)
def test_a_solved_network_has_the_certificate_of_its_program(loss, C):
    rng = np.random.default_rng(5)
    X = rng.normal(2, 3, size=(200, 4))
    signal = np.abs(X[:, :1]) + rng.normal(size=(200, C))
    Y = {
        "softmax": np.eye(C)[signal.argmax(axis=1)],
        "logistic": (signal > 2.5).astype(float),
        "squared": signal,
    }[loss]
    weight = rng.uniform(0.5, 2, 200)
    scaling = Scaling.fit(X, weight)
    key, trial = jax.random.split(jax.random.key(3))
    prepared = prepare(scaling.transform(X), Y, weight, LOSSES[loss], 16, key)
    beta = 0.1 * prepared.beta_max
    solution, _ = minimise(prepared, beta, solver="fista", limits=Limits(tolerance=1e-4))
    expected = certify_prepared(prepared, solution.value, beta, key=trial)
    W, z0 = unrotate(prepared, solution.value), np.asarray(prepared.program.z0)
    network = Network.decode(scaling, prepared.gates, W, z0, loss)
    assert 0 < len(network.gates) < 16  # some gates have been dropped
    proof = certify(network, X, Y, beta, sample_weight=weight, gates=prepared.gates, key=trial)
    assert proof._replace(relative_gap=0) == pytest.approx(
        expected._replace(relative_gap=0), rel=1e-9
    )
    assert proof.relative_gap == pytest.approx(expected.relative_gap, rel=1e-6)
    # Without the dropped gates the program is smaller, so its bound can only be higher.
    own = certify(network, X, Y, beta, sample_weight=weight, key=trial)
    assert own.n_gates == own.active_gates == expected.active_gates
    assert own.dual >= proof.dual * (1 - 1e-12)
    assert own.primal == pytest.approx(proof.primal, rel=1e-12)


@pytest.mark.slow
def test_a_fitted_head_has_the_certificate_it_was_given():
    rng = np.random.default_rng(6)
    X = rng.normal(1, 2, size=(200, 4)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 2)
    weight = rng.integers(0, 3, 200)
    options = {"penalty": "group", "tolerance": 1e-4, "solver": "fista"}
    head = ConvexHeadClassifier(n_gates=16, beta=0.05, **options)
    head.fit(X, y, weight)
    expected = head.certificate_
    proof = certify(
        head.network_,
        X,
        np.eye(3)[y],
        expected.beta,
        sample_weight=weight,
        gates=head.gates_,
    )
    # Rows in another order, and merged ones apart, are the same program.
    for field in ("primal", "beta_max", "n_gates", "active_gates"):
        assert getattr(proof, field) == pytest.approx(getattr(expected, field), rel=ROUND_OFF)
    assert expected.relative_gap <= 1e-4
    # The solver has seen better residuals than the one of its last weights.
    assert proof.dual <= expected.dual * (1 + ROUND_OFF)
    assert proof.relative_gap <= 2e-3
    # A class that the weights favour for no reason is seen.
    spoilt = replace(head.network_, weights=head.network_.weights * 1.2)
    assert (
        certify(spoilt, X, np.eye(3)[y], expected.beta, sample_weight=weight).relative_gap
        > 10 * proof.relative_gap
    )


@pytest.mark.x64
def test_more_gates_make_a_larger_program_and_repeated_ones_do_not():
    network, X, problem = foreign("softmax", seed=7)
    beta = 0.05 * problem.beta_max()
    _, best = problem.solve(beta)
    network = replace(network, weights=best)
    given = {"sample_weight": problem.omega}
    own = certify(network, X, problem.Y, beta, **given)
    again = certify(network, X, problem.Y, beta, gates=3 * network.gates, **given)
    assert again == own
    more = np.random.default_rng(8).normal(size=(6, network.gates.shape[1]))
    larger = replace(problem, D=np.c_[problem.D, problem.X @ more.T >= 0])
    proof = certify(network, X, problem.Y, beta, gates=more, **given)
    assert proof.n_gates == len(np.unique(larger.D, axis=1).T)
    assert proof.primal == pytest.approx(own.primal, rel=1e-12)
    assert proof.dual <= larger.solve(beta)[0] * (1 + 1e-7)
    assert proof.relative_gap > own.relative_gap
    assert proof.beta_max == pytest.approx(larger.beta_max(), rel=1e-12)


@pytest.mark.x64
def test_equal_gates_with_weights_of_their_own_are_counted_one_by_one():
    network, X, problem = foreign("squared", seed=9)
    W = np.random.default_rng(0).normal(size=network.weights.shape)
    twice = replace(
        network, gates=np.r_[network.gates, network.gates], weights=np.r_[0.3 * W, 0.7 * W]
    )
    given = {"sample_weight": problem.omega}
    one = certify(replace(network, weights=W), X, problem.Y, 0.1, **given)
    two = certify(twice, X, problem.Y, 0.1, **given)
    assert two.n_gates == two.active_gates == 10
    assert two.primal == pytest.approx(one.primal, rel=1e-12)
    # One bound of one program; levelling splits between equal gates what either would do.
    assert two.dual == pytest.approx(one.dual, rel=1e-2)


@pytest.mark.x64
def test_a_head_without_gates_is_optimal_from_beta_max_on():
    network, X, problem = foreign("softmax", seed=10)
    empty = replace(network, gates=network.gates[:0], weights=network.weights[:0])
    linear = replace(problem, D=problem.D[:, :1])
    given = {"sample_weight": problem.omega}
    proof = certify(empty, X, problem.Y, 1.0001 * linear.beta_max(), **given)
    assert proof.active_gates == 0
    assert proof.beta_max == pytest.approx(linear.beta_max(), rel=1e-12)
    assert proof.relative_gap < 1e-12
    assert certify(empty, X, problem.Y, 0.5 * linear.beta_max(), **given).relative_gap > 0.05


def test_the_seed_decides_the_trial_gates():
    network, X, problem = foreign("softmax", seed=11)
    first, second, again = (certify(network, X, problem.Y, 0.01, key=key) for key in (1, 2, 1))
    assert first == again
    assert first.pattern_violation != second.pattern_violation
    assert certify(network, X, problem.Y, 0.01, key=jax.random.key(1)) == first


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"X": np.zeros((40, 2))}, r"shape \(n, 3\)"),
        ({"X": np.full((40, 3), np.nan)}, "not finite"),
        ({"X": np.full((40, 3), "a")}, "real numbers"),
        ({"Y": np.zeros(40)}, r"shape \(40, 3\)"),
        ({"Y": np.full((40, 3), 0.5)}, "0 or 1"),
        ({"Y": np.ones((40, 3))}, "one-hot"),
        ({"beta": -1.0}, "at least 0"),
        ({"beta": float("nan")}, "finite"),
        ({"sample_weight": np.ones(3)}, r"shape \(40,\)"),
        ({"sample_weight": -np.ones(40)}, "non-negative"),
        ({"sample_weight": np.zeros(40)}, "at least one row"),
        ({"gates": np.ones((2, 3))}, r"shape \(P, 4\)"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_one_sentence(change, word):
    network, X, problem = foreign("softmax")
    with pytest.raises(ValueError, match=word) as caught:
        certify(**{"network": network, "X": X, "Y": problem.Y, "beta": 0.1} | change)
    assert "\n" not in str(caught.value)


def test_what_is_no_network_and_options_of_gated_ones_are_refused():
    network, X, problem = foreign("softmax")
    with pytest.raises(TypeError, match=r"Network or ReluNetwork; got a ndarray"):
        certify(X, X, problem.Y, 0.1)  # type: ignore[arg-type]
    relu = ReluNetwork(network.scaling, network.gates, np.ones((5, 3)), network.offset, "softmax")
    for option in ({"penalty": "ridge"}, {"gates": network.gates}):
        with pytest.raises(ValueError, match="for gated networks"):
            certify(relu, X, problem.Y, 0.1, **option)


@pytest.mark.x64
def test_a_relu_network_trained_elsewhere_is_bounded_by_its_own_program():
    import cvxpy as cp

    network, X, problem = foreign("squared")
    rng = np.random.default_rng(0)
    beta, hidden, output = 0.05, rng.normal(size=(3, 4)), rng.normal(size=(3, 3))
    relu = ReluNetwork(network.scaling, hidden, output, problem.z0, "squared")
    proof = certify(relu, X, problem.Y, beta, sample_weight=problem.omega)
    # Its objective, by hand.
    Z = problem.z0 + np.maximum(problem.X @ hidden.T, 0) @ output
    length = np.abs(output).sum(axis=1) @ np.linalg.norm(hidden, axis=1)
    value = 0.5 * problem.omega @ ((Z - problem.Y) ** 2).sum(axis=1) + beta * length
    assert proof.primal == pytest.approx(value, rel=1e-10)
    # The optimum of the program of its patterns, by an interior-point method.
    D = problem.X @ hidden.T > 0
    v = [[cp.Variable(4) for _ in range(6)] for _ in hidden]
    cones = [
        cp.multiply(np.where(D[:, j], 1, -1), problem.X @ each) >= 0
        for j in range(3)
        for each in v[j]
    ]
    z = [
        problem.z0[c]
        + sum(cp.multiply(D[:, j], problem.X @ (v[j][c] - v[j][3 + c])) for j in range(3))
        for c in range(3)
    ]
    fit = sum(problem.omega @ cp.square(z[c] - problem.Y[:, c]) for c in range(3)) / 2
    norms = sum(cp.norm(each) for row in v for each in row)
    optimum = cp.Problem(cp.Minimize(fit + beta * norms), cones).solve(solver="CLARABEL")
    assert proof.dual <= optimum * (1 + 1e-6)
    assert optimum <= value
    zero = replace(relu, hidden=hidden[:0], output=output[:0])
    assert certify(zero, X, problem.Y, 100.0).relative_gap == pytest.approx(0, abs=1e-6)


def test_a_fitted_relu_head_gets_its_certificate_again():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    head = ConvexHeadClassifier(activation="relu", n_gates=4, beta=0.05, tolerance=0.2).fit(X, y)
    given = head.certificate_
    proof = certify(head.network_, X, y[:, None], given.beta)
    assert proof.primal == pytest.approx(given.primal, rel=1e-4)
    assert proof.dual == pytest.approx(given.dual, rel=2e-2)
    assert proof.cone_violation == 0

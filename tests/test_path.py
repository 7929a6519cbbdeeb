"""The path, the choice of beta on validation rows, and beta_max against an independent solver."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from reference import random_problem

from convex_heads import ConvexHeadClassifier, ConvexHeadRegressor, Options, Status, solve
from convex_heads.certificate import beta_max
from convex_heads.duality import loss_value
from convex_heads.gated import SOLVERS, minimise, prepare, resume, with_solver
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES
from convex_heads.operators import apply, build_program
from convex_heads.penalties import PENALTIES, group_l21
from convex_heads.programs import AUTO
from convex_heads.selection import Judgement, choose, difference_errors, standard_error


@pytest.mark.x64
@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("seed", range(20, 23))
def test_beta_max_is_exact_by_an_interior_point_method(loss, seed):
    problem = random_problem(seed, loss)
    program = build_program(problem.X, problem.D, problem.Y, problem.omega, problem.z0)
    largest = float(beta_max(program, LOSSES[loss]))
    zero = problem.objective(np.zeros(program.shape), largest)
    at, weights = problem.solve(largest)
    assert at == pytest.approx(zero, rel=1e-6)
    assert np.linalg.norm(weights) < 0.01  # to the root of what the oracle was asked for
    # Below, zero is no optimum any more; the gain is of second order in the 0.1 %.
    exact = problem.residual(np.zeros(program.shape))
    steepest = np.linalg.norm((problem.F.T @ exact).reshape(program.shape[0], -1), axis=1).argmax()
    direction = np.zeros(program.shape)
    direction[steepest] = -(problem.F.T @ exact).reshape(program.shape)[steepest]
    direction /= np.linalg.norm(direction)
    gains = [problem.objective(t * direction, 0.999 * largest) for t in np.logspace(-6, -2, 60)]
    assert min(gains) < problem.objective(0 * direction, 0.999 * largest) - 1e-12


@pytest.mark.parametrize("solver", ["subspace", "fista"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_vanishes_at_beta_max_and_not_just_below(solver, classes):
    rng = np.random.default_rng(classes)
    X = rng.normal(size=(300, 4)).astype(np.float32)
    y = np.argmax(X[:, :classes], axis=1)
    options = {"solver": solver, "tolerance": 1e-6, "n_gates": 16, "penalty": "group"}
    at = ConvexHeadClassifier(beta=1.0, **options).fit(X, y)
    below = ConvexHeadClassifier(beta=0.999, **options).fit(X, y)
    assert at.certificate_.active_gates == 0
    assert at.certificate_.relative_gap <= 1e-6
    assert below.certificate_.active_gates >= 1
    assert below.certificate_.primal < at.certificate_.primal
    # The head of no weights predicts the class frequencies.
    np.testing.assert_allclose(at.predict_proba(X[:1])[0], np.bincount(y) / len(y), rtol=1e-5)


def judged(*losses: np.ndarray) -> list[Judgement]:
    return [Judgement(each, np.ones(len(each)), 0.0) for each in losses]


def test_one_se_takes_the_largest_beta_that_the_rows_cannot_tell_from_the_best():
    rng = np.random.default_rng(0)
    m = 400
    hardness = rng.exponential(1.0, m)  # shared by all heads: it says nothing about which is better
    best = hardness
    same = hardness + rng.normal(0.003, 0.1, m)  # 0.6 standard errors above
    worse = hardness + rng.normal(0.05, 0.1, m)  # 10 standard errors above
    path = judged(worse, same, best, hardness + 0.1)
    assert choose(path, "best") == 2
    assert choose(path, "one_se") == 1
    # The unpaired error, of the best loss itself, would have taken the head that is surely worse.
    assert path[0].loss - path[2].loss < path[2].standard_error
    errors = difference_errors(path)
    assert errors[2] == 0
    assert errors[1] == pytest.approx((same - best).std(ddof=1) / np.sqrt(m))


def test_ties_go_to_the_larger_beta_and_one_se_never_to_a_smaller():
    rng = np.random.default_rng(1)
    losses = rng.exponential(size=50)
    assert choose(judged(losses, losses), "best") == 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        path = judged(*(rng.exponential(size=20) for _ in range(5)))
        assert choose(path, "one_se") <= choose(path, "best")


def test_the_standard_error_covers_as_often_as_it_should():
    # Of weighted means of 200 skewed values, 68 % lie within one standard error of the truth.
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(2000):
        values, weight = rng.exponential(size=200), rng.uniform(0.2, 3, 200)
        error = standard_error(values, weight)
        inside.append(abs(np.average(values, weights=weight) - 1) <= error)
    assert np.mean(inside) == pytest.approx(0.683, abs=0.03)
    assert standard_error(np.ones(1), np.ones(1)) == float("inf")


def noisy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 8)).astype(np.float32)
    return X, (X[:, 0] + np.abs(X[:, 1]) + 1.5 * rng.normal(size=n) > 0.5).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_selection_of_the_estimator(solver):
    X, y = noisy(600, 4)
    penalty = "ridge" if solver == "kernel" else "group"
    betas = [0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.03]
    options = {"n_gates": 16, "solver": solver, "penalty": penalty, "beta": betas}
    best = ConvexHeadClassifier(**options).fit(X[:400], y[:400], X_val=X[400:], y_val=y[400:])
    simple = ConvexHeadClassifier(selection="one_se", **options).fit(
        X[:400], y[:400], X_val=X[400:], y_val=y[400:]
    )
    losses = np.array([point.loss for point in simple.path_])
    errors = np.array([point.difference_error for point in simple.path_])
    within = losses - losses.min() <= errors
    assert simple.beta_ == simple.path_[int(np.argmax(within))].fraction
    assert best.beta_ == best.path_[int(losses.argmin())].fraction
    assert simple.beta_ > best.beta_  # on these rows the rule makes a difference
    assert simple.certificate_.relative_gap <= simple.tolerance_
    # The errors are those of the validation rows' losses, computed here from the path's weights.
    for k, (point, W) in enumerate(zip(simple.path_, simple.coef_path_, strict=True)):
        assert W.shape == (simple.certificate_.n_gates, 9, 1), k
        np.testing.assert_allclose(
            np.linalg.norm(W, axis=(1, 2)), point.gate_norms, rtol=1e-4, atol=1e-6
        )
        assert point.active_gates == np.count_nonzero(point.gate_norms)
        assert point.relative_gap <= 1.1 * point.history[-1].relative_gap <= 0.06
        assert point.standard_error > 0


@pytest.mark.parametrize("solver", ["subspace", "kernel"])
@pytest.mark.parametrize("noise", [0.0, 20.0])
def test_the_ridge_path_begins_in_its_middle_and_chooses_as_if_it_had_not(solver, noise):
    X, _ = noisy(500, 4)
    flips = np.random.default_rng(0).normal(scale=noise, size=500)
    y = (X[:, 0] + np.abs(X[:, 1]) + flips > 0.5).astype(int)
    rows = {"X": X[:350], "y": y[:350], "X_val": X[350:], "y_val": y[350:]}
    options = {"solver": solver, "penalty": "ridge", "n_gates": 32}
    betas = AUTO["gated_relu", "ridge"].betas
    from_top = ConvexHeadClassifier(beta=betas, **options).fit(**rows)
    head = ConvexHeadClassifier(**options).fit(**rows)
    assert head.beta_ == from_top.beta_
    fractions = [point.fraction for point in head.path_]
    assert from_top.path_[0].fraction == betas[0]
    if noise:
        assert fractions[0] > 1 > fractions[-1] and head.beta_ > 1
    else:
        assert fractions[0] == 1 > head.beta_
    assert fractions == sorted(fractions, reverse=True)
    assert head.certificate_.relative_gap <= head.tolerance_
    for point, W in zip(head.path_, head.coef_path_, strict=True):
        np.testing.assert_allclose(
            np.linalg.norm(W, axis=(1, 2)), point.gate_norms, rtol=1e-4, atol=1e-6
        )
    # The simplest head that is as good is looked for from the largest beta.
    simple = ConvexHeadClassifier(selection="one_se", **options).fit(**rows)
    assert simple.path_[0].fraction == betas[0] and simple.beta_ >= head.beta_


@pytest.mark.slow
def test_path_weights_give_the_path_losses():
    X, y = noisy(500, 1)
    head = ConvexHeadClassifier(n_gates=1, beta=[0.1, 0.01]).fit(
        X[:400], y[:400], X_val=X[400:], y_val=y[400:]
    )
    scaling, z0 = head.network_.scaling, head.network_.offset
    Z = scaling.transform(X[400:]).astype(np.float64)
    for point, W in zip(head.path_, head.coef_path_, strict=True):
        z = z0 + Z @ W[0, :, 0]  # one gate, always on
        losses = np.logaddexp(0, z) - y[400:] * z
        assert point.loss == pytest.approx(losses.mean(), rel=1e-4)
        assert point.standard_error == pytest.approx(losses.std(ddof=1) / 10, rel=1e-4)


@pytest.mark.slow
def test_the_rule_is_checked_by_name_and_regressors_have_it_too():
    X, y = noisy(200, 2)
    with pytest.raises(ValueError, match="one_se"):
        ConvexHeadClassifier(selection="1se").fit(X, y)
    y = X[:, 0] + np.random.default_rng(0).normal(size=200)
    path = ConvexHeadRegressor(selection="one_se", n_gates=4).fit(X, y).path_
    assert all(np.isfinite([p.standard_error, p.difference_error]).all() for p in path)


@pytest.mark.slow
def test_the_path_costs_less_than_three_cold_solves_at_its_smallest_beta():
    X, y = noisy(2000, 3)
    y = y + 2 * (X[:, 2] > 0)  # four classes
    Z = np.c_[X, np.ones(len(X))].astype(np.float32)
    Y = np.eye(4, dtype=np.float32)[y]
    prepared = prepare(Z, Y, np.ones(len(X)), LOSSES["softmax"], 16, jax.random.key(0))
    limits, state, warm = Limits(tolerance=5e-2), None, 0.0
    for fraction in AUTO["gated_relu", "group"].betas:
        beta = fraction * prepared.beta_max
        solution, state = minimise(prepared, beta, warm=state, limits=limits)
        warm += solution.stats.passes
        cold, _ = minimise(prepared, beta, limits=limits)
    assert warm < 3 * cold.stats.passes


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solve_resumed_at_solved_weights_is_soon_done(solver):
    # The kernel's coordinates of weights are known as nearly as the weights are the optimum.
    kernel = solver == "kernel"
    penalty, passes = PENALTIES["ridge" if kernel else "group"], np.zeros(2)
    for seed in range(4):  # which passes certify is a matter of round-off
        X, y = noisy(300, seed)
        Z = np.c_[X, np.ones(len(X))].astype(np.float32)
        Y = y[:, None].astype(np.float32)
        prepared = prepare(Z, Y, np.ones(len(X)), LOSSES["logistic"], 8, jax.random.key(0), penalty)
        prepared, _ = with_solver(prepared, solver)
        beta, limits = 0.01 * prepared.beta_max, Limits(tolerance=1e-2)
        cold, _ = minimise(prepared, beta, solver=solver, limits=limits)
        state = resume(prepared, cold.value, solver=solver)
        again, _ = minimise(prepared, beta, solver=solver, warm=state, limits=limits)
        passes += again.stats.passes, cold.stats.passes
        assert again.stats.primal <= cold.stats.primal * (1 + 1e-3)  # a tenth of the gap
    assert passes[0] < (0.7 if kernel else 0.4) * passes[1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_records_come_as_they_are_made_and_are_the_history(solver):
    X, y = noisy(300, 5)
    Z = np.c_[X, np.ones(len(X))].astype(np.float32)
    penalty, n_gates = ("ridge", 64) if solver == "kernel" else ("group", 8)
    records = []
    solution = solve(
        Z,
        y[:, None].astype(np.float32),
        Options(beta=0.003, n_gates=n_gates, loss="logistic", solver=solver, penalty=penalty),
        jax.random.key(0),
        on_record=records.append,
    )
    assert tuple(records) == solution.history
    assert len(records) >= 2
    for before, after in itertools.pairwise(records):
        assert after.passes > before.passes
        assert after.seconds >= before.seconds
        # Single precision: scores that were added up over many steps are computed anew at times,
        # and a kernel's at last without what makes its factor exist.
        assert after.primal <= before.primal * (1 + (1e-4 if solver == "kernel" else 1e-5))
        assert after.dual >= before.dual
    assert all(r.dual <= r.primal * (1 + 1e-6) for r in records)
    assert records[-1].relative_gap <= 2e-2


def test_records_of_an_estimator_count_from_the_beginning_of_the_path():
    X, y = noisy(400, 6)
    records, shares = [], []
    head = ConvexHeadClassifier(n_gates=8).fit(
        X, y, on_record=records.append, on_progress=shares.append
    )
    assert len(records) == len(shares)
    histories = [*(point.history for point in head.path_), head.history_]
    assert len(records) == sum(map(len, histories))
    passes = [record.passes for record in records]
    assert passes == sorted(passes)
    # The last step of a solve, for exact zeros, comes after its last record: at most two passes.
    assert head.passes_ - 2 <= passes[-1] <= head.passes_
    assert [r.relative_gap for r in records[-len(head.history_) :]] == [
        r.relative_gap for r in head.history_
    ]
    assert all(0 <= share <= 1 for share in shares)


def test_a_callback_that_raises_stops_the_fit():
    X, y = noisy(200, 7)

    def stop(record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ConvexHeadClassifier(n_gates=4).fit(X, y, on_record=stop)


def test_a_search_that_lives_on_round_off_is_noticed():
    # Small beta and nearly parallel steps: without the check of the images on the way, the
    # objective that the solver believes in falls three percent below the truth.
    X, y = noisy(300, 5)
    Z = np.c_[X, np.ones(len(X))].astype(np.float32)
    Y, loss = y[:, None].astype(np.float32), LOSSES["logistic"]
    prepared = prepare(Z, Y, np.ones(len(X)), loss, 8, jax.random.key(0))
    beta = 0.003 * prepared.beta_max
    solution, _ = minimise(prepared, beta, limits=Limits(tolerance=1e-3, max_passes=400))
    program = prepared.program
    z = apply(program, solution.value)
    true = loss_value(program, loss, z) + beta * group_l21(solution.value)
    assert solution.status is Status.CONVERGED
    assert solution.stats.primal == pytest.approx(float(true), rel=1e-5)
    # The last step, for exact zeros, may go up by as much as was asked for.
    assert min(record.primal for record in solution.history) >= float(true) * (1 - 1e-3)

"""Ridge programs in the span of their rows: as all gates have it, whatever the kernel is like."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convex_heads import ConvexHeadClassifier, Options, Status, gated, kernel, solve
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES, targets
from convex_heads.operators import adjoint, apply
from convex_heads.penalties import GROUP, RIDGE
from convex_heads.precision import Precision
from convex_heads.programs import default_penalty
from convex_heads.sharding import rows_over

N, D, C = 150, 12, 3


def rows(n: int = N, d: int = D, C: int = C, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    return X, (np.abs(X[:, :2]).sum(axis=1) * 2).astype(int) % C


def prepared(X: np.ndarray, y: np.ndarray, omega: np.ndarray, n_gates: int = 24) -> gated.Prepared:
    Z = np.concatenate([X, np.ones((len(X), 1), np.float32)], axis=1)
    Y, key = targets(y, "softmax", C), jax.random.key(0)
    return gated.prepare(Z, Y, omega, LOSSES["softmax"], n_gates, key, RIDGE)


def singular() -> tuple[np.ndarray, np.ndarray]:
    """Every row twice: half of the kernel's eigenvalues are zero."""
    X, y = rows(N // 2)
    return np.tile(X, (2, 1)), np.tile(y, 2)


def flat() -> tuple[np.ndarray, np.ndarray]:
    """Features that hardly differ, and almost as many rows as weights."""
    X, y = rows(70, 2)
    return (1 + 1e-4 * X).astype(np.float32), y


@pytest.mark.parametrize("data", [rows, singular, flat], ids=["rows", "singular", "flat"])
@pytest.mark.parametrize("blocks", [1, 4])
def test_the_kernel_is_that_of_the_gates(data, blocks, monkeypatch):
    monkeypatch.setattr("convex_heads.operators._MAX_BLOCK_ROWS", 48 if blocks > 1 else 512)
    program = prepared(*data(), omega=np.ones(len(data()[0]))).program
    assert (len(program.X) > 1) == (blocks > 1)
    K = np.asarray(kernel.gram(program), np.float64)
    np.testing.assert_array_equal(K, K.T)
    # K a = F F'a for any a, by the products of all gates.
    a = jax.random.normal(jax.random.key(1), program.Y.shape)
    expected = np.asarray(apply(program, adjoint(program, a)), np.float64).reshape(len(K), C)
    found = K @ np.asarray(a, np.float64).reshape(len(K), C)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(K).sum(axis=1).max())


@pytest.mark.parametrize("data", [rows, singular, flat], ids=["rows", "singular", "flat"])
@pytest.mark.parametrize("fraction", [3.0, 0.03])
def test_the_optimum_is_that_of_all_gates_and_proven(data, fraction):
    X, y = data()
    omega = np.where(np.arange(len(X)) % 7 == 0, 0, 1 + np.arange(len(X)) % 3)  # rows held out
    given = prepared(X, y, omega)
    ready, name = gated.with_solver(given, "kernel")
    beta, limits = fraction * given.beta_max, Limits(1e-4)
    whole, _ = gated.minimise(given, beta, limits=limits)
    found, _ = gated.minimise(ready, beta, solver=name, limits=limits)
    assert found.status is Status.CONVERGED and found.stats.relative_gap <= 1e-4
    proof = gated.certify_prepared(given, found.value, beta, R=found.residual, key=given.key)
    assert proof.relative_gap <= 1.5e-4  # the certificate adds up anew, in single precision
    assert proof.primal == pytest.approx(found.stats.primal, rel=1e-5)
    assert proof.dual <= whole.stats.primal * (1 + 1e-6)
    assert found.stats.dual <= whole.stats.primal * (1 + 1e-6)
    # Scores of all rows, those held out too.
    z = np.asarray(apply(given.program, found.value))
    np.testing.assert_allclose(np.asarray(found.scores), z, atol=1e-6 + 1e-3 * np.abs(z).max())


def test_a_path_goes_on_in_the_span_and_from_any_weights():
    given, name = gated.with_solver(prepared(*rows(), omega=np.ones(N)), "kernel")
    beta, limits = 0.1 * given.beta_max, Limits(1e-3)
    cold, _ = gated.minimise(given, beta, solver=name, limits=limits)
    near, state = gated.minimise(given, 1.2 * beta, solver=name, limits=limits)
    warm, _ = gated.minimise(given, beta, solver=name, warm=state, limits=limits)
    assert warm.stats.passes < cold.stats.passes
    # A state serves again.
    twice, _ = gated.minimise(given, beta, solver=name, warm=state, limits=limits)
    np.testing.assert_array_equal(np.asarray(twice.value), np.asarray(warm.value))
    again = gated.resume(given, cold.value, solver=name)
    at, _ = gated.minimise(given, beta, solver=name, warm=again, limits=limits)
    assert at.stats.iterations < 0.5 * cold.stats.iterations
    # What is outside of the span costs and does nothing: a warm start leaves it.
    outside = cold.value + jax.random.normal(jax.random.key(2), cold.value.shape)
    from_there = gated.resume(given, outside, solver=name)
    left, _ = gated.minimise(given, beta, solver=name, warm=from_there, limits=limits)
    assert left.stats.primal == pytest.approx(cold.stats.primal, rel=2e-3)
    assert near.stats.primal > cold.stats.primal


def test_the_next_beta_of_a_path_begins_where_the_last_ones_point_to():
    given, name = gated.with_solver(prepared(*rows(), omega=np.ones(N)), "kernel")
    program, loss, state = given.program, given.loss, None
    for fraction in (1.0, 0.3):
        _, state = gated.minimise(given, fraction * given.beta_max, solver=name, warm=state)
    beta = jnp.asarray(0.1 * given.beta_max, program.X.dtype)
    plain = state._replace(iterations=jnp.int32(0))  # as one that was resumed
    there = kernel._restated(program, loss, beta, plain)
    np.testing.assert_array_equal(np.asarray(there.A), np.asarray(state.A))
    ahead = kernel._restated(program, loss, beta, state)
    best, _ = gated.minimise(given, float(beta), solver=name, limits=Limits(1e-5))
    assert ahead.primal - best.stats.primal < 0.3 * (there.primal - best.stats.primal)
    # Its scores are those of its coefficients.
    np.testing.assert_allclose(
        np.asarray(ahead.z), np.asarray(kernel._image(given.kernel, ahead.A)), rtol=0, atol=1e-4
    )


def test_where_round_off_ends_it_all_gates_go_on(monkeypatch):
    monkeypatch.setattr(kernel, "_MOST_STEPS", 5)
    given, name = gated.with_solver(prepared(*rows(), omega=np.ones(N)), "kernel")
    beta, records = 0.01 * given.beta_max, []
    found, state = gated.minimise(
        given, beta, solver=name, limits=Limits(1e-4), on_record=records.append
    )
    assert found.status is Status.CONVERGED
    proof = gated.certify_prepared(given, found.value, beta, R=found.residual, key=given.key)
    assert proof.relative_gap <= 1.5e-4
    assert tuple(records) == found.history
    passes = [record.passes for record in records]
    assert passes == sorted(passes)
    # In the span again, and near: for the next beta.
    again, _ = gated.minimise(given, beta, solver=name, warm=state, limits=Limits(1e-3))
    assert again.stats.iterations <= 16


def test_features_that_say_nothing_have_a_kernel_too():
    given = prepared(*rows(), omega=np.ones(N))
    nothing = given._replace(program=given.program._replace(X=0 * given.program.X))
    ready, name = gated.with_solver(nothing, "kernel")
    found, _ = gated.minimise(ready, 1.0, solver=name)
    assert found.status is Status.CONVERGED and not np.asarray(found.value).any()


def test_limits_are_counted_in_passes_over_all_gates():
    given, name = gated.with_solver(prepared(*rows(), omega=np.ones(N), n_gates=18), "kernel")
    limits = Limits(1e-6, max_passes=1)
    found, _ = gated.minimise(given, 1e-3 * given.beta_max, solver=name, limits=limits)
    share = given.program.omega.size / (2 * given.program.shape[0] * given.program.shape[1])
    assert found.status is Status.MAX_PASSES
    assert 1 <= found.stats.passes <= 1 + 0.5 + 10 * share
    assert found.stats.iterations > 2


def test_it_is_for_ridge_programs_of_few_rows_and_many_weights(monkeypatch):
    given = prepared(*rows(), omega=np.ones(N))
    program = given.program
    assert not kernel.pays(program, RIDGE)
    monkeypatch.setattr(kernel, "_TO_READ", 1)
    assert kernel.pays(program, RIDGE) and not kernel.pays(program, GROUP)
    ridge = given._replace(penalty=RIDGE)
    assert gated.with_solver(ridge, "auto")[1] == "kernel"
    reduced = ridge._replace(precision=Precision.BFLOAT16)
    assert gated.with_solver(reduced, "auto")[1] == "subspace"
    with rows_over(1):
        assert kernel.pays(program, RIDGE)
    monkeypatch.setattr(kernel, "_MOST_ROWS", N)  # padded they are more
    assert not kernel.pays(program, RIDGE)
    assert gated.with_solver(given, "auto")[1] == "subspace"
    for options in ({}, {"penalty": "ridge", "precision": "bfloat16"}):
        with pytest.raises(ValueError, match="solver='kernel' is for penalty='ridge'"):
            Options(solver="kernel", **options)


@pytest.mark.slow
def test_a_default_head_of_many_classes_is_solved_so():
    X, _ = rows(240, 64)
    y = (X @ np.random.default_rng(1).normal(size=(64, 24))).argmax(axis=1)
    small = {"n_gates": 32, "beta": [1.0, 0.3]}
    head = ConvexHeadClassifier(**small).fit(X, y)
    assert (head.penalty_, head.solver_, head.status_) == ("ridge", "kernel", Status.CONVERGED)
    plain = ConvexHeadClassifier(**small, solver="subspace").fit(X, y)
    assert plain.solver_ == "subspace" and plain.beta_ == head.beta_
    ratio = head.certificate_.primal / plain.certificate_.primal
    assert ratio == pytest.approx(1, abs=1e-3) and head.certificate_.relative_gap <= 1e-3
    assert head.passes_ < plain.passes_
    agree = np.mean(head.predict(X) == plain.predict(X))
    assert agree > 0.99
    again = ConvexHeadClassifier(**small).fit(X, y)
    np.testing.assert_array_equal(again.network_.weights, head.network_.weights)


def test_solve_takes_it_by_name():
    X, y = rows()
    Z = np.concatenate([X, np.ones((N, 1), np.float32)], axis=1)
    options = Options(beta=0.1, n_gates=24, penalty="ridge", solver="kernel")
    solution = solve(Z, targets(y, "softmax", C), options, jax.random.key(0))
    assert solution.status is Status.CONVERGED and solution.stats.relative_gap <= 1e-3
    assert jnp.isfinite(solution.value).all()


@pytest.mark.parametrize(
    ("options", "penalty"),
    [
        ({}, "ridge"),
        ({"loss": "squared"}, "group"),
        ({"n_gates": "grow"}, "group"),
        ({"activation": "relu"}, "group"),
        ({"penalty": "group"}, "group"),
    ],
    ids=["default", "squared", "grow", "relu", "named"],
)
def test_which_penalty_a_head_has(options, penalty):
    X, y = rows()
    small = {"n_gates": 4, "beta": 0.3, "tolerance": 0.5} | options
    assert ConvexHeadClassifier(**small).fit(X, y).penalty_ == penalty
    few = ConvexHeadClassifier(**small).fit(X[:90], y[:90])
    assert few.penalty_ == "group"


def test_a_head_is_no_larger_than_64_mb_by_default():
    def chosen(C: int) -> str:
        return default_penalty("gated_relu", "softmax", 50_000, 1025, C)

    assert (chosen(63), chosen(64)) == ("ridge", "group")

"""Gates that are grown where the dual constraints are violated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convex_heads import ConvexHeadClassifier
from convex_heads.certificate import climb
from convex_heads.duality import residual
from convex_heads.gated import certify_prepared, minimise, prepare
from convex_heads.growth import Growth, grow
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES
from convex_heads.operators import adjoint, rows
from convex_heads.solution import Status

LIMITS = Limits(tolerance=1e-3, max_passes=2000)


def _problem(n=300, d=4):
    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=(n, d)), np.ones(n)].astype(np.float32)
    Y = np.eye(2, dtype=np.float32)[(X[:, 0] * X[:, 1] > 0).astype(int)]
    start = prepare(X, Y, np.ones(n, np.float32), LOSSES["softmax"], 1, jax.random.key(0))
    return X, Y, start


@pytest.fixture(scope="module")
def grown():
    X, _, start = _problem()
    growth = Growth(batch=6, max_gates=13, trials=64, violation=1.0)
    return X, grow(start, X, 0.01, jax.random.key(1), growth, limits=LIMITS)


@pytest.mark.slow
def test_every_round_lowers_the_objective_and_the_violation_falls(grown):
    _, result = grown
    rounds = result.rounds
    assert [r.n_gates for r in rounds] == [1, 7, 13]
    assert all(np.diff([r.primal for r in rounds]) < 0)
    assert all(r.relative_gap <= LIMITS.tolerance for r in rounds)
    assert rounds[0].violation > 2  # a line cannot tell the classes apart
    assert rounds[-1].violation < 0.5 * rounds[0].violation
    assert rounds[-1].primal < 0.5 * rounds[0].primal


def test_grown_gates_are_a_program_like_any_other(grown):
    X, result = grown
    prepared, solution = result.prepared, result.solution
    D = X @ prepared.gates.T >= 0
    assert D[:, 0].all()
    assert len(np.unique(D, axis=1).T) == 13
    np.testing.assert_array_equal(np.asarray(prepared.program.D).reshape(-1, 13)[: len(X)], D)
    cold, _ = minimise(prepared, 0.01, limits=LIMITS)
    assert cold.stats.primal == pytest.approx(solution.stats.primal, rel=2e-3)
    certificate = certify_prepared(prepared, solution.value, 0.01, key=jax.random.key(9))
    assert certificate.relative_gap <= 2 * LIMITS.tolerance
    assert certificate.n_gates == 13


def test_growing_beats_as_many_random_gates(grown):
    X, result = grown
    _, Y, _ = _problem()
    values = []
    for seed in range(3):
        key = jax.random.key(seed)
        drawn = prepare(X, Y, np.ones(len(X), np.float32), LOSSES["softmax"], 13, key)
        values.append(minimise(drawn, 0.01, limits=LIMITS)[0].stats.primal)
    assert result.solution.stats.primal < min(values)


def test_nothing_is_added_where_no_gate_would_help():
    X, _, start = _problem()
    result = grow(start, X, 1.05 * start.beta_max * 2, jax.random.key(1), limits=LIMITS)
    assert len(result.rounds) == 1
    assert result.prepared is start
    assert not np.asarray(result.solution.value).any()


def test_a_judge_ends_the_growth_and_chooses_the_round():
    X, _, start = _problem()
    losses = iter([1.0, 2.0, 2.0, 0.0])
    growth = Growth(batch=6, trials=64, violation=1.0)
    result = grow(
        start, X, 0.01, jax.random.key(1), growth, limits=LIMITS, judge=lambda *_: next(losses)
    )
    assert [r.loss for r in result.rounds] == [1.0, 2.0, 2.0]
    assert len(result.prepared.gates) == result.rounds[0].n_gates == 1
    assert result.solution.status is Status.CONVERGED


def test_climbing_keeps_the_trial_gates_and_reports_true_norms():
    X, _, start = _problem()
    program = start.program
    R = residual(program, start.loss, jnp.zeros_like(program.Y))
    trial = jax.random.normal(jax.random.key(4), (20, X.shape[1]), jnp.float32)
    gates, norms = climb(program, R, trial, ascent_steps=2)
    np.testing.assert_array_equal(gates[:20], trial)
    D = jnp.einsum("nbd,pd->nbp", program.X, gates) >= 0
    G = np.asarray(adjoint(program._replace(D=D), R))
    np.testing.assert_allclose(norms, np.sqrt((G**2).sum(axis=(1, 2))), rtol=1e-4)
    assert norms[20:].max() > norms[:20].max()
    assert len(gates) == 20 + 2 * 16
    # The first step, from the sixteen with the largest norms: sum_j (x_j' V r_j) x_j, V = X' D_g R.
    n = len(X)
    x, r = rows(program.X, n).astype(float), rows(R, n).astype(float)
    for start_at, found in zip(np.argsort(-norms[:20])[:16], gates[20:36], strict=True):
        V = x.T @ ((x @ np.asarray(trial[start_at]) >= 0)[:, None] * r)
        uphill = x.T @ ((x @ V) * r).sum(axis=1)
        np.testing.assert_allclose(found, uphill, atol=1e-4 * np.abs(uphill).max())


@pytest.mark.slow
def test_the_baseline_solver_grows_too():
    X, _, start = _problem(n=120)
    growth = Growth(batch=3, trials=32, max_gates=4, violation=1.0)
    result = grow(start, X, 0.02, jax.random.key(1), growth, solver="fista", limits=LIMITS)
    assert [r.n_gates for r in result.rounds] == [1, 4]
    assert result.rounds[1].primal < result.rounds[0].primal


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": 300}, "at most trials"),
        ({"max_gates": 0}, "max_gates"),
        ({"violation": 0.5}, "at least 1"),
        ({"sampler": "pairs"}, "without rows"),
        ({"sampler": "best"}, "must be one of"),
    ],
)
def test_nonsense_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Growth(**options)


def test_growing_at_beta_zero_is_refused():
    X, _, start = _problem()
    with pytest.raises(ValueError, match="above 0"):
        grow(start, X, 0.0, jax.random.key(0))


@pytest.mark.slow
def test_an_estimator_grows_its_gates_whatever_the_order_of_rows():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(300, 4)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    head = ConvexHeadClassifier(n_gates="grow", beta=0.02).fit(X[:250], y[:250])
    assert 2 <= head.certificate_.n_gates <= 250 // 8
    assert head.score(X[250:], y[250:]) > 0.8
    order = rng.permutation(250)
    again = ConvexHeadClassifier(n_gates="grow", beta=0.02).fit(X[order], y[order])
    np.testing.assert_array_equal(head.decision_function(X), again.decision_function(X))

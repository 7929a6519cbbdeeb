"""The working set against solves of all gates: the same optimum, proven over all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convex_heads import ConvexHeadClassifier, gated, warm, working
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES, targets
from convex_heads.penalties import GROUP, RIDGE, group_norms
from convex_heads.solution import Status

N, D, C = 400, 6, 3


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D)).astype(np.float32)
    y = (np.abs(X[:, :2]).sum(axis=1) * 2).astype(int) % C
    return X, y


def prepared(penalty=GROUP, n_gates: int = 32) -> gated.Prepared:
    X, y = rows()
    X = np.concatenate([X, np.ones((N, 1), np.float32)], axis=1)
    Y, loss, key = targets(y, "softmax", C), LOSSES["softmax"], jax.random.key(0)
    return gated.prepare(X, Y, np.ones(N), loss, n_gates, key, penalty)


def zero(given: gated.Prepared) -> jax.Array:
    return jnp.zeros(given.program.shape)


@pytest.mark.parametrize(
    ("fraction", "sets"), [(0.9, 1), (0.5, 2), (0.1, 2)], ids=["few", "some", "all"]
)
def test_as_low_as_with_all_gates_and_proven_over_all(fraction, sets):
    given, tolerance = prepared(), 1e-3
    beta, limits = fraction * given.beta_max, Limits(tolerance)
    whole, _ = gated.minimise(given, beta, limits=limits)
    found = working.minimise(given, beta, zero(given), limits=limits)
    assert found.status is Status.CONVERGED and len(found.history) == sets
    # The certificate knows nothing of sets, and neither the residual's origin.
    proof = gated.certify_prepared(given, found.value, beta, R=found.residual, key=given.key)
    assert proof.relative_gap <= tolerance and proof.relative_gap <= found.stats.relative_gap + 1e-6
    assert proof.primal == pytest.approx(found.stats.primal, rel=1e-5)
    assert found.stats.primal * (1 - tolerance) <= whole.stats.primal
    assert whole.stats.primal * (1 - tolerance) <= found.stats.primal
    active = int((np.asarray(group_norms(found.value)) > 0).sum())
    if fraction > 0.1:
        assert active <= 4**sets and found.stats.passes < whole.stats.passes
    else:  # it turned to all of them at once
        assert active > 16 and found.stats.passes < 1.5 * whole.stats.passes


def test_a_gate_that_is_left_out_opens_the_gap():
    given = prepared()
    beta = 0.5 * given.beta_max
    found = working.minimise(given, beta, zero(given))
    first, last = found.history
    # Of its own program the first set has closed half the gap asked for.
    assert first.relative_gap > 1e-3 >= last.relative_gap
    assert first.primal > last.primal and first.dual <= last.dual


def test_from_weights_of_most_gates_all_are_solved_for_at_once():
    given = prepared()
    beta = 0.1 * given.beta_max
    W = 1e-2 * jax.random.normal(jax.random.key(1), given.program.shape)
    whole, _ = gated.minimise(given, beta, warm=gated.resume(given, W))
    found = working.minimise(given, beta, W)
    assert len(found.history) == 1
    np.testing.assert_array_equal(found.value, whole.value)
    assert found.stats.relative_gap == pytest.approx(whole.stats.relative_gap, abs=1e-6)


def test_weights_of_round_off_size_are_none():
    given = prepared()
    beta, tolerance = 0.9 * given.beta_max, Limits(1e-4)
    noise = 1e-5 * jax.random.normal(jax.random.key(1), given.program.shape)
    start = noise.at[0].add(1.0)
    found = working.minimise(given, beta, start, limits=tolerance)
    assert found.stats.relative_gap <= 1e-4
    assert (np.asarray(group_norms(found.value)) > 0).sum() <= 4
    whole, _ = gated.minimise(given, beta, warm=gated.resume(given, start), limits=tolerance)
    assert found.stats.passes < whole.stats.passes


def test_passes_run_out():
    given = prepared()
    found = working.minimise(
        given, 0.01 * given.beta_max, zero(given), limits=Limits(1e-6, max_passes=2)
    )
    assert found.status is Status.MAX_PASSES and found.stats.passes < 6
    beta = 0.01 * given.beta_max
    proof = gated.certify_prepared(given, found.value, beta, R=found.residual, key=given.key)
    assert 1e-6 < proof.relative_gap <= found.stats.relative_gap + 1e-6


def test_it_is_for_large_programs_with_zeros(monkeypatch):
    given = prepared()
    assert not working.pays(given)
    monkeypatch.setattr(working, "_LARGE", N * D * 32 * C)
    assert working.pays(given)
    assert not working.pays(prepared(n_gates=2)) and not working.pays(prepared(RIDGE))


def test_a_head_is_solved_again_on_few_gates(monkeypatch):
    X, y = rows()
    head = ConvexHeadClassifier(n_gates=32, beta=0.5, penalty="group").fit(X, y)
    moved = (X + 0.3 * np.tanh(X[:, ::-1])).astype(np.float32)
    Y, beta = targets(y, "softmax", C), head.certificate_.beta
    given = head.network_, head.gates_, moved, Y, np.ones(N), beta
    plain = warm.solve_again(*given, limits=Limits(1e-5))
    monkeypatch.setattr(working, "_LARGE", 1)
    again = warm.solve_again(*given, limits=Limits(1e-5))
    assert again.history[-1].passes < plain.history[-1].passes
    assert again.certificate.relative_gap <= 1e-5
    assert again.objective == pytest.approx(plain.objective, rel=1e-5)
    assert again.objective <= warm.objective(head.network_, moved, Y, np.ones(N), beta)

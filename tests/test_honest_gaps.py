"""No certificate shows a gap that is not proven: no numbers, no neurons, wrong dual points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from foreign import foreign

from convex_heads import ConvexHeadRegressor, ReluNetwork, certify
from convex_heads.certificate import certify_program
from convex_heads.gated import prepare
from convex_heads.losses import LOSSES


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_computes_no_numbers_is_refused(value):
    network, X, problem = foreign("softmax")
    relu = ReluNetwork(network.scaling, network.gates, np.eye(5, 3), network.offset, "softmax")
    for whole, field in ((network, "weights"), (network, "gates"), (relu, "hidden")):
        part = getattr(whole, field).copy()
        part.flat[0] = value
        with pytest.raises(ValueError, match="the network holds NaN"):
            certify(replace(whole, **{field: part}), X, problem.Y, 0.1)


def test_a_network_whose_objective_overflows_has_no_gap():
    network, X, problem = foreign("squared")
    weights = np.full_like(network.weights, 1e25)
    hidden = np.full_like(network.gates, 1e25)
    relu = ReluNetwork(network.scaling, hidden, np.ones((5, 3)), network.offset, "squared")
    for huge in (replace(network, weights=weights), relu):
        proof = certify(huge, X, problem.Y, 0.1)
        assert proof.relative_gap == np.inf
        assert not proof.pattern_violation <= 1


def test_a_relu_network_without_neurons_is_judged_against_the_gate_that_is_always_on():
    network, X, problem = foreign("softmax")
    empty = ReluNetwork(network.scaling, np.zeros((0, 4)), np.zeros((0, 3)), problem.z0, "softmax")
    proof = certify(empty, X, problem.Y, 1e-6)
    linear = replace(empty, hidden=np.eye(4)[-1:] * 1e-9, output=np.eye(1, 3))
    assert proof.relative_gap > 0.01
    # No better than a network of those neurons can be made of it, nor than none at a large beta.
    assert proof.dual <= certify(linear, X, problem.Y, 1e-6).primal
    assert certify(empty, X, problem.Y, 1.01 * proof.beta_max).relative_gap < 1e-5


def test_targets_with_a_large_mean_do_not_cost_a_certificate_its_digits():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    y = np.abs(X[:, 0])
    for activation in ("gated_relu", "relu"):
        for mean in (0.0, 1e7):
            options = {"beta": 0.01, "n_gates": 8, "activation": activation}
            head = ConvexHeadRegressor(**options).fit(X, mean + y)
            own = head.certificate_
            more = {"gates": head.gates_} if activation == "gated_relu" else {}
            proof = certify(head.network_, X, (mean + y)[:, None], own.beta, **more)
            assert proof.primal == pytest.approx(own.primal, rel=1e-3)
            assert proof.relative_gap <= max(3 * own.relative_gap, 0.03)


def test_equal_relu_certificates_compile_once():
    taken = Path("/proc/self/maps")
    if not taken.exists():
        pytest.skip("only Linux tells of memory mappings")
    network, X, problem = foreign("softmax")
    rng = np.random.default_rng(0)
    hidden, output = rng.normal(size=(9, 4)), rng.choice([-1.0, 1.0], size=(9, 3))
    before = []
    for m in (9, 10, 9, 10, 9):
        relu = ReluNetwork(network.scaling, hidden[:m], output[:m], problem.z0, "softmax")
        certify(relu, X, problem.Y, 1e-3)
        before.append(len(taken.read_text().splitlines()))
    assert before[-1] - before[1] < 20


def test_a_wrong_residual_is_only_useless():
    rng = np.random.default_rng(0)
    for loss in ("logistic", "softmax"):
        _, _, problem = foreign(loss)
        prepared = prepare(
            problem.X.astype(np.float32),
            problem.Y.astype(np.float32),
            np.ones(40),
            LOSSES[loss],
            8,
            jax.random.key(0),
        )
        W = np.zeros(prepared.program.shape, np.float32)
        beta = 2 * prepared.beta_max
        own = certify_program(prepared.program, LOSSES[loss], W, beta)
        assert own.relative_gap < 1e-5
        for scale in (1e-3, 1.0, 1e3):
            R = scale * rng.normal(size=prepared.program.Y.shape).astype(np.float32)
            for wrong in (R, np.full_like(R, -scale), np.full_like(R, scale)):
                proof = certify_program(prepared.program, LOSSES[loss], W, beta, R=wrong)
                assert proof.dual <= own.primal * (1 + 1e-5)

"""A head solved again on features that have moved, against a fresh solve of the same program."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from convex_heads import ConvexHeadClassifier
from convex_heads.limits import Limits
from convex_heads.losses import targets
from convex_heads.warm import objective, solve_again


def problem(n: int, d: int, C: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    y = (rng.permutation(C)[(np.abs(X[:, :2]).sum(axis=1) * 2).astype(int) % C]).astype(np.int64)
    moved = (X + 0.2 * np.tanh(X @ rng.normal(size=(d, d)) / 2)).astype(np.float32)
    return X, moved, y


def fitted(X, y, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return ConvexHeadClassifier(n_gates=6, beta=0.05, tolerance=1e-3, **options).fit(X, y)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"penalty": "group"}, (300, 5, 2)),
        pytest.param({"penalty": "ridge"}, (300, 5, 3), marks=pytest.mark.slow),
        ({"loss": "squared"}, (20, 30, 2)),  # fewer rows than features: in the span of the rows
        pytest.param({"activation": "relu"}, (300, 5, 2), marks=pytest.mark.slow),
    ],
    ids=["logistic", "ridge-softmax", "wide-squared", "relu"],
)
def test_lower_than_before_and_as_low_as_can_be(options, shape):
    n, d, C = shape
    X, moved, y = problem(n, d, C)
    head = fitted(X, y, **options)
    Y, omega = targets(y, head.loss_, C), np.ones(n)
    penalty, beta = head.penalty_, head.certificate_.beta
    # The objective is the certificate's.
    here = objective(head.network_, X, Y, omega, beta, penalty)
    assert here == pytest.approx(head.certificate_.primal, rel=2e-4)
    before = objective(head.network_, moved, Y, omega, beta, penalty)
    again = solve_again(
        head.network_, head.gates_, moved, Y, omega, beta, penalty=penalty, limits=Limits(1e-3)
    )
    assert again.objective < before
    assert again.objective == pytest.approx(
        objective(again.network, moved, Y, omega, beta, penalty), rel=1e-6
    )
    assert again.objective == pytest.approx(again.certificate.primal, rel=2e-4)
    assert again.certificate.dual <= again.objective * (1 + 1e-5)
    if options.get("activation") != "relu":
        assert again.certificate.relative_gap <= 2e-3
    for kept in ("mean", "scale", "keep"):
        np.testing.assert_array_equal(
            getattr(again.network.scaling, kept), getattr(head.network_.scaling, kept)
        )
    np.testing.assert_array_equal(again.network.offset, head.network_.offset)


def test_dropped_gates_come_back_where_they_help():
    X, _, y = problem(300, 5, 2)
    head = fitted(X, y, penalty="group")
    network = type(head.network_)(
        **(vars(head.network_) | {"gates": head.gates_[:1], "weights": head.network_.weights[:1]})
    )
    Y = targets(y, head.loss_, 2)
    again = solve_again(network, head.gates_, X, Y, np.ones(300), head.certificate_.beta)
    assert len(again.network.gates) > 1
    assert again.objective == pytest.approx(head.certificate_.primal, rel=2e-2)


def test_what_does_not_belong_together_is_refused():
    X, _, y = problem(100, 5, 2)
    head = fitted(X, y)
    Y = targets(y, "logistic", 2)
    with pytest.raises(ValueError, match="must agree"):
        solve_again(head.network_, head.gates_, X, Y, np.ones(99), 0.01)
    with pytest.raises(ValueError, match="not among those offered"):
        solve_again(head.network_, head.gates_[:0], X, Y, np.ones(100), 0.01)


def test_gates_that_are_equal_have_the_sum_of_their_weights():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    head = ConvexHeadClassifier(beta=0.05, n_gates=6, penalty="group").fit(X, y)
    network, Y, ones = head.network_, y[:, None].astype(np.float32), np.ones(200)
    twice = replace(
        network,
        gates=np.repeat(network.gates, 2, axis=0),
        weights=np.repeat(network.weights / 2, 2, axis=0),
    )
    beta = head.certificate_.beta
    again = solve_again(twice, head.gates_, X, Y, ones, beta, limits=Limits(max_passes=1))
    assert again.certificate.primal == pytest.approx(again.objective, rel=1e-5)
    assert again.objective <= objective(network, X, Y, ones, beta) * (1 + 1e-6)

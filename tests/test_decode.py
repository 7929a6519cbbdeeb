"""The deployed network computes what the program computes."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from convex_heads import ConvexHeadClassifier
from convex_heads.decode import Network
from convex_heads.scaling import Scaling


def _network(seed=0, P=4, d=3, C=2):
    rng = np.random.default_rng(seed)
    scaling = Scaling(rng.normal(size=d), rng.uniform(0.5, 2, d), np.array([True, True, False]))
    W = rng.normal(size=(P, d + 1, C))
    W[2] = 0
    gates = rng.normal(size=(P, d + 1))
    return scaling, gates, W, rng.normal(size=C)


def test_scores_follow_the_formula_and_dead_gates_are_dropped():
    scaling, gates, W, z0 = _network()
    network = Network.decode(scaling, gates, W, z0, "softmax")
    assert network.gates.shape[0] == 3
    X = np.random.default_rng(1).normal(size=(7, 3))
    for x, z in zip(X, network.scores(X), strict=True):
        tilde = np.append((x - scaling.mean) / scaling.scale * scaling.keep, 1.0)
        expected = z0 + sum((g @ tilde >= 0) * (w.T @ tilde) for g, w in zip(gates, W, strict=True))
        np.testing.assert_allclose(z, expected, rtol=1e-12)


def test_a_head_without_active_gates_answers_with_the_priors():
    scaling, gates, W, z0 = _network()
    network = Network.decode(scaling, gates, 0 * W, z0, "softmax")
    p = network.probabilities(np.zeros((2, 3)))
    np.testing.assert_allclose(p, np.tile(np.exp(z0) / np.exp(z0).sum(), (2, 1)), rtol=1e-12)


def test_blocks_do_not_change_the_scores(monkeypatch):
    scaling, gates, W, z0 = _network()
    network = Network.decode(scaling, gates, W, z0, "softmax")
    X = np.random.default_rng(2).normal(size=(50, 3))
    whole = network.scores(X)
    monkeypatch.setattr("convex_heads.decode._BLOCK_ENTRIES", 24)
    np.testing.assert_allclose(network.scores(X), whole, rtol=1e-12)


def test_predictions_equal_the_program_that_was_solved():
    rng = np.random.default_rng(3)
    X = rng.normal(2, 3, size=(300, 5)).astype(np.float32)
    y = (X[:, 0] > 2).astype(int)
    head = ConvexHeadClassifier(beta=0.01, tolerance=1e-3).fit(X, y)
    p = head.predict_proba(X)[np.arange(300), y].astype(np.float64)
    penalty = sum(np.linalg.norm(w) for w in head.network_.weights)
    objective = -np.log(p).mean() + head.certificate_.beta * penalty
    np.testing.assert_allclose(objective, head.certificate_.primal, rtol=1e-4)
    # and it is no worse than a linear head under the same penalty on the one gate it contains
    linear = LogisticRegression(C=1e6).fit(X, y)
    assert head.score(X, y) >= linear.score(X, y) - 0.02

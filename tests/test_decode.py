"""The deployed network computes what the program computes."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from convex_heads import ConvexHeadClassifier
from convex_heads.decode import Network, ReluNetwork
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


def _relu_network(seed=0, m=5, d=3, C=2):
    scaling, _, _, z0 = _network(seed, d=d, C=C)
    rng = np.random.default_rng(seed + 1)
    hidden, output = rng.normal(size=(m, d + 1)), rng.normal(size=(m, C))
    return ReluNetwork(scaling, hidden, output, z0, "softmax")


def test_scores_of_a_relu_network_follow_the_formula_in_any_blocks(monkeypatch):
    network = _relu_network()
    X = np.random.default_rng(1).normal(size=(7, 3))
    scores = network.scores(X)
    for x, z in zip(X, scores, strict=True):
        tilde = np.append((x - network.scaling.mean) / network.scaling.scale, 1.0)
        tilde[:-1] *= network.scaling.keep
        terms = [
            max(0.0, h @ tilde) * o for h, o in zip(network.hidden, network.output, strict=True)
        ]
        np.testing.assert_allclose(z, network.offset + sum(terms), rtol=1e-12)
    monkeypatch.setattr("convex_heads.decode._BLOCK_ENTRIES", 12)
    np.testing.assert_allclose(network.scores(X), scores, rtol=1e-12)


def test_a_relu_network_and_the_gated_one_with_its_own_patterns_agree():
    relu = _relu_network(m=6)
    weights = relu.hidden[:, :, None] * relu.output[:, None, :]
    gated = Network(relu.scaling, relu.hidden, weights, relu.offset, relu.loss)
    X = np.random.default_rng(3).normal(size=(40, 3))
    np.testing.assert_allclose(relu.scores(X), gated.scores(X), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(relu.probabilities(X, 2.0), gated.probabilities(X, 2.0), rtol=1e-9)


def test_networks_change_precision_as_a_whole():
    gated = Network.decode(*_network(), "softmax")
    X = np.random.default_rng(4).normal(size=(9, 3))
    for network in (gated, _relu_network()):
        single = network.astype(np.float32)
        assert type(single) is type(network)
        assert single.dim == network.dim == 3
        assert single.scaling.keep.dtype == bool
        assert single.scores(X).dtype == np.float32
        np.testing.assert_allclose(single.scores(X), network.scores(X), rtol=1e-4, atol=1e-5)
        assert network.scores(X).dtype == np.float64  # the one it was made from is left alone


def test_a_relu_network_without_neurons_answers_with_the_priors():
    network = _relu_network(m=0)
    np.testing.assert_array_equal(network.scores(np.zeros((2, 3))), np.tile(network.offset, (2, 1)))


def test_predictions_equal_the_program_that_was_solved():
    rng = np.random.default_rng(3)
    X = rng.normal(2, 3, size=(300, 5)).astype(np.float32)
    y = (X[:, 0] > 2).astype(int)
    head = ConvexHeadClassifier(beta=0.01, penalty="group", tolerance=1e-3).fit(X, y)
    p = head.predict_proba(X)[np.arange(300), y].astype(np.float64)
    penalty = sum(np.linalg.norm(w) for w in head.network_.weights)
    objective = -np.log(p).mean() + head.certificate_.beta * penalty
    np.testing.assert_allclose(objective, head.certificate_.primal, rtol=1e-4)
    # and it is no worse than a linear head under the same penalty on the one gate it contains
    linear = LogisticRegression(C=1e6).fit(X, y)
    assert head.score(X, y) >= linear.score(X, y) - 0.02

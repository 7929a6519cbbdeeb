"""The robustness radius: exact by hand, equal to its formula, and never broken by an attack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convex_heads import Network, ReluNetwork, robustness_radius
from convex_heads.scaling import Scaling


def _identity(d: int) -> Scaling:
    return Scaling(np.zeros(d), np.ones(d), np.ones(d, bool))


def _gated(seed=0, P=6, d=4, C=3, loss="softmax") -> Network:
    """Random gates with and without bias, the first always on."""
    rng = np.random.default_rng(seed)
    scaling = Scaling(rng.normal(size=d), rng.uniform(0.5, 2, d), np.ones(d, bool))
    gates = rng.normal(size=(P, d + 1))
    gates[0] = np.eye(d + 1)[-1]
    return Network(scaling, gates, rng.normal(size=(P, d + 1, C)), rng.normal(size=C), loss)


def _relu(seed=0, m=8, d=4, C=3, loss="softmax") -> ReluNetwork:
    gated = _gated(seed, m, d, C, loss)
    output = np.random.default_rng(seed + 1).normal(size=(m, C))
    return ReluNetwork(gated.scaling, gated.gates, output, gated.offset, loss)


NETWORKS = {
    "gated": _gated(),
    "gated, more units than features": _gated(1, P=20, d=3, C=4),
    "gated, fewer units than features": _gated(2, P=3, d=12, C=3),
    "gated, one output": _gated(3, C=1, loss="logistic"),
    "gated, squared": _gated(4, C=2, loss="squared"),
    "relu": _relu(),
    "relu, more units than features": _relu(1, m=30, d=3),
    "relu, fewer units than features": _relu(2, m=4, d=10),
    "relu, one output": _relu(3, C=1, loss="logistic"),
}


def _rows(network, n=60, seed=9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    d = network.dim
    return rng.normal(size=(n, d)) * network.scaling.scale * 1.5 + network.scaling.mean


def _two_scores(network, X) -> np.ndarray:
    z = network.scores(X)
    return np.c_[np.zeros(len(z)), z] if z.shape[1] == 1 else z


def _attack(network, x: np.ndarray, r: float, rng: np.random.Generator) -> bool:
    """Whether a perturbation of length <= r was found that changes the prediction of x (d,)."""
    scaling, d = network.scaling, network.dim
    y = int(_two_scores(network, x[None]).argmax())

    def broken(delta: np.ndarray) -> bool:
        delta = delta / np.maximum(1, np.linalg.norm(delta, axis=1, keepdims=True) / r)
        return bool((_two_scores(network, x + delta * scaling.scale).argmax(axis=1) != y).any())

    gates = network.gates if isinstance(network, Network) else network.hidden
    tilde = np.append((x - scaling.mean) / scaling.scale, 1)
    # Just across every gate that can be reached, alone and with a random rest.
    norms = np.linalg.norm(gates[:, :-1], axis=1)
    near = norms > 0
    across = -1.0001 * (gates[near] @ tilde / norms[near] ** 2)[:, None] * gates[near, :-1]
    moves = rng.normal(size=(200, d))
    moves *= r / np.linalg.norm(moves, axis=1, keepdims=True)
    if broken(moves) or broken(across):
        return True
    if len(across):
        rest = np.repeat(across, 10, axis=0)
        length = np.sqrt(np.maximum(r**2 - (rest**2).sum(axis=1), 0))[:, None]
        if broken(rest + length * moves[rng.integers(0, 200, len(rest))] / r):
            return True
    # Projected descent of the lead over every class, by numerical gradients, from many points.
    starts = np.r_[np.zeros((1, d)), across, moves[:10]]
    for k in range(_two_scores(network, x[None]).shape[1]):
        if k == y:
            continue
        delta = starts / np.maximum(1, np.linalg.norm(starts, axis=1, keepdims=True) / r)
        for _ in range(15):
            near_by = delta[:, None] + 1e-6 * np.eye(d)
            z = _two_scores(network, x + near_by.reshape(-1, d) * scaling.scale)
            z0 = _two_scores(network, x + delta * scaling.scale)
            lead = (z[:, y] - z[:, k]).reshape(-1, d) - (z0[:, y] - z0[:, k])[:, None]
            step = lead / np.maximum(np.linalg.norm(lead, axis=1, keepdims=True), 1e-300)
            delta = delta - 0.3 * r * step
            delta /= np.maximum(1, np.linalg.norm(delta, axis=1, keepdims=True) / r)
            if broken(delta):
                return True
    return False


@pytest.mark.parametrize("name", NETWORKS)
def test_no_attack_inside_the_radius_changes_a_prediction(name):
    network = NETWORKS[name]
    rng = np.random.default_rng(5)
    X = _rows(network, n=25)
    radius = robustness_radius(network, X)
    assert (radius > 0).all()
    assert not any(_attack(network, x, 0.9999 * r, rng) for x, r in zip(X, radius, strict=True))
    # The attack can do harm, and the radius is no small part of where it does.
    reach = [
        next((f for f in (1.2, 1.5, 2, 3, 5, 10) if _attack(network, x, f * r, rng)), np.inf)
        for x, r in zip(X, radius, strict=True)
    ]
    assert np.median(reach) <= 5


def _bound(network, tilde: np.ndarray, r: float) -> float:
    """min_k L_k(r) of one row, written out unit by unit from the formula."""
    relu = isinstance(network, ReluNetwork)
    z0 = network.offset if len(network.offset) > 1 else np.array([0, network.offset[0]])
    gates = network.hidden if relu else network.gates
    W = network.hidden[:, :, None] * network.output[:, None, :] if relu else network.weights
    if W.shape[2] == 1:
        W = np.concatenate([0 * W, W], axis=2)
    z = z0 + sum((g @ tilde >= 0) * (w.T @ tilde) for g, w in zip(gates, W, strict=True))
    y = int(np.argmax(z))
    bounds = []
    for k in range(len(z0)):
        if k == y:
            continue
        total, value = np.zeros(len(tilde) - 1), z0[y] - z0[k]
        for i, g in enumerate(gates):
            a = W[i][:, y] - W[i][:, k]
            reach = r * np.linalg.norm(g[:-1])
            always = np.linalg.norm(g[:-1]) == 0 and g @ tilde >= 0
            if always or g @ tilde > reach:
                total, value = total + a[:-1], value + a @ tilde
            elif abs(g @ tilde) <= reach and not (relu and a @ g >= 0):
                value += min(0, a @ tilde - r * np.linalg.norm(a[:-1]))
        bounds.append(value - r * np.linalg.norm(total))
    return min(bounds)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_radius_is_where_the_bound_ends(name):
    network = NETWORKS[name]
    X = _rows(network)
    tilde = np.c_[(X - network.scaling.mean) / network.scaling.scale, np.ones(len(X))]
    for x, r in zip(tilde, robustness_radius(network, X), strict=True):
        assert _bound(network, x, r * (1 - 1e-9)) > 0
        assert _bound(network, x, r * (1 + 1e-9)) <= 0
        # which falls all the way
        values = [_bound(network, x, share * r) for share in np.linspace(0, 3, 40)]
        assert (np.diff(values) <= 1e-12).all()


def test_a_linear_head_has_its_distance_to_the_nearest_border():
    network = _gated(7, P=1, d=5, C=4)
    X = _rows(network)
    z = network.scores(X)
    W = network.weights[0, :-1]
    for row, r in zip(z, robustness_radius(network, X), strict=True):
        y = int(row.argmax())
        border = [(row[y] - row[k]) / np.linalg.norm(W[:, y] - W[:, k]) for k in range(4) if k != y]
        assert r == pytest.approx(min(border), rel=1e-12)


ON = [0.0, 1.0]  # the always-on gate in one dimension


@pytest.mark.parametrize(
    ("gates", "lead", "x", "expected"),
    [
        # The lead is 3 + x everywhere: from -1 it ends at -3.
        ([ON], [[1, 3]], -1, 2),
        # It is 1 left of 0 and -4 right of it: the Lipschitz constant left of 0 says nothing.
        ([ON, [1, 0]], [[0, 1], [0, -5]], -1, 1),
        ([ON, [2, 0]], [[0, 1], [0, -5]], -1, 1),
        # Across the gate 0.5 is lost: the bound is 2 - r up to r = 1, then 1.5 - r.
        ([ON, [1, 0]], [[1, 3], [0, -0.5]], -1, 1.5),
        # Across the gate 1.5 is lost, more than is left there.
        ([ON, [1, 0]], [[1, 3], [0, -1.5]], -1, 1),
        # The gate at distance 1 takes away x's own slope: the bound is (1 + 1 - r) - 0 up to 1,
        # then 1 + min(0, 1 - r).
        ([ON, [1, 0]], [[0, 1], [1, 0]], 1, 2),
        # A gate that only helps, and one that is out of reach until the lead is gone.
        ([ON, [1, 0]], [[1, 3], [0, 2]], -1, 2),
        ([ON, [1, -7]], [[1, 3], [0, -50]], -1, 2),
        # The lead is 1 and nothing can change it.
        ([ON], [[0, 1]], 0, np.inf),
        # On the gate itself, where the other side is behind.
        ([ON, [1, 0]], [[0, -1], [0, 2]], 0, 0),
    ],
)
def test_cases_done_by_hand(gates, lead, x, expected):
    lead = np.array(lead, float)
    weights = np.stack([lead, 0 * lead], axis=2)  # class 0 leads by lead[i]' (x, 1)
    network = Network(_identity(1), np.array(gates, float), weights, np.zeros(2), "softmax")
    assert robustness_radius(network, [[x]]).tolist() == [pytest.approx(expected, rel=1e-12)]


def test_relu_cases_done_by_hand():
    # f = relu(x) + 1 against 0: nothing can change the class. 2 - relu(x): at 2, 1 away from 1.
    # 1 + 2 relu(x) - relu(-x), from x = 1: -1 is 2 away.
    for hidden, output, z0, x, expected in (
        ([[1, 0]], [[1, 0]], 1, 1, np.inf),
        ([[1, 0]], [[-1, 0]], 2, 1, 1),
        ([[1, 0], [-1, 0]], [[2, 0], [-1, 0]], 1, 1, 2),
    ):
        network = ReluNetwork(
            _identity(1),
            np.array(hidden, float),
            np.array(output, float),
            np.array([z0, 0.0]),
            "softmax",
        )
        assert robustness_radius(network, [[x]]).tolist() == [pytest.approx(expected, rel=1e-12)]


@pytest.mark.parametrize("seed", range(5))
def test_a_relu_radius_is_never_below_the_lipschitz_bounds(seed):
    network = _relu(seed, m=12, d=5, C=4)
    X = _rows(network)
    radius, z = robustness_radius(network, X), network.scores(X)
    norms = np.linalg.norm(network.hidden[:, :-1], axis=1)
    output = network.output
    for row, r in zip(z, radius, strict=True):
        y = int(row.argmax())
        for k in set(range(4)) - {y}:
            joint = norms @ np.abs(output[:, y] - output[:, k])
            apart = norms @ (np.abs(output[:, y]) + np.abs(output[:, k]))
            assert apart >= joint
        bounds = [
            (row[y] - row[k]) / (norms @ np.abs(output[:, y] - output[:, k]))
            for k in range(4)
            if k != y
        ]
        assert r >= min(bounds) * (1 - 1e-12)


@pytest.mark.parametrize("name", ["gated", "relu", "gated, one output"])
def test_blocks_chunks_and_precision_change_nothing(name, monkeypatch):
    network = NETWORKS[name]
    X = _rows(network)
    radius = robustness_radius(network, X)
    assert radius.dtype == np.float64
    single = robustness_radius(network.astype(np.float32), X.astype(np.float32))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, radius, rtol=1e-3, atol=1e-5)
    whole = np.rint(X).astype(int)
    np.testing.assert_array_equal(
        robustness_radius(network, whole), robustness_radius(network, whole.astype(float))
    )
    monkeypatch.setattr("convex_heads.robustness._BLOCK_ENTRIES", 50)
    monkeypatch.setattr("convex_heads.robustness._DIFFERENCE_ENTRIES", 1)
    np.testing.assert_allclose(robustness_radius(network, X), radius, rtol=1e-12)


def test_a_row_alone_has_the_radius_that_it_has_among_many():
    network = _gated(5, P=30, d=40, C=3)
    X = _rows(network)
    alone = [robustness_radius(network, x[None])[0] for x in X[:5]]
    np.testing.assert_allclose(alone, robustness_radius(network, X)[:5], rtol=1e-9)


def test_a_column_that_is_constant_does_not_count():
    network = _gated(8)
    keep = np.array([True, False, True, True])
    without = replace(network, scaling=network.scaling._replace(keep=keep))
    kept = np.append(keep, True)
    smaller = Network(
        Scaling(network.scaling.mean[keep], network.scaling.scale[keep], keep[keep]),
        network.gates[:, kept],
        network.weights[:, kept],
        network.offset,
        "softmax",
    )
    X = _rows(network)
    np.testing.assert_allclose(
        robustness_radius(without, X), robustness_radius(smaller, X[:, keep]), rtol=1e-10
    )


def test_a_network_without_weights_cannot_be_changed_unless_it_is_undecided():
    network = _gated(0)
    empty = replace(network, gates=network.gates[:0], weights=network.weights[:0])
    X = _rows(network, n=2)
    assert robustness_radius(empty, X).tolist() == [np.inf, np.inf]
    tie = replace(empty, offset=np.array([1.0, 1.0, 0.0]))
    assert robustness_radius(tie, X).tolist() == [0, 0]
    assert robustness_radius(network, X[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("network", "X", "error", "word"),
    [
        (_gated(0, C=1, loss="squared"), np.zeros((2, 4)), ValueError, "regression"),
        (_gated(0), np.zeros((2, 3)), ValueError, r"shape \(n, 4\)"),
        (_gated(0), np.zeros(4), ValueError, r"shape \(n, 4\)"),
        (_gated(0), np.full((2, 4), np.nan), ValueError, "finite"),
        (_gated(0), np.full((2, 4), "a"), ValueError, "real numbers"),
        ("network", np.zeros((2, 4)), TypeError, "ReluNetwork"),
    ],
)
def test_what_has_no_radius_is_refused_with_one_sentence(network, X, error, word):
    with pytest.raises(error, match=word) as caught:
        robustness_radius(network, X)
    assert "\n" not in str(caught.value)

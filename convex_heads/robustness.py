r"""How far an input may move before a prediction can change: a radius for every row.

Let x move by delta, ||delta|| <= r, in standardised features (the constant column stays). The lead
of the predicted class y over another class k is a sum over units i (gates, or ReLU neurons),

.. math:: m_k(x) = z_{0y} - z_{0k} + \sum_i 1[g_i'x \ge 0]\, a_i'x,

with a_i = W_i[:, y] - W_i[:, k] for gates, and a_i = (o_iy - o_ik) g_i for neurons g_i with output
weights o_i. A unit is on whatever delta does if g_i'x > r ||g_i||, off if g_i'x < -r ||g_i||, and
may flip in between (norms leave the constant column out, products do not). So

.. math:: m_k(x + \delta) \ge L_k(r) = z_{0y} - z_{0k}
          + \sum_{on} a_i'x - r \Big\|\sum_{on} a_i\Big\|
          + \sum_{flip} \min(0,\; a_i'x - r \|a_i\|) .

A ReLU neuron that may flip is zero where it is off and continuous there: if its output favours y
(o_iy >= o_ik) the last term is 0 instead.

L_k does not increase with r. Between two breakpoints ``|g_i'x| / ||g_i||`` every term falls; at
one, a unit that was off adds a term <= 0, and a unit that was on takes a_i'x out of the first sum
and, at best, r ||a_i|| out of the norm (triangle inequality), which is what the last sum takes
away. So the largest r with all L_k > 0 is found by bisection over the sorted breakpoints, then in
one interval, where every L_k is concave and piecewise linear.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from convex_heads.decode import Network, ReluNetwork

# Largest number of entries in one (rows, units, classes) temporary, float64: 8 MB.
_BLOCK_ENTRIES = 1 << 20
# Largest number of entries of the a_i of all units for some of the classes: 256 MB.
_DIFFERENCE_ENTRIES = 32 << 20
# Norms that the search takes of one row's sums: log2(P) breakpoints, and the two ends.
_NORMS = 10
# Chord and tangent meet within two or three rounds; every round is sound.
_ROUNDS = 30
_CLOSE = 1e-13


def robustness_radius(network: Network | ReluNetwork, X: ArrayLike) -> np.ndarray:
    r"""For every row a radius within which no perturbation changes the predicted class.

    A lower bound of the distance to the nearest input that is predicted differently; see the
    module's docstring for the bound and its proof. For a ReLU network it is never below the
    Lipschitz bound min_k (f_y - f_k) / sum_i ||g_i|| abs(o_iy - o_ik), hence nor below
    min_k (f_y - f_k) / (L_y + L_k), L_c = sum_i ||g_i|| abs(o_ic).

    Args:
        network: a deployed classifier. A single output is the score of class 1 against 0.
        X: raw features (n, d), finite.

    Returns:
        (n,) float64, in standardised-feature units: Euclidean length of a change of
        (x - mean) / scale. 0 where two classes lead together; infinite where nothing can change
        the class (a network without weights).

    Raises:
        TypeError: ``network`` is neither kind of network.
        ValueError: X does not fit the network, or the network is a regression (squared loss, one
            output), which predicts no class.

    What holds within the radius holds in exact arithmetic; computed in float64. Cost: about ten
    times n P min(P, d) C.

    Source: the bound for ReLU networks by their Lipschitz constant after Feng et al. 2026; that for
    gated ones, which jump at their gates, is derived above.

    Example: one linear unit, x -> (x, -x); from x = 3 the classes meet at 0, 3 away.

        >>> import numpy as np
        >>> from convex_heads.scaling import Scaling
        >>> scaling = Scaling(np.zeros(1), np.ones(1), np.ones(1, bool))
        >>> weights = np.array([[[1.0, -1.0], [0.0, 0.0]]])  # (P, d + 1, C)
        >>> network = Network(scaling, np.array([[0.0, 1.0]]), weights, np.zeros(2), "softmax")
        >>> robustness_radius(network, [[3.0]]).tolist()
        [3.0]
    """
    if not isinstance(network, Network | ReluNetwork):
        raise TypeError(
            f"robustness_radius takes a Network or a ReluNetwork; got a {type(network).__name__}"
        )
    if len(network.offset) == 1 and network.loss == "squared":
        raise ValueError(
            "a squared-loss network with one output is a regression and predicts no class; a "
            "robustness radius needs at least two classes"
        )
    X = np.asarray(X)
    if X.ndim != 2 or X.shape[1] != network.dim:
        raise ValueError(f"X must hold raw features, shape (n, {network.dim}); got {X.shape}")
    if X.dtype.kind not in "biuf" or not np.isfinite(X).all():
        raise ValueError("X must hold finite real numbers")
    scores = network.scores(X)
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    # What the network predicts in its own precision is what is to stay.
    predicted = scores.argmax(axis=1)
    units = _Units.of(network)
    radius = np.full(len(X), np.inf)
    if len(units.gates) == 0:
        lead = units.offset.max() - np.delete(units.offset, units.offset.argmax())
        return radius if (lead > 0).all() else np.zeros(len(X))
    for y in np.unique(predicted):
        others = np.delete(np.arange(scores.shape[1]), y)
        P, k = units.gates.shape
        chunk = max(1, _DIFFERENCE_ENTRIES // max(1, P * k))
        for first in range(0, len(others), chunk):
            rows = np.flatnonzero(predicted == y)
            lead = units.lead(y, others[first : first + chunk], len(rows))
            step = max(1, _BLOCK_ENTRIES // max(1, P * lead.norms.shape[1]))
            for start in range(0, len(rows), step):
                block = rows[start : start + step]
                # The rounding that the network does to its input is part of what it computes.
                x = np.asarray(X[block], network.scaling.mean.dtype).astype(np.float64)
                x = units.network.scaling.transform(x)
                radius[block] = np.minimum(radius[block], _radius(units.gates, lead, x))
    return radius


class _Lead(NamedTuple):
    """The lead of one class y over K others.

    Attributes:
        offset: z0_y - z0_k (K,).
        a: (P, d + 1, K).
        norms: ||a_i|| without the constant column (P, K).
        root: (P, K, m): || sum_i s_i a_ik || = || s @ root[:, k] || for every s (P,).
        rising: (P, K), units that lose nothing by flipping.
    """

    offset: np.ndarray
    a: np.ndarray
    norms: np.ndarray
    root: np.ndarray
    rising: np.ndarray


class _Units(NamedTuple):
    """Any network as a sum of gated units, in float64.

    Attributes:
        network: the network.
        gates: g_i (P, d + 1), zero in columns that are constant.
        offset: z0 (C,), C >= 2.
    """

    network: Network | ReluNetwork
    gates: np.ndarray
    offset: np.ndarray

    @classmethod
    def of(cls, network: Network | ReluNetwork) -> _Units:
        network = network.astype(np.float64)
        gates = network.gates if isinstance(network, Network) else network.hidden
        offset = network.offset
        if len(offset) == 1:
            offset = np.array([0, offset[0]])
        return cls(network, gates * cls._columns(network), offset)

    @staticmethod
    def _columns(network: Network | ReluNetwork) -> np.ndarray:
        """1 for columns that inputs can change and for the constant, 0 for the others: (d + 1,)."""
        return np.append(network.scaling.keep, True).astype(np.float64)

    def lead(self, y: int, others: np.ndarray, rows: int) -> _Lead:
        """The lead of class y over other classes (K,), for so many rows."""
        network = self.network
        if isinstance(network, Network):
            weights = network.weights * self._columns(network)[:, None]
            if weights.shape[2] == 1:
                weights = np.concatenate([np.zeros_like(weights), weights], axis=2)
            a = weights[:, :, [y]] - weights[:, :, others]
            rising = np.zeros((len(a), len(others)), bool)
        else:
            output = network.output
            if output.shape[1] == 1:
                output = np.concatenate([np.zeros_like(output), output], axis=1)
            difference = output[:, [y]] - output[:, others]
            a = self.gates[:, :, None] * difference[:, None, :]
            rising = difference >= 0
        inner = a[:, :-1]
        root = inner.transpose(2, 1, 0)
        if root.shape[1] > root.shape[2] and rows * _NORMS > root.shape[2]:
            # The norm of a sum of P vectors needs P coordinates; unlike those of a Gram matrix,
            # these keep the small difference of large vectors. Few rows do not repay them.
            root = np.asarray(np.linalg.qr(root, mode="r"))
        return _Lead(
            offset=self.offset[y] - self.offset[others],
            a=a,
            norms=np.linalg.norm(inner, axis=1),
            root=np.ascontiguousarray(root.transpose(2, 0, 1)),
            rising=rising,
        )


class _Bound(NamedTuple):
    """L_k(r) of rows whose units' states are held fixed: c - r N + sum_i min(0, alpha - r n).

    Attributes:
        c: (b, K).
        N: (b, K).
        alpha: (b, P, K), zero for units that do not flip.
        n: (b, P, K), likewise.
    """

    c: np.ndarray
    N: np.ndarray
    alpha: np.ndarray
    n: np.ndarray

    def value(self, r: np.ndarray) -> np.ndarray:
        """L_k at r (b, K): (b, K)."""
        return self._line(r)[0]

    def _line(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value and slope (b, K) at r (b, K)."""
        term = self.alpha - r[:, None, :] * self.n
        below = term < 0
        value = self.c - r * self.N + np.sum(term, axis=1, where=below)
        return value, -self.N - np.sum(self.n, axis=1, where=below)

    def root(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The r (b, K) in [low, high] where the bound reaches 0, from below; high if it does not.

        Args:
            low: (b, K), where the bound is positive.
            high: (b, K), may be infinite.
        """
        low, high = low.copy(), np.where(np.isinf(high), self._beyond(low), high)
        endless = np.isinf(high)
        high[endless] = low[endless]
        at_low = self.value(low)
        at_high, slope = self._line(high)
        reached = (at_low > 0) & (at_high < 0) & (slope < 0)
        for _ in range(_ROUNDS):
            # Of a concave function the chord lies below, the tangent above.
            share = at_low / np.where(reached, at_low - at_high, 1)
            low = np.where(reached, low + share * (high - low), low)
            high = np.where(reached, high - at_high / np.where(reached, slope, 1), high)
            if np.all((high - low <= _CLOSE * high) | ~reached):
                break
            at_low = np.maximum(self.value(low), 0)
            at_high, slope = self._line(high)
            reached &= (at_high < 0) & (slope < 0) & (low < high)
        low = np.where(at_high >= 0, high, low)
        return np.where(endless, np.inf, low)

    def _beyond(self, low: np.ndarray) -> np.ndarray:
        """A point (b, K) right of ``low`` where the bound is at most 0; infinite if it never is."""
        sloped = self.n > 0
        kinks = np.where(sloped, self.alpha / np.where(sloped, self.n, 1), 0).max(axis=1, initial=0)
        # Right of all kinks the bound is one straight line.
        intercept = self.c + np.sum(np.where(sloped, self.alpha, np.minimum(self.alpha, 0)), axis=1)
        slope = self.N + np.sum(self.n, axis=1)
        falls = slope > 0
        end = np.maximum(np.maximum(kinks, low), intercept / np.where(falls, slope, 1))
        # A little further, so that rounding cannot leave it at a positive value.
        return np.where(falls, 2 * end, np.inf)


def _radius(gates: np.ndarray, lead: _Lead, x: np.ndarray) -> np.ndarray:
    """The radius (b,) of rows x (b, d + 1) that are predicted as the class that leads."""
    b = len(x)
    P, k, K = lead.a.shape
    products = x @ gates.T
    norms = np.linalg.norm(gates[:, :-1], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(norms > 0, products / norms, np.where(products >= 0, np.inf, -np.inf))
    alpha = (x @ lead.a.transpose(1, 0, 2).reshape(k, P * K)).reshape(b, P, K)
    loses = ~lead.rising

    def bound(r: np.ndarray) -> _Bound:
        """The bound with every unit in the state that it has at r (b,)."""
        on = (distance > r[:, None]).astype(np.float64)
        flips = (np.abs(distance) <= r[:, None])[:, :, None] & loses
        vectors = (on @ lead.root.reshape(P, -1)).reshape(b, K, -1)
        return _Bound(
            c=lead.offset + np.matmul(on[:, None, :], alpha)[:, 0],
            N=np.linalg.norm(vectors, axis=2),
            alpha=np.where(flips, alpha, 0),
            n=np.where(flips, lead.norms, 0),
        )

    def positive(r: np.ndarray) -> np.ndarray:
        values = bound(r).value(np.broadcast_to(r[:, None], (b, K)))
        return np.all(values > 0, axis=1)

    edges = np.sort(np.concatenate([np.zeros((b, 1)), np.abs(distance)], axis=1), axis=1)
    edges = np.concatenate([edges, np.full((b, 1), np.inf)], axis=1)
    every = np.arange(b)
    below, above = np.zeros(b, int), np.full(b, P + 1)
    while (above - below > 1).any():
        middle = (below + above) // 2
        r = edges[every, middle]
        finite = np.isfinite(r)
        good = finite & positive(np.where(finite, r, 0))
        below, above = np.where(good, middle, below), np.where(good, above, middle)
    start, end = edges[every, below], edges[every, above]
    # Units flip at the edge itself, so up to the next edge nothing but r changes.
    low, high = (np.broadcast_to(r[:, None], (b, K)) for r in (start, end))
    radius = bound(start).root(low, high).min(axis=1)
    return np.where(positive(start), radius, 0)

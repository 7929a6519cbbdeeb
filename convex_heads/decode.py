"""From a solved program to the network that is deployed: prune, keep scaling, predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from convex_heads.scaling import Scaling

_BLOCK_ENTRIES = 4 << 20


@dataclass(frozen=True)
class Network:
    """A gated ReLU network: f(x) = z0 + sum_i 1[g_i'x~ >= 0] W_i'x~, x~ = [(x - mean)/scale, 1].

    Plain arrays; predicting needs neither JAX nor a compiler.

    Attributes:
        scaling: mean, scale and kept columns, each (d,).
        gates: (P, d + 1).
        weights: (P, d + 1, C).
        offset: z0 (C,).
        loss: name of the loss it was trained with, which says what scores mean.
    """

    scaling: Scaling
    gates: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    loss: str

    @classmethod
    def decode(
        cls, scaling: Scaling, gates: np.ndarray, W: np.ndarray, offset: np.ndarray, loss: str
    ) -> Network:
        """Drops gates whose weights are zero. W (P, d + 1, C) in standardised coordinates."""
        alive = np.asarray(W).any(axis=(1, 2))
        return cls(
            scaling, np.asarray(gates)[alive], np.asarray(W)[alive], np.asarray(offset), loss
        )

    def astype(self, dtype: type) -> Network:
        """The same network, computing in another precision."""
        mean, scale = self.scaling.mean.astype(dtype), self.scaling.scale.astype(dtype)
        return Network(
            Scaling(mean, scale, self.scaling.keep),
            self.gates.astype(dtype),
            self.weights.astype(dtype),
            self.offset.astype(dtype),
            self.loss,
        )

    @property
    def dim(self) -> int:
        """Number of raw features."""
        return len(self.scaling.mean)

    def scores(self, X: np.ndarray) -> np.ndarray:
        """f(x) for raw features (n, d): (n, C), streamed in row blocks."""
        P, k, C = self.weights.shape
        out = np.tile(self.offset, (len(X), 1))
        if P == 0:
            return out
        columns = self.weights.transpose(1, 0, 2).reshape(k, P * C)
        step = max(1, _BLOCK_ENTRIES // max(1, P * C))
        for start in range(0, len(X), step):
            rows = slice(start, start + step)
            block = self.scaling.transform(X[rows], self.gates.dtype)
            on = block @ self.gates.T >= 0
            out[rows] += np.einsum("npc,np->nc", (block @ columns).reshape(-1, P, C), on)
        return out

    def probabilities(self, X: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Class probabilities (n, C >= 2) of raw features (n, d)."""
        return probabilities(self.scores(X), self.loss, temperature)


def probabilities(z: np.ndarray, loss: str, temperature: float = 1.0) -> np.ndarray:
    """Scores -> class probabilities (n, C >= 2).

    Softmax and sigmoid of z / temperature; squared-loss scores are clipped at zero and normalised,
    and know no temperature.
    """
    if loss == "squared":
        p = np.clip(z, 0, None) + np.finfo(z.dtype).tiny
        return p / p.sum(axis=1, keepdims=True)
    z = z / z.dtype.type(temperature)
    if loss == "logistic":
        p = expit(z)
        return np.concatenate([1 - p, p], axis=1)
    return softmax(z, axis=1)

"""From a solved program to the network that is deployed: prune, keep scaling, predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from scipy.special import expit, log_expit, softmax

from convex_heads.scaling import Scaling
from convex_heads.sources import RowSource

_BLOCK_ENTRIES = 4 << 20
# Rows for which the weights of all gates are not put side by side first: that takes longer than
# their products, some 15 ms of 256 gates, 1,024 features and ten classes in place of one.
_FEW_ROWS = 8


class TwoLayer(ABC):
    """What gated and ReLU networks share: f(x) = z0 + inner(x~), x~ = [(x - mean)/scale, 1].

    Plain arrays; predicting needs neither JAX nor a compiler. The classes that follow add the
    arrays of ``inner``.

    Attributes:
        scaling: mean, scale and kept columns, each (d,).
        offset: z0 (C,).
        loss: name of the loss it was trained with, which says what scores mean.
    """

    scaling: Scaling
    offset: np.ndarray
    loss: str

    @abstractmethod
    def _width(self) -> int:
        """Entries of the largest temporary for one row; 0 if ``inner`` is zero everywhere."""

    @abstractmethod
    def _inner(self, block: np.ndarray) -> np.ndarray:
        """Scores without the offset (b, C) of standardised rows (b, d + 1)."""

    @abstractmethod
    def in_units(self, unit: float, centre: np.ndarray) -> Self:
        """The network x -> unit * f(x) + centre, centre (C,)."""

    def astype(self, dtype: type) -> Self:
        """The same network, computing in another precision."""
        mean, scale = self.scaling.mean.astype(dtype), self.scaling.scale.astype(dtype)
        changed: dict[str, Any] = {"scaling": Scaling(mean, scale, self.scaling.keep)}
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                changed[name] = value.astype(dtype)
        return type(self)(**(vars(self) | changed))

    @property
    def dim(self) -> int:
        """Number of raw features."""
        return len(self.scaling.mean)

    def scores(self, X: RowSource) -> np.ndarray:
        """f(x) for raw features (n, d): (n, C), streamed in row blocks."""
        out = np.tile(self.offset, (len(X), 1))
        if self._width() == 0:
            return out
        step = max(1, _BLOCK_ENTRIES // max(self._width(), self.dim + 1))
        for start in range(0, len(X), step):
            rows = slice(start, start + step)
            block = self.scaling.transform(X[rows], self.offset.dtype)
            out[rows] += self._inner(block)
        return out

    def probabilities(self, X: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Class probabilities (n, C >= 2) of raw features (n, d)."""
        return probabilities(self.scores(X), self.loss, temperature)


@dataclass(frozen=True)
class Network(TwoLayer):
    """A gated ReLU network: f(x) = z0 + sum_i 1[g_i'x~ >= 0] W_i'x~, x~ = [(x - mean)/scale, 1].

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

    def in_units(self, unit: float, centre: np.ndarray) -> Network:
        """The network x -> unit * f(x) + centre, centre (C,)."""
        return replace(self, weights=self.weights * unit, offset=self.offset * unit + centre)

    def _width(self) -> int:
        return self.weights.shape[0] * self.weights.shape[2]

    def _inner(self, block: np.ndarray) -> np.ndarray:
        P, k, C = self.weights.shape
        on = block @ self.gates.T >= 0
        if len(block) <= _FEW_ROWS:
            return np.einsum("pnc,np->nc", np.matmul(block, self.weights), on)
        columns = self.weights.transpose(1, 0, 2).reshape(k, P * C)
        return np.einsum("npc,np->nc", (block @ columns).reshape(-1, P, C), on)


@dataclass(frozen=True)
class ReluNetwork(TwoLayer):
    """A ReLU network: f(x) = z0 + relu(x~ hidden') output, x~ = [(x - mean)/scale, 1].

    Attributes:
        scaling: mean, scale and kept columns, each (d,).
        hidden: (m, d + 1), one neuron a row, the bias last.
        output: (m, C).
        offset: z0 (C,).
        loss: name of the loss it was trained with, which says what scores mean.
    """

    scaling: Scaling
    hidden: np.ndarray
    output: np.ndarray
    offset: np.ndarray
    loss: str

    def in_units(self, unit: float, centre: np.ndarray) -> ReluNetwork:
        """The network x -> unit * f(x) + centre, centre (C,)."""
        return replace(self, output=self.output * unit, offset=self.offset * unit + centre)

    def _width(self) -> int:
        return len(self.hidden)

    def _inner(self, block: np.ndarray) -> np.ndarray:
        return np.maximum(block @ self.hidden.T, 0) @ self.output


def probabilities(z: np.ndarray, loss: str, temperature: float = 1.0) -> np.ndarray:
    """Scores -> class probabilities (n, C >= 2).

    Softmax and sigmoid of z / temperature. Of logistic scores for each of C > 2 classes (one
    against the rest) the sigmoids, normalised; it is their logarithms that the temperature divides.
    Squared-loss scores are clipped at zero and normalised, and know no temperature.

    Example:
        >>> z = np.log([[4.0, 1.0, 1 / 3]])  # sigmoids 0.8, 0.5 and 0.25
        >>> probabilities(z, "logistic").round(3).tolist()
        [[0.516, 0.323, 0.161]]
    """
    if loss == "squared":
        p = np.clip(z, 0, None) + np.finfo(z.dtype).tiny
        return p / p.sum(axis=1, keepdims=True)
    T = z.dtype.type(temperature)
    if loss == "logistic" and z.shape[1] == 1:
        p = expit(z / T)
        return np.concatenate([1 - p, p], axis=1)
    return softmax((log_expit(z) if loss == "logistic" else z) / T, axis=1)

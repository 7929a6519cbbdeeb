"""A head in torch: differentiable in the features, and with weights that torch may train."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from convex_heads.decode import Network, ReluNetwork, TwoLayer

__all__ = ["TorchHead", "row_losses"]

_FARTHEST = 1e12  # standardised features are cut off there, as in convex_heads.scaling


class TorchHead(nn.Module):
    r"""A head as a torch module: raw features (n, d) -> logits (n, C).

    For softmax and logistic heads the softmax of the logits are the head's calibrated
    probabilities: the temperature is divided out, a logistic head of two classes has the two
    columns (0, z / T), one of more classes log sigmoid(z) / T. A squared-loss head gives its
    scores. The module fits where a classifier layer is meant to be; see `set_classifier`.

    The mean is subtracted and the scale divided out by the module itself rather than multiplied
    into its weights: a column with a large mean or a tiny scale would lose its digits.

    Args:
        network: a gated or a ReLU network.
        temperature: scores are divided by it.

    Attributes:
        mean, scale: (d,) buffers.
        gates: (P, d + 1) buffer, and weights (P, d + 1, C) parameter, of a gated head;
        hidden: (m, d + 1) and output (m, C), parameters of a ReLU head.
        offset: (C,) parameter.

    Example:
        >>> from convex_heads.scaling import Scaling
        >>> scaling = Scaling(np.zeros(1, "f"), np.full(1, 2, "f"), np.ones(1, bool))
        >>> network = ReluNetwork(scaling, np.array([[1, 0]], "f"), np.array([[3]], "f"),
        ...                       np.zeros(1, "f"), "squared")
        >>> TorchHead(network)(torch.tensor([[4.0], [-4.0]])).tolist()
        [[6.0], [0.0]]
    """

    mean: torch.Tensor
    scale: torch.Tensor
    gates: torch.Tensor

    def __init__(self, network: TwoLayer, temperature: float = 1.0) -> None:
        super().__init__()
        self.loss = network.loss
        self.temperature = float(temperature)
        self.gated = isinstance(network, Network)
        kept = np.append(network.scaling.keep, True).astype(network.offset.dtype)
        self.register_buffer("mean", _tensor(network.scaling.mean))
        self.register_buffer("scale", _tensor(network.scaling.scale))
        if isinstance(network, Network):
            gates, weights = network.gates * kept, network.weights * kept[:, None]
            if len(gates) == 0:  # exporters do not like layers without a neuron
                gates = np.zeros((1, len(kept)), kept.dtype)
                weights = np.zeros((1, len(kept), len(network.offset)), kept.dtype)
            self.register_buffer("gates", _tensor(gates))
            self.weights = nn.Parameter(_tensor(weights))
        elif isinstance(network, ReluNetwork):
            hidden, output = network.hidden * kept, network.output
            if len(hidden) == 0:
                hidden = np.zeros((1, len(kept)), kept.dtype)
                output = np.zeros((1, len(network.offset)), kept.dtype)
            self.hidden = nn.Parameter(_tensor(hidden))
            self.output = nn.Parameter(_tensor(output))
        else:
            raise TypeError(f"a head is a Network or a ReluNetwork; got {type(network).__name__}")
        self.offset = nn.Parameter(_tensor(network.offset))

    @property
    def in_features(self) -> int:
        """Number of raw features d."""
        return self.mean.shape[0]

    @property
    def out_features(self) -> int:
        """Number of logits."""
        C = self.offset.shape[0]
        return 2 if self.loss == "logistic" and C == 1 else C

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """What the network computes, before temperature: (n, d) -> (n, C), or (n, 1) if binary."""
        x = torch.clamp((x - self.mean) / self.scale, -_FARTHEST, _FARTHEST).to(self.offset.dtype)
        if self.gated:
            P, k, C = self.weights.shape
            on = nn.functional.linear(x, self.gates[:, :-1], self.gates[:, -1]) >= 0
            columns = self.weights.permute(0, 2, 1).reshape(P * C, k)
            inner = nn.functional.linear(x, columns[:, :-1], columns[:, -1]).unflatten(1, (P, C))
            return self.offset + (inner * on.unsqueeze(-1)).sum(dim=1)
        hidden = nn.functional.linear(x, self.hidden[:, :-1], self.hidden[:, -1])
        return self.offset + nn.functional.relu(hidden) @ self.output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw features (n, d) -> logits (n, C >= 2)."""
        z = self.scores(x)
        if self.loss == "squared":
            return z
        if self.loss == "logistic":
            alone = z.shape[1] == 1
            z = torch.cat([torch.zeros_like(z), z], 1) if alone else nn.functional.logsigmoid(z)
        return z / self.temperature

    def probabilities(self, x: torch.Tensor) -> torch.Tensor:
        """Raw features (n, d) -> class probabilities (n, C >= 2)."""
        return self.probabilities_of(self(x))

    def probabilities_of(self, logits: torch.Tensor) -> torch.Tensor:
        """What `forward` gives -> class probabilities (n, C)."""
        if self.loss == "squared":
            p = torch.clamp(logits, min=0) + torch.finfo(logits.dtype).tiny
            return p / p.sum(dim=1, keepdim=True)
        return torch.softmax(logits, dim=1)

    def extra_repr(self) -> str:
        """What `print` shows."""
        units = len(self.gates) if self.gated else len(self.hidden)
        kind = "gated ReLU" if self.gated else "ReLU"
        return f"{self.in_features} -> {units} {kind} units -> {self.out_features}"


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def row_losses(scores: torch.Tensor, labels: torch.Tensor, loss: str) -> torch.Tensor:
    """(b,) losses as :mod:`convex_heads.losses` has them.

    Args:
        scores: (b, C); C = 1 for two classes under the logistic loss.
        labels: (b,) class numbers.
        loss: ``softmax``, ``logistic`` or ``squared``.

    Example:
        >>> row_losses(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), "squared").tolist()
        [0.5]
    """
    from torch.nn import functional as F

    if loss == "softmax":
        return F.cross_entropy(scores, labels, reduction="none")
    if loss == "logistic":
        one = scores.shape[1] == 1
        target = (labels[:, None] if one else F.one_hot(labels, scores.shape[1])).to(scores.dtype)
        return F.binary_cross_entropy_with_logits(scores, target, reduction="none").sum(dim=1)
    target = F.one_hot(labels, scores.shape[1]).to(scores.dtype)
    return 0.5 * (scores - target).square().sum(dim=1)

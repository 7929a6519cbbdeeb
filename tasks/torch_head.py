"""The deployed head in torch, differentiable in the features: what blocks are trained through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from convex_heads.decode import Network, ReluNetwork

if TYPE_CHECKING:
    from convex_heads.decode import TwoLayer

__all__ = ["TorchHead", "row_losses"]

_FARTHEST = 1e12  # as in `convex_heads.scaling`


class TorchHead(nn.Module):
    """f(x) = z0 + inner([(x - mean) / scale, 1]) of raw features, as the numpy network computes it.

    Its arrays are buffers, so that nothing here is trained. Standardisation is a part of it, and
    stays apart from the weights: columns that are nearly constant have scales no float32 weight
    could be divided by. The gradient of a gate is zero.

    Args:
        network: gated or ReLU.

    Example:
        >>> from convex_heads.scaling import Scaling
        >>> scaling = Scaling(np.zeros(2), np.ones(2), np.ones(2, bool))
        >>> network = Network(scaling, np.eye(3)[2:], np.ones((1, 3, 1)), np.zeros(1), "squared")
        >>> TorchHead(network)(torch.tensor([[1.0, 2.0]])).tolist()
        [[4.0]]
    """

    mean: torch.Tensor
    scale: torch.Tensor
    keep: torch.Tensor
    offset: torch.Tensor
    gates: torch.Tensor
    columns: torch.Tensor
    hidden: torch.Tensor
    output: torch.Tensor

    def __init__(self, network: TwoLayer) -> None:
        super().__init__()
        arrays = {
            "mean": network.scaling.mean,
            "scale": network.scaling.scale,
            "keep": network.scaling.keep,
            "offset": network.offset,
        }
        if isinstance(network, Network):
            P, k, C = network.weights.shape
            arrays["gates"] = network.gates.T
            arrays["columns"] = network.weights.transpose(1, 2, 0).reshape(k, C * P)
        elif isinstance(network, ReluNetwork):
            arrays["hidden"] = network.hidden.T
            arrays["output"] = network.output
        else:
            raise TypeError(f"no torch form of {type(network).__name__}")
        for name, array in arrays.items():
            self.register_buffer(name, torch.tensor(np.asarray(array, np.float32)))
        self.gated = isinstance(network, Network)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw features (b, d) -> scores (b, C)."""
        x = ((x - self.mean) / self.scale * self.keep).clamp(-_FARTHEST, _FARTHEST)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        if not self.gated:
            return self.offset + (x @ self.hidden).relu() @ self.output
        P = self.gates.shape[1]
        if P == 0:
            return self.offset + 0 * x[:, :1]
        on = (x @ self.gates >= 0).to(x.dtype)
        return self.offset + torch.einsum("bcp,bp->bc", (x @ self.columns).view(len(x), -1, P), on)


def row_losses(scores: torch.Tensor, labels: torch.Tensor, loss: str) -> torch.Tensor:
    """(b,) losses as :mod:`convex_heads.losses` has them.

    Args:
        scores: (b, C); C = 1 for the logistic loss.
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
        target = labels.to(scores.dtype)
        return F.binary_cross_entropy_with_logits(scores[:, 0], target, reduction="none")
    target = F.one_hot(labels, scores.shape[1]).to(scores.dtype)
    return 0.5 * (scores - target).square().sum(dim=1)

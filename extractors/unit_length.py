"""Vectors scaled to length 1: one formula, for arrays and for tensors with gradients.

A row of zeros stays. Squares of very large and of very small numbers leave the range of float32,
so rows whose length would are first divided by their largest entry; all others are as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_SHORTEST = 1e-15  # below it, squares lose their digits


def unit_length(features: np.ndarray) -> np.ndarray:
    """(b, d) of any floating type -> the same, rows of length 1.

    Example:
        >>> unit_length(np.array([[3.0, 4.0], [0.0, 0.0], [1e30, 0.0]], np.float32)).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0], [1.0, 0.0]]
    """
    with np.errstate(over="ignore"):
        length = np.linalg.norm(features, axis=1, keepdims=True)
    plain = (length > _SHORTEST) & np.isfinite(length)
    if not plain.all():
        largest = np.abs(features).max(axis=1, keepdims=True, initial=0)
        features = features / np.where(plain | (largest == 0), 1, largest).astype(features.dtype)
        length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1).astype(features.dtype)


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """As ``unit_length``, of tensors; without branches, so that exporters can follow.

    Example:
        >>> import torch
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e30, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0], [1.0, 0.0]]
    """
    import torch

    one = torch.ones_like(features[:, :1])
    length = torch.linalg.vector_norm(features.detach(), dim=1, keepdim=True)
    largest = features.detach().abs().amax(dim=1, keepdim=True)
    # An infinite length fails the second comparison; exporters know no isfinite.
    plain = (length > _SHORTEST) & (length < torch.finfo(features.dtype).max)
    features = features / torch.where(plain | (largest == 0), one, largest)
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / torch.where(length > 0, length, one)

"""The vectors of a row's tokens (or patches) -> one vector. Pure tensor functions, in float32.

    hidden  (b, t, d)   vectors of t tokens in b rows, padded on the right
    mask    (b, t)      1 where there is a token, 0 where there is padding; every row has a 1

    mean      sum_t m_t h_t / sum_t m_t
    cls       h_1
    last      h_t of the last t with m_t = 1
    max       max over m_t = 1, per component
    cls+mean  [cls, mean], 2 d wide
    gem       M(h+) - M(h-), M(x) = (mean of x^3)^(1/3), h+ and h- the positive and negative parts

The generalised mean (Radenovic, Tolias and Chum 2019, equation 3, p = 3) is theirs for features
that are never negative. The vectors of transformers are; taking the two signs apart keeps both, and
keeps the root well-conditioned, which the cube root of a sum that cancels is not.
"""

from __future__ import annotations

from typing import get_args

import torch

from extractors.errors import InputError
from extractors.options import Pooling

_POWER = 3.0


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: Pooling) -> torch.Tensor:
    """One vector a row.

    Args:
        hidden: (b, t, d), any floating dtype.
        mask: (b, t) with at least one 1 in each row, padding on the right.
        how: see the module's text.

    Returns:
        (b, d) float32; (b, 2 d) for "cls+mean".

    Raises:
        InputError: an unknown pooling.

    Example:
        >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> pool(hidden, torch.tensor([[1, 1, 0]]), "mean").tolist()
        [[2.0]]
    """
    hidden = hidden.float()
    if how == "cls":
        return hidden[:, 0]
    if how == "cls+mean":
        return torch.cat([hidden[:, 0], pool(hidden, mask, "mean")], dim=1)
    if how == "last":
        last = mask.sum(dim=1).long() - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    real = mask.unsqueeze(-1).bool()
    if how == "max":
        return hidden.masked_fill(~real, float("-inf")).amax(dim=1)
    hidden = hidden.masked_fill(~real, 0.0)
    count = mask.sum(dim=1, keepdim=True).to(hidden.dtype)
    if how == "mean":
        return hidden.sum(dim=1) / count
    if how == "gem":
        return _power_mean(hidden.clamp(min=0), count) - _power_mean((-hidden).clamp(min=0), count)
    raise InputError(f"--pooling {how}: must be one of {', '.join(get_args(Pooling))}")


def _power_mean(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """(b, t, d) >= 0 -> (b, d); scaled by the largest value, so that no power overflows."""
    largest = values.amax(dim=1)
    scaled = values / largest.clamp(min=torch.finfo(values.dtype).tiny).unsqueeze(1)
    return largest * ((scaled**_POWER).sum(dim=1) / count) ** (1 / _POWER)


def pool_layers(hidden: list[torch.Tensor], mask: torch.Tensor, how: Pooling) -> torch.Tensor:
    """Pool each layer and put the results side by side: (b, layers * d) float32."""
    return torch.cat([pool(layer, mask, how) for layer in hidden], dim=1)


def select_layers(
    hidden_states: tuple[torch.Tensor, ...], last: torch.Tensor, layers: tuple[int, ...], name: str
) -> list[torch.Tensor]:
    """The asked-for entries of a transformer's L + 1 hidden states, embeddings first.

    Args:
        hidden_states: embeddings and the L layers' outputs.
        last: what layer -1 is: the model's last hidden state, after its final norm.
        layers: -1 is the last layer, 0 the embeddings.
        name: the backbone's, for the message.

    Raises:
        InputError: the model has no such layer.
    """
    depth = len(hidden_states) - 1
    chosen = []
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise InputError(
                f"--layer {layer}: {name} has {depth} layers; -1 to -{depth} count from the last, "
                f"1 to {depth} from the first, 0 is the embeddings"
            )
        chosen.append(last if layer in (-1, depth) else hidden_states[layer])
    return chosen

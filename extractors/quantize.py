"""Linear layers in 8-bit integers, for CPUs: about four times as fast as their float32 products.

For a layer y = W x + b with W (n, d), and tokens x_t::

    W_i  ~  w_i Q_i     w_i = max_j |W_ij| / 127     one scale for each output, made once
    x_t  ~  s_t q_t     s_t = max_j |x_tj| / 127     one scale for each token, made as it passes
    y_ti =  s_t w_i (Q_i . q_t) + b_i                the product is exact, in 32-bit integers

A scale for each token instead of one for the whole batch nearly halves the error. Everything else
(attention, norms, convolutions) stays in float32. After Dettmers et al. 2022, LLM.int8(), section
3, without their decomposition of outliers.

Where a value falls between two integers, a last bit decides, and the step is large. So a row's
vector does depend on its batch here, unless it is alone in it: adapters encode int8 rows one by
one, which on a CPU costs little.
"""

from __future__ import annotations

import torch

from extractors.errors import InputError

_LARGEST = 127


class Int8Linear(torch.nn.Module):
    """What takes the place of a ``torch.nn.Linear``.

    Example:
        >>> plain = torch.nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = plain.weight.copy_(torch.tensor([[1.0, -0.4]]))
        >>> round(Int8Linear(plain)(torch.tensor([[2.0, 2.0]])).item(), 1)
        1.2
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = _scale(weight)
        whole = (weight / scale).round().to(torch.int8)
        self.weight: torch.Tensor  # (d, n) int8
        self.scale: torch.Tensor  # (n,)
        self.bias: torch.Tensor | None
        self.register_buffer("weight", whole.t().contiguous())
        self.register_buffer("scale", scale.squeeze(1).contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., n) float32."""
        rows = x.reshape(-1, x.shape[-1])
        scale = _scale(rows)
        whole = rows.div(scale).round_().to(torch.int8)
        found = torch._int_mm(whole, self.weight)  # pyright: ignore[reportPrivateImportUsage]
        found = found.float().mul_(scale)
        if self.bias is None:
            found.mul_(self.scale)
        else:
            torch.addcmul(self.bias, found, self.scale, out=found)
        return found.view(*x.shape[:-1], -1)


def _scale(rows: torch.Tensor) -> torch.Tensor:
    """(n, d) -> (n, 1): what 127 stands for in a row, over 127; never zero."""
    # Two reductions read the rows twice; abs() would write them as well.
    largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg())
    return largest.clamp(min=torch.finfo(rows.dtype).tiny * _LARGEST) / _LARGEST


def quantize_linear(model: torch.nn.Module, name: str, device: str) -> None:
    """Exchange every linear layer of a model, in place.

    Args:
        model: in float32, on the CPU.
        name: the backbone's, for the message.
        device: where it will run.

    Raises:
        InputError: not a CPU, or no linear layers.
    """
    if torch.device(device).type != "cpu":
        raise InputError(
            f"--quantize int8 is for CPUs and this is {device}: use --autocast bfloat16, or "
            "--device cpu"
        )
    found = [
        (parent, child, layer)
        for parent in model.modules()
        for child, layer in parent.named_children()
        if type(layer) is torch.nn.Linear  # a subclass is there because its weights are read
    ]
    if not found:
        raise InputError(f"--quantize int8: {name} has no linear layers")
    for parent, child, layer in found:
        setattr(parent, child, Int8Linear(layer))

"""How a forward pass computes: float32 that means it, or half precision whose error is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from extractors.base import Extractor
from extractors.options import Autocast

MEASURED_ROWS = 64


@contextmanager
def computing(device: str, autocast: Autocast) -> Iterator[None]:
    """No gradients; on a GPU no TF32; matrix products in half precision where that was chosen.

    TF32 is torch's default for convolutions on a GPU. It keeps ten bits of a number, and which
    algorithm uses it depends on the batch, so that a row would change with its neighbours.
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.startswith("cuda"):
            flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
            stack.enter_context(flags)
        if autocast != "none":
            kind = getattr(torch, autocast)
            stack.enter_context(torch.autocast(torch.device(device).type, dtype=kind))
        yield


def relative_errors(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """(n,) distance of each row from the exact one, as a fraction of the exact one's length.

    Example:
        >>> relative_errors(np.array([[3.0, 4.5]]), np.array([[3.0, 4.0]])).tolist()
        [0.1]
    """
    exact = np.asarray(exact, np.float64)
    distance = np.linalg.norm(np.asarray(found, np.float64) - exact, axis=1)
    return distance / np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float64).tiny)


def measure_error(
    approximate: Extractor, exact: Extractor, prepared: Sequence[Any]
) -> dict[str, Any]:
    """How far the vectors of some rows are from those in float32.

    Args:
        approximate: the extractor in use.
        exact: the same backbone in float32.
        prepared: n >= 1 rows of the data set itself; ``MEASURED_ROWS`` are plenty.

    Returns:
        ``rows``, and the ``mean`` and ``max`` over them of
            ``|found - exact| / |exact|``.
    """
    step = max(1, min(approximate.batch_size, exact.batch_size))
    errors = np.concatenate(
        [
            relative_errors(approximate.encode(batch), exact.encode(batch))
            for batch in (prepared[i : i + step] for i in range(0, len(prepared), step))
        ]
    )
    return {
        "rows": len(errors),
        "mean": float(f"{errors.mean():.3g}"),
        "max": float(f"{errors.max():.3g}"),
    }

"""What tests of features share: how far rows are from others, and pictures to encode."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def row_errors(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference in any row, relative to that row's largest value."""
    scale = np.abs(expected).max(axis=1)
    return float((np.abs(found - expected).max(axis=1) / scale).max())


def photograph(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    size = (40 + seed % 7, 30 + seed % 5)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()

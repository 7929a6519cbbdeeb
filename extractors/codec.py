"""How features are kept on disk: as float32, as float16, or as int8 with one scale per row.

    float32   x                              4 bytes per number, exact
    float16   x rounded to half precision    2 bytes, relative error about 2^-11
    int8      q = round(x / s), s = max|x| / 127, s float32 per row    1 byte, error at most s / 2

Every row is encoded by itself, so its bytes do not depend on the shard it lies in. What the
encoding costs is measured, row by row, as ||x - decoded|| / ||x||.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from extractors.errors import InputError

StoreDtype = Literal["float32", "float16", "int8"]
DTYPES: tuple[str, ...] = get_args(StoreDtype)
_LEVELS = 127
# Above it, 127 * scale would round to infinity.
_LARGEST_SCALE = np.nextafter(np.float32(np.finfo(np.float32).max / _LEVELS), np.float32(0))


class Encoded(NamedTuple):
    """Features as they are stored."""

    values: np.ndarray  # (n, dim) float32, float16 or int8
    scale: np.ndarray | None  # (n,) float32 for int8, else None
    error: np.ndarray  # (n,) float64, relative to the row's norm


def check_dtype(dtype: str) -> None:
    """Refuse what no store holds.

    Raises:
        InputError: not one of ``DTYPES``.
    """
    if dtype not in DTYPES:
        raise InputError(f"features are stored as {', '.join(DTYPES)}, not as '{dtype}'")


def encode_features(features: np.ndarray, dtype: str, ids: Sequence[str]) -> Encoded:
    """Encode rows and measure what it costs.

    Args:
        features: (n, dim) float32, finite.
        dtype: one of ``DTYPES``.
        ids: n names, for the message.

    Raises:
        InputError: an unknown dtype, or a number that float16 cannot hold.

    Example:
        >>> rows = np.array([[1.0, -0.5, 0.25]], np.float32)
        >>> encoded = encode_features(rows, "int8", ["a"])
        >>> encoded.values.tolist(), bool(encoded.error[0] < 0.01)
        ([[127, -64, 32]], True)
    """
    check_dtype(dtype)
    scale = None
    if dtype == "float32":
        return Encoded(features, None, np.zeros(len(features)))
    largest = np.abs(features).max(axis=1, initial=0)
    if dtype == "float16":
        too_large = largest >= 65520  # what rounds to infinity
        if too_large.any():
            row = int(np.argmax(too_large))
            raise InputError(
                f"row '{ids[row]}' has features up to {largest[row]:.3g}, float16 ends at 65504: "
                "store them as int8 or float32"
            )
        values = features.astype(np.float16)
    else:
        scale = np.minimum(largest / np.float32(_LEVELS), _LARGEST_SCALE).astype(np.float32)
        # In double precision, or rows of tiny numbers would divide by a rounded scale.
        steps = np.divide(
            features,
            scale[:, None],
            out=np.zeros(features.shape),
            where=scale[:, None] > 0,
            dtype=np.float64,
        )
        values = np.rint(steps).clip(-_LEVELS, _LEVELS).astype(np.int8)
    exact = features.astype(np.float64)
    lost = np.linalg.norm(exact - decode_features(values, scale), axis=1)
    norm = np.linalg.norm(exact, axis=1)
    return Encoded(values, scale, np.divide(lost, norm, out=np.zeros_like(lost), where=norm > 0))


def decode_features(values: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """(n, dim) float32 from what is stored; float32 values come back as they are, uncopied.

    Example:
        >>> decode_features(np.array([[127, -64]], np.int8), np.array([0.5], np.float32))
        array([[ 63.5, -32. ]], dtype=float32)
    """
    if scale is None:
        return values.astype(np.float32, copy=False)
    return np.multiply(values, scale[:, None], dtype=np.float32)

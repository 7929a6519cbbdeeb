"""Rows that are feature vectors already: checked, made float32, stored like any others.

What computed them is not known here, so the data's own fingerprint stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from extractors.errors import BadRow, InputError

ADAPTER = "precomputed/1"
MAX_WIDTH = 10**6


def canonical_width(text: str) -> str:
    """``"384"`` -> ``"384"``; refuses everything but a width.

    Raises:
        InputError: no whole number from 1 to a million.

    Example:
        >>> canonical_width("0384")
        '384'
    """
    digits = text.lstrip("0")  # few enough of them to be read as a number at all
    plain = text.isdecimal() and text.isascii() and 0 < len(digits) <= len(str(MAX_WIDTH))
    if not plain or int(digits) > MAX_WIDTH:
        raise InputError(
            f"'precomputed:{text}': write 'precomputed:DIM', the number of features in a row"
        )
    return digits


class PrecomputedExtractor:
    """The identity on vectors of one width.

    Args:
        dim: width of the vectors.

    Example:
        >>> ready = PrecomputedExtractor(3)
        >>> ready.encode([ready.prepare([1, 2, 3])])
        array([[1., 2., 3.]], dtype=float32)
    """

    modality: Literal["features"] = "features"
    batch_size = 4096
    max_length = None

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.name = f"precomputed:{dim}"

    def fingerprint(self) -> dict[str, Any]:
        return {
            "adapter": ADAPTER,
            "source": "precomputed",
            "id": str(self.dim),
            "dtype": "float32",
        }

    def prepare(self, item: Any) -> np.ndarray:
        """(dim,) float32.

        Raises:
            BadRow: another width, no numbers, or values that are missing or infinite.
            InputError: a tensor that numpy cannot read, which no row is at fault for.
        """
        if isinstance(item, np.ma.MaskedArray) and np.ma.is_masked(item):
            raise BadRow("a feature is missing (masked)")
        try:
            vector = np.asarray(item)
        except ValueError as error:  # a list of lists of several lengths
            raise BadRow("the features are no vector of numbers") from error
        except (RuntimeError, TypeError) as error:  # it needs a gradient, is bfloat16, on a GPU
            raise InputError(
                f"features as {type(item).__name__} that numpy cannot read: give arrays, of a "
                "torch tensor `features.detach().float().cpu().numpy()`"
            ) from error
        if vector.ndim != 1 or vector.dtype.kind not in "fiub":
            raise BadRow(
                f"a vector of numbers expected, got {type(item).__name__} of shape {vector.shape}"
            )
        if len(vector) != self.dim:
            raise BadRow(f"{len(vector)} features instead of {self.dim}")
        with np.errstate(over="ignore"):
            vector = vector.astype(np.float32)
        if not np.isfinite(vector).all():
            raise BadRow("a feature is missing, infinite, or too large for float32")
        return vector

    def token_counts(self, prepared: Sequence[np.ndarray]) -> None:
        return None

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(list(prepared))

"""Rows of a data set as a report may show them when it was asked to: a short text, a thumbnail."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tasks.data.load import Dataset

__all__ = ["Samples"]

_CHARACTERS = 240
_PIXELS = 64


class Samples:
    """Looks rows up by split and id; nothing is opened before it is asked for.

    Example:
        >>> from tasks.data.load import load_task
        >>> digits = load_task("digits", train_rows=50, test_rows=20)
        >>> samples = Samples(digits)
        >>> samples.thumbnail("test", digits.splits["test"].ids[0])[:22]
        'data:image/png;base64,'
    """

    def __init__(self, dataset: Dataset) -> None:
        self._rows = {
            name: dict(zip(split.ids, split.inputs, strict=True))
            for name, split in dataset.splits.items()
        }

    def text(self, split: str, row: str) -> str | None:
        """The row's text, cut to 240 characters; None where it is no text."""
        raw = self._rows.get(split, {}).get(row)
        if not isinstance(raw, str):
            return None
        text = " ".join(raw.split())
        return text if len(text) <= _CHARACTERS else text[:_CHARACTERS].rstrip() + "..."

    def thumbnail(self, split: str, row: str) -> str | None:
        """The row's image as a data URL of at most 64 pixels a side; None where it is no image."""
        raw: Any = self._rows.get(split, {}).get(row)
        if raw is None or isinstance(raw, str) or (isinstance(raw, np.ndarray) and raw.ndim < 2):
            return None
        from PIL import Image, ImageOps

        try:
            if isinstance(raw, np.ndarray):
                image = Image.fromarray(raw)
            else:
                image = Image.open(raw if isinstance(raw, Path) else io.BytesIO(raw))
            image = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, TypeError):  # the row could be encoded; the picture is extra
            return None
        image.thumbnail((_PIXELS, _PIXELS))
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"

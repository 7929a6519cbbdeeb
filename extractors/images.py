"""One raw image of any accepted kind -> an upright RGB ``PIL.Image``, or the reason why not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.errors import BadRow

if TYPE_CHECKING:
    from PIL.Image import Image


def open_rgb(item: Any) -> Image:
    """Decode an image completely.

    Args:
        item: ``bytes`` (an encoded file), ``pathlib.Path``, ``PIL.Image.Image``, or a uint8 array
            (H, W) or (H, W, 3).

    Returns:
        Mode RGB, turned upright by its EXIF orientation; 16-bit grey is scaled to 8 bits;
        an alpha channel is dropped, as in the pipelines that vision backbones were trained with.

    Raises:
        BadRow: not an image, or a damaged one; a path is named in the reason.

    Example:
        >>> import numpy as np
        >>> open_rgb(np.zeros((4, 6), dtype=np.uint8)).size
        (6, 4)
    """
    from PIL import Image, ImageOps

    where = f"{item}: " if isinstance(item, Path) else ""
    try:
        if isinstance(item, Image.Image):
            image = item
        elif isinstance(item, np.ndarray):
            image = Image.fromarray(_checked_array(item))
        elif isinstance(item, (bytes, bytearray, memoryview)):
            image = Image.open(io.BytesIO(item))
        elif isinstance(item, Path):
            image = Image.open(io.BytesIO(item.read_bytes()))
        else:
            raise BadRow(
                f"image expected (bytes, path, PIL image or uint8 array), got {type(item).__name__}"
            )
        return _to_rgb(ImageOps.exif_transpose(image))
    except BadRow:
        raise
    except OSError as error:  # unknown format, truncated file, unreadable path
        reason = error.strerror or "the image does not decode"
        raise BadRow(f"{where}{reason}") from error
    except Exception as error:  # damaged files raise nearly anything inside Pillow's decoders
        raise BadRow(f"{where}the image does not decode ({type(error).__name__})") from error


def _checked_array(array: np.ndarray) -> np.ndarray:
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not grey_or_rgb or not array.size:
        raise BadRow(
            f"an image array must be uint8 of shape (H, W) or (H, W, 3), got {array.dtype} of "
            f"shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def _to_rgb(image: Image) -> Image:
    if image.mode.startswith("I") or image.mode == "F":
        from PIL import Image as pillow

        # Pillow clips these to 255 instead of scaling them, which turns 16-bit scans white.
        values = np.asarray(image, dtype=np.float32)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values * np.float32(255 / 65535)
        image = pillow.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return image.convert("RGB")

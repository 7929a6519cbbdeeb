"""One raw image of any accepted kind -> an upright RGB ``PIL.Image``, or the reason why not."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.errors import BadRow, MachineError

if TYPE_CHECKING:
    from PIL.Image import Image

# What a path can be wrong about; any other failure of the system is not the row's.
_OF_THE_PATH = {
    *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO),
}


def open_rgb(item: Any) -> Image:
    """Decode an image completely.

    Args:
        item: ``bytes`` (an encoded file), ``pathlib.Path``, ``PIL.Image.Image``, or a uint8 array
            (H, W) or (H, W, 3).

    Returns:
        Mode RGB, turned upright by its EXIF orientation; an alpha channel is dropped, as in the
        pipelines that vision backbones were trained with. Grey in integers of more than 8 bits
        (Pillow's modes I and I;16) reaches from 0 to 65535 and is scaled to 8 bits, grey in
        floating point (mode F) from 0 to 255: what a value means is the mode's, never the image's.

    Raises:
        BadRow: not an image, a damaged one, one of too many pixels, or grey outside that range; a
            path is named in the reason.
        MachineError: no memory, or the disk or the system failed.

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
    except BadRow as error:
        raise BadRow(f"{where}{error}") from error
    except MemoryError as error:
        raise MachineError(f"{where}not enough memory to decode an image") from error
    except OSError as error:  # unknown format, truncated file, unreadable path
        if error.errno is not None and error.errno not in _OF_THE_PATH:
            raise MachineError(f"{where}cannot be read: {error.strerror}") from error
        reason = error.strerror or "the image does not decode"
        raise BadRow(f"{where}{reason}") from error
    except Image.DecompressionBombError as error:
        most = f"{2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million"
        raise BadRow(f"{where}the image has more than {most} pixels: make it smaller") from error
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
        most = 255 if image.mode == "F" else 65535
        if values.size and not (values.min() >= 0 and values.max() <= most):  # a NaN is neither
            raise BadRow(
                f"grey values of an image of mode {image.mode} must lie between 0 and {most}, "
                f"got {values.min():g} to {values.max():g}"
            )
        if image.mode == "F" and 0 < values.max(initial=0) <= 1:
            raise BadRow("grey values between 0 and 1 would be black: multiply them by 255")
        values = values * np.float32(255 / most)
        image = pillow.fromarray(np.rint(values).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # by way of which Pillow has nothing to warn of
    return image.convert("RGB")

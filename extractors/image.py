"""What adapters of image models share: images in, batches of pixels, one vector an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from extractors.backbone import TorchBackbone
from extractors.errors import BadRow
from extractors.precision import computing
from extractors.raw_image import open_rgb
from extractors.unit_length import unit_length, unit_rows

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


# Sides of an image to each other. Its short side is brought to hundreds of pixels: a file of a few
# hundred bytes, 60,000 x 1, would take gigabytes.
_LONGEST = 1000


class ImageBackbone(TorchBackbone):
    """Base of the image adapters; one says how an image becomes pixels, and pixels vectors."""

    modality: Literal["image"] = "image"
    max_length = None

    @property
    def batch_size(self) -> int:
        """Images per forward pass; on a CPU small batches are faster, they stay in the cache."""
        if self.options.quantize == "int8":
            return 1  # see ``quantize.py``
        return 128 if self._device.startswith("cuda") else 8

    def prepare(self, item: Any) -> torch.Tensor:
        """(channels, height, width) float32, as the model was trained to see images.

        Raises:
            BadRow: the image does not decode, or is a strip.
        """
        image, read = open_rgb(item), self._reader  # what fails to load is no bad row
        if max(image.size) > _LONGEST * min(image.size):
            raise BadRow(
                f"the image is a strip of {image.width} x {image.height} pixels: crop it to at "
                f"most {_LONGEST} times as long as it is wide"
            )
        try:
            return read(image)
        except (OSError, ValueError, ZeroDivisionError) as error:
            raise BadRow(f"the image cannot be resized: size {image.size}") from error

    def token_counts(self, prepared: Sequence[torch.Tensor]) -> None:
        """Nothing: images have no tokens."""
        return None

    def encode(self, prepared: Sequence[torch.Tensor]) -> np.ndarray:
        """(b, dim) float32 features of b prepared images."""
        with computing(self._device, self.options.autocast):
            features = self._vectors(self.tensors(prepared)["pixels"]).float().cpu().numpy()
        return unit_length(features) if self.options.normalize == "l2" else features

    def tensors(self, prepared: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What one differentiable pass over prepared images is given."""
        import torch

        return {"pixels": torch.stack(list(prepared)).to(self._device)}

    def features(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """(b, dim) features of one pass, with gradients where they are switched on."""
        found = self._vectors(tensors["pixels"]).float()
        return unit_rows(found) if self.options.normalize == "l2" else found

    def _probe(self) -> torch.Tensor:
        return self.prepare(np.zeros((32, 32), dtype=np.uint8))

    # What an adapter says.

    @property
    def _reader(self) -> Callable[[Image], torch.Tensor]:
        """An RGB image -> what the model reads of it; loads the backbone."""
        raise NotImplementedError

    def _vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        """(b, channels, height, width) -> (b, dim), before any scaling that was asked for."""
        raise NotImplementedError

"""Image backbones through transformers: ViT, DINOv2, ConvNeXt, the towers of CLIP and SigLIP.

Preprocessing is the model's own image processor, on Pillow, so that it is the same with and without
a compiled torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from extractors.backbone import ModelFiles, TorchBackbone
from extractors.errors import BadRow, InputError
from extractors.hf_config import read_config
from extractors.images import open_rgb
from extractors.options import Pooling
from extractors.precision import computing
from extractors.quiet import quiet_loading
from extractors.torchvision_compat import ensure_torchvision_imports
from extractors.transformer import check_complete
from extractors.unit_length import unit_length, unit_rows

if TYPE_CHECKING:
    import torch

_OPTIONS = {"layer", "pooling", "projection", "normalize", "autocast", "quantize"}

# Kinds of model that hold an image and a text tower: the classes of the image tower alone, before
# and after the projection into the common space (None: there is no projection).
_TOWERS = {
    "clip": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipVisionModel", None),
    "siglip_vision_model": ("SiglipVisionModel", None),
}
# Their pooler is a layer for classifiers, absent or untrained elsewhere; the class token is what
# they were trained to give.
_CLASS_TOKEN = {"vit", "deit", "beit", "vit_mae", "vit_msn", "dinov2", "dinov2_with_registers"}


class TransformerImageExtractor(TorchBackbone):
    """A transformers vision model as a frozen extractor, in float32.

    By default: the class token of ViT and DINOv2, else the model's pooled output (CLIP's before its
    projection, as in the linear probes of its authors), else the mean over the patches.
    """

    modality: Literal["image"] = "image"
    max_length = None
    adapter = "transformers-image/1"

    @property
    def batch_size(self) -> int:
        """Images per forward pass; on a CPU small batches are faster, they stay in the cache."""
        if self.options.quantize == "int8":
            return 1  # see ``quantize.py``
        return 128 if self._device.startswith("cuda") else 8

    def fingerprint(self) -> dict[str, Any]:
        self.options.allow(_OPTIONS, f"the image model {self.name}")
        return super().fingerprint() | {"preprocessing": "the model's image processor (pil)"}

    def prepare(self, item: Any) -> torch.Tensor:
        """(channels, height, width) float32, as the model's image processor makes it.

        Raises:
            BadRow: the image does not decode.
        """
        processor = self._processor
        image = open_rgb(item)
        try:
            return processor(images=image, return_tensors="pt")["pixel_values"][0]
        except (OSError, ValueError, ZeroDivisionError) as error:
            raise BadRow(f"the image cannot be resized: size {image.size}") from error

    def token_counts(self, prepared: Sequence[torch.Tensor]) -> None:
        """Nothing: images have no tokens."""
        return None

    def encode(self, prepared: Sequence[torch.Tensor]) -> np.ndarray:
        """(b, dim) float32 features of b prepared images."""
        with computing(self._device, self.options.autocast):
            features = self._forward(self.tensors(prepared)["pixels"]).float().cpu().numpy()
        return unit_length(features) if self.options.normalize == "l2" else features

    def tensors(self, prepared: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What one differentiable pass over prepared images is given."""
        import torch

        return {"pixels": torch.stack(list(prepared)).to(self._device)}

    def features(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """(b, dim) features of one pass, with gradients where they are switched on."""
        found = self._forward(tensors["pixels"]).float()
        return unit_rows(found) if self.options.normalize == "l2" else found

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        from extractors.pooling import select_layers

        layers, pooling = self.options.layer, self.options.pooling
        if self.options.projection is not None and (layers is not None or pooling is not None):
            raise InputError(
                "--projection: the projection belongs to the model's own pooled output; leave "
                "--layer and --pooling away"
            )
        states = layers is not None and layers != (-1,)
        found = self._model(pixel_values=pixels, output_hidden_states=states)
        if layers is None and pooling is None:
            if self.options.projection == "after":
                return found.image_embeds
            if self._kind not in _CLASS_TOKEN and found.get("pooler_output") is not None:
                return found.pooler_output.flatten(1)
        last = found.last_hidden_state
        hidden = [last]
        if states and layers is not None:
            hidden = select_layers(found.hidden_states, last, layers, self.name)
        how = pooling or ("cls" if self._kind in _CLASS_TOKEN else "mean")
        return torch.cat([self._pool(layer, pixels, how) for layer in hidden], dim=1)

    def _pool(self, layer: torch.Tensor, pixels: torch.Tensor, how: Pooling) -> torch.Tensor:
        """One layer, (b, tokens, d) or a map (b, d, h, w), pooled over its patches.

        Class and register tokens come first and are no patches.
        """
        import torch

        from extractors.pooling import pool

        first = 0
        if layer.ndim == 4:
            layer = layer.flatten(2).transpose(1, 2)
        elif isinstance(patch := getattr(self._model.config, "patch_size", None), int):
            grid = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
            first = max(0, layer.shape[1] - grid)
        if how in ("cls", "cls+mean") and not first:
            raise InputError(f"--pooling {how}: {self.name} has no class token; use mean")
        mask = torch.ones(layer.shape[:2], dtype=torch.long, device=layer.device)
        if how not in ("cls", "last"):
            mask[:, :first] = 0
        return pool(layer, mask, how)

    def _probe(self) -> torch.Tensor:
        return self.prepare(np.zeros((32, 32), dtype=np.uint8))

    @cached_property
    def _kind(self) -> str:
        return str(read_config(self._parsed).get("model_type"))

    @cached_property
    def _processor(self) -> Any:
        return self._loaded[0]

    @cached_property
    def _model(self) -> Any:
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        self.fingerprint()  # refuses what cannot be meant before gigabytes are read
        self._check_projection()
        processor, model = self._load(self._load_from)
        self._finished(model.float())
        return processor, model.float().eval().to(self._device)

    def _check_projection(self) -> None:
        if self._kind in _TOWERS:
            if self.options.projection and _TOWERS[self._kind][1] is None:
                raise InputError(f"--projection: {self.name} ({self._kind}) has no projection")
        elif self.options.projection:
            raise InputError(f"--projection: {self.name} ({self._kind}) has no projection")
        elif "vision_config" in read_config(self._parsed):
            raise InputError(
                f"{self.name} ({self._kind}) is a model of images and texts whose image tower is "
                f"not known here; known are {', '.join(sorted(_TOWERS))}"
            )

    def _load_from(self, files: ModelFiles) -> tuple[Any, Any]:
        ensure_torchvision_imports()
        import torch
        import transformers

        before, after = _TOWERS.get(self._kind, ("AutoModel", None))
        tower = after if self.options.projection == "after" and after else before
        options = {
            "revision": files.commit or "main",
            "local_files_only": files.local_only,
        }
        auto = {"trust_remote_code": self._trusted}
        with quiet_loading(bars=not files.local_only):
            processor = transformers.AutoImageProcessor.from_pretrained(
                files.path, backend="pil", **auto, **options
            )
            more: dict[str, Any] = auto if tower == "AutoModel" else {}
            if tower == after and self._kind == "clip":
                # The width of the projection is said outside the tower's own configuration.
                both = transformers.AutoConfig.from_pretrained(files.path, **options)
                both.vision_config.projection_dim = both.projection_dim
                more = {"config": both.vision_config}
            model, report = getattr(transformers, tower).from_pretrained(
                files.path, dtype=torch.float32, output_loading_info=True, **more, **options
            )
        check_complete(report["missing_keys"], self.name)
        return processor, model

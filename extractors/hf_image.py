"""Image backbones through transformers: ViT, DINOv2, ConvNeXt, the towers of CLIP and SigLIP.

Preprocessing is the model's own image processor, on Pillow, so that it is the same with and without
a compiled torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from extractors.backbone import ModelFiles
from extractors.errors import InputError
from extractors.hf_config import read_config
from extractors.image import ImageBackbone
from extractors.options import Pooling
from extractors.quiet import quiet_loading
from extractors.torchvision_compat import ensure_torchvision_imports
from extractors.transformer import check_complete

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

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


class TransformerImageExtractor(ImageBackbone):
    """A transformers vision model as a frozen extractor, in float32.

    By default: the class token of ViT and DINOv2, else the model's pooled output (CLIP's before its
    projection, as in the linear probes of its authors), else the mean over the patches.
    """

    adapter = "transformers-image/1"

    def fingerprint(self) -> dict[str, Any]:
        self.options.allow(_OPTIONS, f"the image model {self.name}")
        found = super().fingerprint() | {"preprocessing": "the model's image processor (pil)"}
        return found | ({"mask_ratio": 0} if self._kind == "vit_mae" else {})

    @property
    def _reader(self) -> Callable[[Image], torch.Tensor]:
        processor = self._processor
        return lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0]

    def _vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        from extractors.pooling import select_layers

        layers, pooling = self.options.layer, self.options.pooling
        if self.options.projection is not None and (layers is not None or pooling is not None):
            raise InputError(
                "--projection: the projection belongs to the model's own pooled output; leave "
                "--layer and --pooling away"
            )
        states = layers is not None and layers != (-1,)
        found = self._model(pixel_values=pixels, output_hidden_states=states, **self._seen(pixels))
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

    def _seen(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What makes a masked autoencoder see every patch, each in its place.

        Left to itself it draws at every pass which patches it hides, and an order of the others.
        """
        import torch

        if self._kind != "vit_mae":
            return {}
        patches = self._model.embeddings.patch_embeddings.num_patches
        order = torch.arange(patches, dtype=torch.float32, device=pixels.device)
        return {"noise": order.expand(pixels.shape[0], patches)}

    def _pool(self, layer: torch.Tensor, pixels: torch.Tensor, how: Pooling) -> torch.Tensor:
        """One layer, (b, tokens, d) or a map (b, d, h, w), pooled over its patches.

        Class and register tokens come first and are no patches.
        """
        import torch

        from extractors.pooling import pool

        first = 0
        if layer.ndim == 4:
            layer = layer.flatten(2).transpose(1, 2)
        elif patch := getattr(self._model.config, "patch_size", None):
            height, width = (patch, patch) if isinstance(patch, int) else patch
            grid = (pixels.shape[-2] // height) * (pixels.shape[-1] // width)
            first = max(0, layer.shape[1] - grid)
        if how in ("cls", "cls+mean") and not first:
            raise InputError(f"--pooling {how}: {self.name} has no class token; use mean")
        mask = torch.ones(layer.shape[:2], dtype=torch.long, device=layer.device)
        if how not in ("cls", "last"):
            mask[:, :first] = 0
        return pool(layer, mask, how)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_config(self._parsed)

    @property
    def _kind(self) -> str:
        return str(self._config.get("model_type"))

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
        model = model.float()
        self._finished(model)
        return processor, model.eval().to(self._device)

    def _check_projection(self) -> None:
        if self._kind in _TOWERS:
            if self.options.projection and _TOWERS[self._kind][1] is None:
                raise InputError(f"--projection: {self.name} ({self._kind}) has no projection")
        elif self.options.projection:
            raise InputError(f"--projection: {self.name} ({self._kind}) has no projection")
        elif "vision_config" in self._config:
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
        if self._kind == "vit_mae":
            model.config.mask_ratio = 0.0  # see ``_seen``
        return processor, model

"""Image backbones through timm: by name, from a folder, or from any Hub repository.

Preprocessing is the model's own evaluation transform (size, crop, interpolation, mean and standard
deviation come with the weights and differ between models). The width of the features is read from
an output, since ``num_features`` is not always what ``num_classes=0`` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from extractors.backbone import ModelFiles
from extractors.errors import InputError, MachineError
from extractors.hub import HubModel, resolve_model
from extractors.image import ImageBackbone
from extractors.options import Pooling
from extractors.torchvision_compat import ensure_torchvision_imports

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_OPTIONS = {"layer", "pooling", "normalize", "autocast", "quantize"}


class TimmImageExtractor(ImageBackbone):
    """A timm model without its classifier as a frozen extractor, in float32.

    The name's id is a timm model name, ``hf-hub:OWNER/NAME`` or ``local-dir:PATH`` with
    ``config.json`` and ``model.safetensors``. By default the model's own pooled output, or the mean
    over positions of a model that gives out a map; with
    ``options.layer`` or ``options.pooling`` its feature maps (layers are the model's blocks or
    stages, -1 the last), pooled by the mean unless told otherwise.
    """

    adapter = "timm/1"

    def fingerprint(self) -> dict[str, Any]:
        self.options.allow(_OPTIONS, f"the timm model {self.name}")
        return super().fingerprint() | {"preprocessing": "the model's evaluation transform"}

    def _identity(self) -> dict[str, Any]:
        folder = self._parsed.folder
        # By this very name: beside weights of another one the library would open a pickle.
        needed = ("config.json", "model.safetensors")
        if folder is not None and not all((folder / file).is_file() for file in needed):
            raise InputError(
                f"{folder} is no timm model folder: it needs config.json and model.safetensors"
            )
        return super()._identity()

    @property
    def _reader(self) -> Callable[[Image], torch.Tensor]:
        transform = self._transform
        return transform if self._channels == 3 else lambda image: transform(image.convert("L"))

    def tensors(self, prepared: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What one differentiable pass over prepared images is given."""
        import torch

        pixels = super().tensors(prepared)["pixels"]
        return {"pixels": pixels.contiguous(memory_format=torch.channels_last)}

    def _vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        plain = self.options.layer is None and self.options.pooling is None
        return self._one_vector(self._model(pixels)) if plain else self._pooled(pixels)

    def _one_vector(self, found: torch.Tensor) -> torch.Tensor:
        """What the model gives out; the mean of the map of one for language models or detectors."""
        if found.ndim == 2:
            return found
        last = found.ndim == 3 or getattr(self._model, "output_fmt", "NCHW") == "NHWC"
        return found.float().mean(tuple(range(1, found.ndim - 1)) if last else (2, 3))

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Feature maps of the chosen blocks, pooled and put side by side."""
        import torch

        from extractors.pooling import pool

        how: Pooling = self.options.pooling or "mean"
        parts = []
        for tokens, first in self._maps(pixels):
            if how in ("cls", "cls+mean") and not first:
                raise InputError(f"--pooling {how}: {self.name} has no class token; use mean")
            mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
            if how in ("mean", "max", "gem", "cls+mean"):
                mask[:, :first] = 0  # a mean is over the patches alone
            parts.append(pool(tokens, mask, how))
        return torch.cat(parts, dim=1)

    def _maps(self, pixels: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
        """(b, tokens, d) of each chosen block, and how many tokens come before the patches."""
        import torch

        model: Any = self._model
        first = int(getattr(model, "num_prefix_tokens", 0))
        if self.options.layer is None:
            tokens = model.forward_features(pixels)
            if tokens.ndim == 4:
                last = getattr(model, "output_fmt", "NCHW") == "NHWC"
                tokens = tokens.flatten(1, 2) if last else tokens.flatten(2).transpose(1, 2)
            return [(tokens, first if tokens.ndim == 3 and first < tokens.shape[1] else 0)]
        if not hasattr(model, "forward_intermediates"):
            raise InputError(f"--layer: timm gives out no inner layers of {self.name}")
        found: list[tuple[torch.Tensor, int]] = []
        for layer in self.options.layer:
            options: dict[str, Any] = {"indices": [layer], "intermediates_only": True, "norm": True}
            try:
                if first:
                    maps, prefix = model.forward_intermediates(
                        pixels, return_prefix_tokens=True, **options
                    )[0]
                    patches = maps.flatten(2).transpose(1, 2)
                    found.append((torch.cat([prefix, patches], dim=1), prefix.shape[1]))
                else:
                    maps = model.forward_intermediates(pixels, **options)[0]
                    found.append((maps.flatten(2).transpose(1, 2), 0))
            except (AssertionError, IndexError) as error:
                depth = len(getattr(model, "feature_info", None) or getattr(model, "blocks", ()))
                raise InputError(
                    f"--layer {layer}: {self.name} has {depth} blocks or stages, 0 to {depth - 1}, "
                    f"or -1 to -{depth} from the last"
                ) from error
        return found

    @cached_property
    def _model(self) -> torch.nn.Module:
        self.fingerprint()  # refuses what cannot be loaded, in plain words
        import torch

        model = self._load(self._load_from).float()
        self._finished(model)

        # Convolutions are 15 to 60% faster with the channels innermost; other layers do not mind.
        layout = torch.channels_last
        return model.eval().to(self._device, memory_format=layout)  # type: ignore[call-overload]

    def _load_from(self, files: ModelFiles) -> torch.nn.Module:
        timm = _import_timm()
        if files.commit is None:
            return _create(timm, self._parsed.id, self.name)
        return _create(timm, f"hf-hub:{files.path}@{files.commit}", self.name)

    @cached_property
    def _data_config(self) -> dict[str, Any]:
        return _import_timm().data.resolve_model_data_config(self._model)

    @cached_property
    def _channels(self) -> int:
        channels = int(self._data_config["input_size"][0])
        if channels not in (1, 3):
            raise InputError(
                f"{self.name} reads images of {channels} channels; 1 or 3 are possible"
            )
        return channels

    @cached_property
    def _transform(self) -> Callable[[Any], torch.Tensor]:
        return _import_timm().data.create_transform(**self._data_config, is_training=False)

    @cached_property
    def _hub(self) -> HubModel:
        model, revision = self._parsed.id, self._parsed.revision
        if model.startswith("hf-hub:"):
            return resolve_model(model.removeprefix("hf-hub:"), revision)
        offline: MachineError | None = None
        if "." in model:  # ARCHITECTURE.TAG: by timm's convention the repository's name
            try:
                return resolve_model(f"timm/{model}", revision)
            except InputError:
                pass  # kept elsewhere, or no such model: timm's registry knows, below
            except MachineError as error:
                offline = error
        repository = _registered_repository(model)
        if offline is not None and repository == f"timm/{model}":
            raise offline
        return resolve_model(repository, revision)


def _import_timm() -> Any:
    ensure_torchvision_imports()
    import timm
    import timm.data

    return timm


def _create(timm: Any, model: str, name: str) -> torch.nn.Module:
    try:
        return timm.create_model(model, pretrained=True, num_classes=0)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if "out of memory" in str(error).lower():
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"timm cannot build {name}: {reason}") from error


def _registered_repository(model: str) -> str:
    """The Hub repository that timm's registry gives for a model name (imports torch).

    Raises:
        InputError: timm does not know the name, or has no weights for it.
    """
    timm = _import_timm()
    try:
        config = timm.models.get_pretrained_cfg(model)
    except RuntimeError as error:  # the architecture is known, the tag is not
        architecture = model.partition(".")[0]
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        raise InputError(
            f"'timm:{model}': timm has no such weights for {architecture}; it has "
            + (", ".join(f"'timm:{name}'" for name in known[:4]) or "none")
        ) from error
    if config is None:
        import difflib

        close = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.5)
        meant = " or ".join(f"'timm:{name}'" for name in close)
        raise InputError(
            f"timm knows no model '{model}'"
            + (f": did you mean {meant}?" if close else ": see timm.list_models(pretrained=True)")
        )
    if not config.hf_hub_id and config.url:
        raise InputError(
            f"'timm:{model}': its weights are a pickle ({config.url}), which is not opened here: "
            f"write them as safetensors once with timm.models._hub.save_for_hf(timm.create_model("
            f"'{model}', pretrained=True), FOLDER, safe_serialization=True), and name "
            "'timm:local-dir:FOLDER'"
        )
    if not config.hf_hub_id:
        family = model.partition(".")[0].partition("_")[0]
        known = timm.list_models(f"{family}*", pretrained=True)
        close = [name for name in known if timm.models.get_pretrained_cfg(name).hf_hub_id]
        offer = ", ".join(f"'timm:{name}'" for name in close[:3])
        raise InputError(
            f"'timm:{model}': nobody has published weights for it"
            + (f"; of its family there are {offer}" if offer else "")
        )
    return str(config.hf_hub_id)

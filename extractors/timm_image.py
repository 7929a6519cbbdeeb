"""Image backbones through timm: by name, from a folder, or from any Hub repository.

Preprocessing is the model's own evaluation transform (size, crop, interpolation, mean and standard
deviation come with the weights and differ between models). The width of the features is read from
an output, since ``num_features`` is not always what ``num_classes=0`` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from extractors.errors import BadRow, InputError, MachineError
from extractors.fingerprint import folder_sha256
from extractors.hub import (
    HubModel,
    ask_hub,
    is_known_locally,
    plain_hub_errors,
    remember,
    resolve_model,
)
from extractors.images import open_rgb
from extractors.names import BackboneName
from extractors.torchvision_compat import ensure_torchvision_imports

if TYPE_CHECKING:
    import torch

# Raise the number when a change here changes features; old stores are then not mixed with new.
ADAPTER = "timm/1"


class TimmImageExtractor:
    """A timm model without its classifier as a frozen extractor, in float32.

    Args:
        name: source ``timm``; the id is a timm model name, ``hf-hub:OWNER/NAME`` or
            ``local-dir:PATH`` with ``config.json`` and ``model.safetensors``.
        device: a torch device; None takes a GPU when there is one.
    """

    modality: Literal["image"] = "image"
    max_length = None

    def __init__(self, name: BackboneName, *, device: str | None = None) -> None:
        self._parsed = name
        self._requested_device = device

    @property
    def name(self) -> str:
        """Canonical backbone name."""
        return str(self._parsed)

    @property
    def batch_size(self) -> int:
        """Images per forward pass; on a CPU small batches are faster, they stay in the cache."""
        return 128 if self._device.startswith("cuda") else 8

    @property
    def dim(self) -> int:
        """Width of a feature vector; loads the backbone."""
        return self._dim

    def fingerprint(self) -> dict[str, Any]:
        """What the features depend on; a commit or a content hash stands for weights and sizes."""
        common = {
            "adapter": ADAPTER,
            "source": "timm",
            "preprocessing": "the model's evaluation transform",
            "dtype": "float32",
        }
        if (folder := self._parsed.folder) is not None:
            if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
                raise InputError(
                    f"{folder} is no timm model folder: it needs config.json and model.safetensors"
                )
            return common | {"id": "folder", "content_sha256": folder_sha256(folder)}
        return common | {"id": self._hub.repository, "revision": self._hub.commit}

    def prepare(self, item: Any) -> torch.Tensor:
        """(channels, height, width) float32, resized, cropped and normalised.

        Raises:
            BadRow: the image does not decode.
        """
        image = open_rgb(item)
        if self._channels == 1:
            image = image.convert("L")
        try:
            return self._transform(image)
        except (OSError, ValueError, ZeroDivisionError) as error:
            raise BadRow(f"the image cannot be resized: size {image.size}") from error

    def token_counts(self, prepared: Sequence[torch.Tensor]) -> None:
        """Nothing: images have no tokens."""
        return None

    def encode(self, prepared: Sequence[torch.Tensor]) -> np.ndarray:
        """(b, dim) float32 features of b prepared images."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack(list(prepared)).to(self._device)
            features = self._model(pixels.contiguous(memory_format=torch.channels_last))
            if features.ndim != 2:
                raise InputError(
                    f"{self.name} gives features of shape {tuple(features.shape)} instead of one "
                    "vector per image: choose a model with global pooling"
                )
            return features.float().cpu().numpy()

    @cached_property
    def _dim(self) -> int:
        grey = np.zeros((32, 32), dtype=np.uint8)
        return int(self.encode([self.prepare(grey)]).shape[1])

    @cached_property
    def _device(self) -> str:
        if self._requested_device:
            return self._requested_device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _model(self) -> torch.nn.Module:
        self.fingerprint()  # refuses what cannot be loaded, in plain words
        timm = _import_timm()
        if self._parsed.folder is not None:
            model = _create(timm, self._parsed.id, self.name)
        else:
            hub = self._hub
            if not hub.online and not is_known_locally(hub, "config.json"):
                hub = ask_hub(hub.repository, hub.commit)
            with plain_hub_errors(hub.repository, hub.commit):
                model = _create(timm, f"hf-hub:{hub.repository}@{hub.commit}", self.name)
            remember(hub)
        import torch

        # Convolutions are 15 to 60% faster with the channels innermost; other layers do not mind.
        layout = torch.channels_last
        return model.float().eval().to(self._device, memory_format=layout)  # type: ignore[call-overload]

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
    if not config.hf_hub_id:
        raise InputError(f"'timm:{model}': there are no pretrained weights for it on the Hub")
    return str(config.hf_hub_id)

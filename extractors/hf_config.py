"""What a transformers model is, read from its ``config.json`` alone: a text or an image model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from extractors.base import Modality
from extractors.errors import InputError
from extractors.hub import ask_hub, is_known_locally, plain_hub_errors, remember, resolve_model
from extractors.names import BackboneName


def read_config(name: BackboneName) -> dict[str, Any]:
    """The model's configuration, from its folder, the cache or the Hub.

    Raises:
        InputError: no such model, or no configuration in it.
        MachineError: not cached, and no network.
    """
    if name.folder is not None:
        path = name.folder / "config.json"
        if not path.is_file():
            raise InputError(f"{name.folder} is no transformers model: it has no config.json")
    else:
        from huggingface_hub import hf_hub_download

        hub = resolve_model(name.id, name.revision)
        if not hub.online and not is_known_locally(hub, "config.json"):
            hub = ask_hub(hub.repository, hub.commit)  # a commit is taken at its word, unasked
        with plain_hub_errors(hub.repository, hub.commit):
            path = Path(
                hf_hub_download(
                    hub.repository,
                    "config.json",
                    revision=hub.commit,
                    local_files_only=not hub.online,
                )
            )
        remember(hub)
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is no model configuration")
    return config


def modality_of(config: dict[str, Any], name: str) -> Modality:
    """What a model reads; "image" for those of images and texts, whose image tower is used.

    Raises:
        InputError: neither can be told from the configuration.

    Example:
        >>> modality_of({"model_type": "vit", "image_size": 224, "patch_size": 16}, "hf:a/b")
        'image'
        >>> modality_of({"model_type": "bert", "vocab_size": 30522}, "hf:a/b")
        'text'
    """
    if "vision_config" in config:
        return "image"
    if "vocab_size" in config:
        return "text"
    if {"image_size", "num_channels", "patch_size"} & config.keys():
        return "image"
    kind = config.get("model_type", "no model_type")
    raise InputError(
        f"{name} ({kind}) is neither a text nor an image model that can be read from its "
        "config.json: use 'st:' or 'timm:' for models of those libraries"
    )

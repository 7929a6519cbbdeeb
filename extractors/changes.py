"""Weights of a backbone that fine-tuning has changed, as they travel in an artefact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from extractors.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Changes:
    """Tensors that take the place of a model's own.

    Attributes:
        tensors: name in the model's state -> values.
        sha256: over names, shapes and values; it goes into the fingerprint of the features.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> Changes.of({"bias": np.ones(1, np.float32)}).put_into(model, "a layer")
        >>> model.bias.tolist()
        [1.0]
    """

    tensors: Mapping[str, np.ndarray]
    sha256: str

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> Self:
        """Of these tensors."""
        digest = hashlib.sha256()
        for name, values in sorted(tensors.items()):
            digest.update(f"{name}\0{values.dtype}\0{values.shape}\0".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return cls(dict(tensors), digest.hexdigest())

    def put_into(self, model: torch.nn.Module, name: str) -> None:
        """Exchange the model's tensors, in place.

        Raises:
            InputError: the model has no tensor of such a name and shape.
        """
        import torch

        own = model.state_dict()
        for key, values in self.tensors.items():
            if key not in own or tuple(own[key].shape) != values.shape:
                raise InputError(
                    f"the changed weights '{key}' {values.shape} do not belong to {name}: name the "
                    "backbone that was fine-tuned"
                )
        with torch.no_grad():
            for key, values in self.tensors.items():
                own[key].copy_(torch.from_numpy(np.array(values)))


def with_changes(extractor: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The same backbone, not yet loaded, with some of its weights exchanged.

    Args:
        extractor: a torch backbone that can be loaded by its name.
        tensors: name in the model's state -> values.

    Raises:
        InputError: a backbone whose weights cannot be exchanged.
    """
    make = getattr(extractor, "with_changes", None)
    if make is None:
        raise InputError(
            f"{extractor.name} has no weights that could be exchanged: name the backbone that was "
            "fine-tuned"
        )
    return make(tensors)

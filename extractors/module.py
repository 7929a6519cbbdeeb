"""Any ``torch.nn.Module`` with a preprocessing callable as a backbone, from Python.

Weights are hashed into the fingerprint. Code is not: what a callable does cannot be told from
outside, so the caller names a version of it and raises it when the code changes.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from extractors.backbone import TorchBackbone
from extractors.base import Modality
from extractors.errors import BadRow, InputError
from extractors.names import BackboneName
from extractors.options import FeatureOptions
from extractors.precision import computing
from extractors.unit_length import unit_length, unit_rows

if TYPE_CHECKING:
    import torch

_OPTIONS = {"normalize", "autocast", "quantize"}


class ModuleExtractor(TorchBackbone):
    """A torch module of one's own as a frozen extractor, in float32.

    A float32 module is put into evaluation mode and moved to the device; one in another precision
    is left alone and a copy computes. Parameters are not changed; where training has changed them
    since, ``fingerprint()`` sees it.

    Args:
        module: prepared tensors stacked to (b, ...) -> (b, dim).
        preprocess: one raw row -> a tensor; all of one shape. Whatever it raises makes the row a
            bad one.
        name: letters, digits, dots, dashes; stores are called after it.
        version: of the code of `module` and `preprocess`; part of the fingerprint.
        modality: of the raw rows.
        probe: a raw row that shows the width of the features; None takes the first row that is
            encoded, or an empty text, or a grey image.
        collate: prepared rows -> the module's input, where stacking is not it; what it gives has a
            method ``to(device)``.
        batch_size: rows per forward pass.
        options: ``normalize``, ``autocast`` and ``quantize``.
        device: a torch device; None takes a GPU when there is one.

    Raises:
        InputError: a name or a version that cannot be used, or other options.

    Example:
        >>> import torch
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> own = ModuleExtractor(
        ...     torch.nn.Linear(2, 3), lambda text: torch.tensor([len(text), 1]).float(),
        ...     name="lengths", version="1", modality="text")
        >>> own.encode([own.prepare("a fine film")]).shape, own.name
        ((1, 3), 'module:lengths')
    """

    adapter = "module/1"
    max_length = None

    def __init__(
        self,
        module: torch.nn.Module,
        preprocess: Callable[[Any], torch.Tensor],
        *,
        name: str,
        version: str,
        modality: Modality,
        probe: Any = None,
        collate: Callable[[Sequence[torch.Tensor]], Any] | None = None,
        batch_size: int = 32,
        options: FeatureOptions | None = None,
        device: str | None = None,
    ) -> None:
        for what, value in (("name", name), ("version", version)):
            if not re.fullmatch(r"[\w.-]+", value):
                raise InputError(
                    f"the {what} of a module has letters, digits, dots and dashes, not '{value}'"
                )
        super().__init__(BackboneName("module", name), options=options, device=device)
        self.modality = modality
        self.batch_size = 1 if self.options.quantize == "int8" else batch_size
        self._module = module
        self._preprocess = preprocess
        self._version = version
        self._probe_row = probe
        self._collate = collate
        self.options.allow(_OPTIONS, f"the module {name}")

    def _identity(self) -> dict[str, Any]:
        weights = self._hash()
        if self.__dict__.get("_copied", weights) != weights:
            for name in ("_model", "_copied"):  # what computes is a copy of other weights
                self.__dict__.pop(name, None)
        return {"id": self._parsed.id, "version": self._version, "weights_sha256": weights}

    def with_changes(self, tensors: Mapping[str, np.ndarray]) -> Self:
        """Nothing: the module is the caller's own.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.name} is a module of your own, whose weights are not exchanged here: load them "
            "into the module, and wrap it again"
        )

    def prepare(self, item: Any) -> torch.Tensor:
        """What `preprocess` makes of a row.

        Raises:
            BadRow: it raised, or gave no tensor.
        """
        import torch

        try:
            found = self._preprocess(item)
        except BadRow:
            raise
        except Exception as error:
            raise BadRow(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        if self._collate is None and not isinstance(found, torch.Tensor):
            raise BadRow(f"preprocessing gave {type(found).__name__} instead of a tensor")
        return found

    def token_counts(self, prepared: Sequence[Any]) -> np.ndarray | None:
        """Nothing is known of tokens: texts count as one each, images have none."""
        return np.ones(len(prepared), np.int32) if self.modality == "text" else None

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(b, dim) float32 features of b prepared rows."""
        import torch

        with computing(self._device, self.options.autocast):
            stacked = (self._collate or torch.stack)(list(prepared))
            found = self._model(stacked.to(self._device))
            shape = getattr(found, "shape", ())
            if len(shape) != 2 or shape[0] != len(prepared):
                what = tuple(shape) if shape else type(found).__name__
                raise InputError(
                    f"{self.name} gives {what} for {len(prepared)} rows instead of a tensor of "
                    "one vector a row"
                )
            features = np.ascontiguousarray(found.float().cpu().numpy())
        return unit_length(features) if self.options.normalize == "l2" else features

    def features(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """(b, dim) features of one pass over the one tensor of stacked rows."""
        (stacked,) = tensors.values()
        found = self._model(stacked).float()
        return unit_rows(found) if self.options.normalize == "l2" else found

    @property
    def _reentrant(self) -> bool:
        return False  # nobody knows what the code of a module shares

    def _probe(self) -> Any:
        row = self._probe_row
        if row is None:
            row = "" if self.modality == "text" else np.full((64, 64, 3), 128, np.uint8)
        try:
            return self.prepare(row)
        except BadRow as error:
            raise InputError(
                f"{self.name} cannot prepare a plain row ({error}): give a row as `probe`"
            ) from error

    @cached_property
    def _model(self) -> torch.nn.Module:
        if self.options.quantize == "none" and self._is_float32():
            return self._module.eval().to(self._device)
        self._copied = self._hash()
        model = copy.deepcopy(self._module).float().eval()
        self._finished(model)
        return model.to(self._device)

    def _is_float32(self) -> bool:
        import torch

        tensors = [*self._module.parameters(), *self._module.buffers()]
        return all(t.dtype == torch.float32 or not t.is_floating_point() for t in tensors)

    def _hash(self) -> str:
        """sha256 over names, types, shapes and values of all parameters and buffers, as given."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in sorted(self._module.state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name}\0{plain.dtype}\0{tuple(plain.shape)}\0".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

"""What the adapters of torch models share: a name, a device, the files behind the name, precision.

An adapter says how its library loads a model and what one forward pass is; where the files come
from (a folder, the Hub at one commit, its cache without a network) is settled here, once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from extractors.changes import Changes
from extractors.errors import InputError, MachineError
from extractors.fingerprint import folder_sha256
from extractors.hub import (
    HubModel,
    ask_hub,
    configurations,
    is_known_locally,
    plain_hub_errors,
    remember,
    resolve_model,
)
from extractors.names import BackboneName
from extractors.options import FeatureOptions
from extractors.remote_code import refuse_foreign_code

if TYPE_CHECKING:
    import torch

_SAME = 1e-2  # half precision included
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class ModelFiles:
    """Where a library finds a model: a folder, or a Hub repository at a commit.

    Attributes:
        path: the folder, or ``owner/name``.
        commit: None for a folder.
        local_only: no network is to be used.
    """

    path: str
    commit: str | None
    local_only: bool


class TorchBackbone:
    """Base of the adapters that run a torch model.

    Args:
        name: the parsed name.
        options: which features.
        device: a torch device; None takes a GPU when there is one.
    """

    # Raise the number when a change in an adapter changes features; stores are then not mixed.
    adapter: str = "torch/1"
    # The file without which a half-cached repository would silently be another model.
    needed_file: str = "config.json"
    # Weights that differ from the named model's.
    changes: Changes | None = None

    def __init__(
        self,
        name: BackboneName,
        *,
        options: FeatureOptions | None = None,
        device: str | None = None,
    ) -> None:
        self._parsed = name
        self.options = options or FeatureOptions()
        self._requested_device = device

    @property
    def name(self) -> str:
        """Canonical backbone name."""
        return str(self._parsed)

    @property
    def dim(self) -> int:
        """Width of a feature vector; loads the backbone."""
        return self._dim

    def fingerprint(self) -> dict[str, Any]:
        """What the features depend on; a commit or a content hash stands for the model's files."""
        found = {"adapter": self.adapter, "source": self._parsed.source, "dtype": "float32"}
        found |= self._identity()
        chosen = self.options.chosen()
        found |= {"options": chosen} if chosen else {}
        return found | ({"changed_sha256": self.changes.sha256} if self.changes else {})

    def with_changes(self, tensors: Mapping[str, np.ndarray]) -> Self:
        """The same backbone with some of its weights exchanged, as fine-tuning left them.

        Args:
            tensors: name in the model's state -> values.
        """
        twin = type(self)(self._parsed, options=self.options, device=self._requested_device)
        twin.changes = Changes.of(tensors)
        return twin

    def exact(self) -> Self | None:
        """The same model in float32, where this one computes in less."""
        if self.options.autocast == "none" and self.options.quantize == "none":
            return None
        assert self.dim  # loaded before it is shared
        twin = copy.copy(self)
        twin.options = replace(self.options, autocast="none", quantize="none")
        if self.options.quantize != "none":  # the loaded weights are rounded: load them again
            for name in ("_model", "_loaded"):
                twin.__dict__.pop(name, None)
        return twin

    @contextmanager
    def side_by_side(self) -> Iterator[int]:
        """While it is open, that many threads may call ``encode``; on a CPU each has one core.

        Passes beside each other never wait for each other, as the threads within one pass do after
        each of its many small products.
        """
        import torch

        threads = torch.get_num_threads()
        if self._device != "cpu" or threads == 1 or not self._reentrant:
            yield 1
            return
        torch.set_num_threads(1)
        try:
            yield threads
        finally:
            torch.set_num_threads(threads)

    @property
    def _reentrant(self) -> bool:
        """Whether ``encode`` may run in several threads at once."""
        return True

    def _finished(self, model: torch.nn.Module) -> None:
        """Bring a loaded float32 model, in place, into the form in which it computes."""
        if self.changes is not None:
            self.changes.put_into(model, self.name)
        if self.options.quantize == "int8":
            from extractors.quantize import quantize_linear

            quantize_linear(model, self.name, self._device)

    def encode(self, prepared: Any) -> np.ndarray:
        raise NotImplementedError

    def _probe(self) -> Any:
        """One prepared row that shows the width of the features."""
        raise NotImplementedError

    @cached_property
    def _dim(self) -> int:
        probe = [self._probe()]
        first, second = self.encode(probe), self.encode(probe)
        # Products may be summed in another order; a mask or a dropout that is drawn is far more.
        if not np.allclose(
            first, second, rtol=0, atol=_SAME * np.abs(first).max(initial=0), equal_nan=True
        ):
            raise InputError(
                f"{self.name} gives other features for the same row at every pass: it draws random "
                "numbers, and its features would mean nothing"
            )
        return int(first.shape[1])

    @cached_property
    def _device(self) -> str:
        if self._requested_device:
            return self._requested_device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _identity(self) -> dict[str, Any]:
        if self._parsed.folder is not None:
            return {"id": "folder", "content_sha256": self._content}
        return {"id": self._hub.repository, "revision": self._hub.commit}

    @cached_property
    def _content(self) -> str:
        assert self._parsed.folder is not None
        return folder_sha256(self._parsed.folder)

    @cached_property
    def _hub(self) -> HubModel:
        return resolve_model(self._parsed.id, self._parsed.revision)

    def _load(self, load: Callable[[ModelFiles], Loaded]) -> Loaded:
        """Load from the folder, from the cache, or over the network.

        Raises:
            InputError: no such model, or files that make none.
            MachineError: not cached, and no network.
        """
        try:
            folder = self._parsed.folder
            if folder is not None:
                if self._trusted:
                    refuse_foreign_code(folder, str(folder))
                return load(ModelFiles(str(folder), None, local_only=True))
            return self._load_hub(load)
        except Exception as error:
            refused = plain_load_errors(error, self.name)
            if refused is error:
                raise
            raise refused from error

    def _load_hub(self, load: Callable[[ModelFiles], Loaded]) -> Loaded:
        hub = self._hub
        if not hub.online and not is_known_locally(hub, self.needed_file):
            hub = ask_hub(hub.repository, hub.commit)
        try:
            loaded = self._load_commit(hub, load)
        except (OSError, MachineError):
            if hub.online:
                raise
            try:  # a cache can hold the configuration of a commit alone
                hub = ask_hub(hub.repository, hub.commit)
            except (InputError, MachineError):
                hub = self._hub
            if not hub.online:
                raise
            loaded = self._load_commit(hub, load)
        remember(hub)
        return loaded

    def _load_commit(self, hub: HubModel, load: Callable[[ModelFiles], Loaded]) -> Loaded:
        with plain_hub_errors(hub.repository, hub.commit):
            if self._trusted:
                refuse_foreign_code(configurations(hub), hub.repository)
            return load(ModelFiles(hub.repository, hub.commit, local_only=not hub.online))

    @property
    def _trusted(self) -> bool:
        """Whether the person named this very model as one whose code may run.

        Raises:
            InputError: another model was named.
        """
        named = self.options.trust_remote_code
        if named is None:
            return False
        own = self._parsed.folder or self._parsed.id
        if named != str(own):
            raise InputError(
                f"--trust-remote-code {named}: this backbone is {own}; its code runs only when it "
                "is named exactly so"
            )
        return True


def plain_load_errors(error: Exception, name: str) -> Exception:
    """What loading a model raised, as one sentence of the right kind.

    Memory, disks, the network and our own sentences are passed on as they are.
    """
    text = " ".join(str(error).split())
    if isinstance(error, InputError | MachineError | MemoryError | ConnectionError):
        return error
    if "out of memory" in text.lower() or getattr(error, "errno", None) is not None:
        return error
    if "trust_remote_code" in text:
        return InputError(
            f"{name} comes with its own Python code, which is not executed: name it with "
            "--trust-remote-code if you have read that code"
        )
    return InputError(f"{name} cannot be loaded: {text[:300]}")

"""The blocks of a backbone, and a backbone cut below its top K blocks.

    x --[ lower blocks, once ]--> a --[ top K blocks, pooling, again and again ]--> features

The activations ``a`` of a row are what goes into the first of the top blocks. The top pass is the
model's own forward, in which the lower blocks let their input through and ``a`` takes its place
before the first top block: masks, positions, the final norm and the pooling are computed by the
model itself, so that a cut changes no number. A cut is tried on probe rows when it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

import numpy as np

from extractors.context import refuse_boundaries
from extractors.errors import InputError
from extractors.pairs import PairExtractor

if TYPE_CHECKING:
    import torch
    from torch import nn

_LISTS = ("layer", "layers", "h", "block", "blocks", "stages")
_STAGES = ("layer1", "layer2", "layer3", "layer4")  # of the ResNet family
# Relative: a pass in two parts does the same products in the same order.
_SAME = 1e-4


@runtime_checkable
class Trainable(Protocol):
    """An extractor whose forward pass can be differentiated."""

    def tensors(self, prepared: Any) -> dict[str, torch.Tensor]:
        """What one pass over rows is given."""
        ...

    def features(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """(b, dim) features of one pass, with gradients where they are switched on."""
        ...


class _Reached(Exception):
    """The pass has come to the first of the top blocks."""


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a model in the order in which they run, each with its name.

    Stages that are plain sequences count as the blocks they hold.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential()
        >>> model.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> [name for name, _ in find_blocks(model)]
        ['layers.0', 'layers.1']
    """
    from torch import nn

    best: list[tuple[str, nn.Module]] = []
    most = 0
    for name, module in model.named_modules():
        children = list(module.named_children())
        if name.split(".")[-1] in _LISTS and isinstance(module, nn.ModuleList | nn.Sequential):
            found = children
        else:
            by_name = dict(children)
            found = [(part, by_name[part]) for part in _STAGES if part in by_name]
        size = sum(p.numel() for _, part in found for p in part.parameters())
        if len(found) > 1 and size > most:
            best, most = [(f"{name}.{part}" if name else part, each) for part, each in found], size
    flat: list[tuple[str, nn.Module]] = []
    for name, block in best:
        if type(block) is nn.Sequential:
            flat += [(f"{name}.{part}", each) for part, each in block.named_children()]
        else:
            flat.append((name, block))
    return flat


def is_trainable(extractor: Any) -> bool:
    """Whether its blocks can be reached: a torch backbone that is loaded by its name."""
    return isinstance(extractor, Trainable) and hasattr(extractor, "_model")


class CutBackbone:
    """A backbone cut below its top K blocks.

    Args:
        extractor: a torch backbone in float32.
        k: blocks above the cut, at least one.
        probe: a few raw rows to try the cut on.

    Attributes:
        parameters: the parameters above the cut by name, those of the final norm and the like
            included; they are what training changes.
        depth: for each of them, how many blocks lie above it: 0 for the last block and behind it.
        n_blocks: blocks of the backbone.

    Raises:
        InputError: a backbone that cannot be cut so; the sentence says why.

    Example:
        >>> from extractors import load_extractor
        >>> cut = CutBackbone(load_extractor("minilm"), 1, ["a fine film", "dull"])
        >>> cut.n_blocks, len(cut.parameters)
        (6, 16)
    """

    def __init__(self, extractor: Any, k: int, probe: Sequence[Any]) -> None:
        if isinstance(extractor, PairExtractor):
            raise InputError("--pairs embeddings: blocks are trained with --pairs text")
        if not is_trainable(extractor):
            raise InputError(
                f"{extractor.name} has no blocks to train: name a backbone of sentence-transformers"
                ", transformers or timm"
            )
        options = extractor.options
        for option, value, plain in (
            ("--long-text", options.long_text, "truncate"),
            ("--quantize", options.quantize, "none"),
            ("--autocast", options.autocast, "none"),
        ):
            if value != plain:
                raise InputError(f"{option} {value}: blocks are trained with {option} {plain}")
        self.extractor: Any = extractor
        assert extractor.dim  # loaded
        refuse_boundaries(extractor)
        self.model: nn.Module = extractor._model
        self.device: str = extractor._device
        blocks = find_blocks(self.model)
        self.n_blocks = len(blocks)
        if not 1 <= k <= len(blocks):
            raise InputError(
                f"--unfreeze {k}: {extractor.name} has {len(blocks)} blocks, 1 to {len(blocks)} "
                "can be unfrozen"
                if blocks
                else f"{extractor.name} has no blocks that are known here: transformers, ResNets, "
                "ConvNeXts and MobileNets have"
            )
        self._lower = [block for _, block in blocks[: len(blocks) - k]]
        self.top = blocks[len(blocks) - k :]
        self._stub: dict[str, torch.Tensor] | None = None
        rows = self.read(probe)
        try:
            self._try(rows)
        finally:  # after a refusal too
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)

    # ---- rows ----

    def read(self, inputs: Sequence[Any]) -> list[Any]:
        """Raw rows, checked; texts as tokens, images as pixels."""
        prepared = [self.extractor.prepare(item) for item in inputs]
        if self.extractor.modality == "text":
            return self.extractor.tokenize(prepared)[0]
        return prepared

    def size(self, row: Any) -> int:
        """Tokens of a row; 1 for an image."""
        return len(row["input_ids"]) if isinstance(row, dict) else 1

    # ---- the two passes ----

    def lower(self, rows: Sequence[Any]) -> list[np.ndarray]:
        """Activations of b rows as they come from ``read``; (t, d) for a text of t tokens."""
        import torch

        tensors = self.extractor.tensors(list(rows))
        found: list[torch.Tensor] = []

        def catch(module: nn.Module, args: tuple, kwargs: dict) -> NoReturn:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        handle = self.top[0][1].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            with torch.no_grad():
                self.extractor.features(tensors)
        except _Reached:
            pass
        finally:
            handle.remove()
        if not found:
            raise self._refusal()
        hidden = found[0].float().cpu()
        if "attention_mask" in tensors:
            masks = tensors["attention_mask"].cpu().bool()
            if hidden.shape[:2] != masks.shape:  # Longformer pads its rows once more
                raise self._refusal()
            return [h[m].numpy() for h, m in zip(hidden, masks, strict=True)]
        return [h.contiguous().numpy() for h in hidden]

    def upper(self, rows: Sequence[Any], activations: Sequence[np.ndarray]) -> torch.Tensor:
        """(b, dim) features of b rows from their activations, with gradients if switched on.

        Args:
            rows: tokens of texts as they come from ``read``; of images only their number counts.
            activations: what ``lower`` gave for them.
        """
        import torch

        if self.extractor.modality == "text":
            tensors = self.extractor.tensors(list(rows))
            mask = tensors["attention_mask"].bool()
            hidden = torch.zeros(*mask.shape, activations[0].shape[-1], device=self.device)
            hidden[mask] = torch.from_numpy(np.concatenate(activations)).to(self.device)
        else:
            hidden = torch.from_numpy(np.stack(activations)).to(self.device)
            if hidden.ndim == 4:
                hidden = hidden.contiguous(memory_format=torch.channels_last)
            assert self._stub is not None
            tensors = {
                name: one.expand(len(hidden), *one.shape[1:]) for name, one in self._stub.items()
            }
        with self._lower_let_through(), self._entering(hidden):
            return self.extractor.features(tensors)

    @contextmanager
    def _entering(self, hidden: torch.Tensor) -> Iterator[None]:
        def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": hidden}

        handle = self.top[0][1].register_forward_pre_hook(enter, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _lower_let_through(self) -> Iterator[None]:
        def let_through(tuple_of: int) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs["hidden_states"]
                return (hidden, *[None] * (tuple_of - 1)) if tuple_of else hidden

            return forward

        with ExitStack() as stack:
            for block in self._lower:
                block.forward = let_through(self._answers[id(block)])  # type: ignore[method-assign]
                stack.callback(block.__dict__.pop, "forward", None)
            yield

    # ---- making the cut ----

    def _try(self, rows: list[Any]) -> None:
        """Run the probe rows whole and in two parts; what differs cannot be cut."""
        import torch

        order, frozen, expected = self._whole(rows)
        blocks = [*self._lower, *(block for _, block in self.top)]
        if order != [id(block) for block in blocks]:
            raise InputError(
                f"{self.extractor.name} does not run its blocks once each and in their order: they "
                "cannot be trained here"
            )
        scale = float(expected.abs().max())
        activations = self.lower(rows)
        for stub in self._stubs(rows):
            self._stub = stub
            try:
                with torch.enable_grad():
                    found = self.upper(rows, activations)
            except (RuntimeError, AssertionError, ValueError, IndexError):
                continue
            if found.shape == expected.shape and (
                float((found.detach() - expected).abs().max()) <= _SAME * scale
            ):
                break
        else:
            raise self._refusal()
        if not found.requires_grad:
            raise self._refusal()
        named = dict(self.model.named_parameters())
        reached = torch.autograd.grad(found.square().sum(), list(named.values()), allow_unused=True)
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter
            for (name, parameter), g in zip(named.items(), reached, strict=True)
            if g is not None and id(parameter) not in frozen
        }
        if not self.parameters:
            raise self._refusal()
        self.depth = {name: self._depth(name) for name in self.parameters}

    def _refusal(self) -> InputError:
        """Why there is no such cut: features from below it, or a backbone that has none."""
        k = len(self.top)
        images_of_timm = self.extractor.name.startswith("timm:")  # which counts blocks from zero
        for layer in self.extractor.options.layer or ():
            height = layer + (images_of_timm if layer >= 0 else self.n_blocks + 1)
            if height <= self.n_blocks - k:
                return InputError(
                    f"--layer {layer} lies below the cut of --unfreeze {k}, and no training would "
                    "change it: choose a larger --unfreeze, or a layer above"
                )
        return InputError(
            f"{self.extractor.name} cannot be cut below its top {k} blocks: its features are then "
            "other ones; choose another --unfreeze"
        )

    def _whole(self, rows: list[Any]) -> tuple[list[int], set[int], torch.Tensor]:
        """Order of the blocks, parameters that were used below the cut, features."""
        import torch

        self.model.eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        order: list[int] = []
        frozen: set[int] = set()
        self._answers: dict[int, int] = {}
        first = self.top[0][1]
        above = {id(first)} | {
            id(module)
            for name, module in self.model.named_modules()
            if self.top[0][0].startswith(f"{name}.") or not name
        }
        reached = False

        def before(module: nn.Module, args: Any) -> None:
            nonlocal reached
            reached = reached or module is first
            if not reached and id(module) not in above:
                frozen.update(id(p) for p in module.parameters(recurse=False))

        def after(module: nn.Module, args: Any, answer: Any) -> None:
            order.append(id(module))
            self._answers[id(module)] = len(answer) if isinstance(answer, tuple) else 0

        with ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(module.register_forward_pre_hook(before).remove)
            for module in [*self._lower, *(block for _, block in self.top)]:
                stack.callback(module.register_forward_hook(after).remove)
            with torch.no_grad():
                features = self.extractor.features(self.extractor.tensors(rows))
        return order, frozen, features

    def _stubs(self, rows: list[Any]) -> Iterator[dict[str, torch.Tensor] | None]:
        """What stands for the pixels in a top pass: few of them where the model lets us."""
        if self.extractor.modality == "text":
            yield None
            return
        for name, pixels in self.extractor.tensors(rows[:1]).items():
            yield {name: pixels[..., :32, :32].new_zeros(1, pixels.shape[1], 32, 32)}
            yield {name: pixels.new_zeros(pixels.shape)}

    def _depth(self, name: str) -> int:
        for above, (block, _) in enumerate(reversed(self.top)):
            if name.startswith(f"{block}."):
                return above
        return 0

    # ---- weights ----

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the parameters above the cut, by their names in the model's state."""
        return {
            name: parameter.detach().cpu().numpy().copy()
            for name, parameter in self.parameters.items()
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Put a copy back."""
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(state[name]))

    @contextmanager
    def training(self, *, dropout: bool) -> Iterator[None]:
        """The top blocks with gradients; batch norms stay in evaluation mode."""
        from torch.nn.modules.batchnorm import _BatchNorm

        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        if dropout:
            for _, block in self.top:
                block.train()
                for module in block.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        try:
            yield
        finally:
            self.model.eval()
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)

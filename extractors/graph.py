"""A backbone as one torch module from tensors to features, for programs that know only tensors.

An adapter of this package does more than a forward pass: it reads texts or decodes images before
it and moves arrays after it. What is between, from prepared tensors to features with pooling and
scaling, is put into a module here that ``torch.export`` and the ONNX exporter can follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from extractors.base import Extractor
from extractors.context import refuse_boundaries
from extractors.errors import InputError
from extractors.hf_image import TransformerImageExtractor
from extractors.module import ModuleExtractor
from extractors.pairs import PairExtractor
from extractors.sentence import SentenceExtractor
from extractors.text import pad_tokens
from extractors.timm_image import TimmImageExtractor
from extractors.transformer import TransformerTextExtractor


@dataclass(frozen=True)
class Graph:
    """A backbone between tensors.

    Attributes:
        module: the tensors of ``names``, in this order -> (b, dim) float32 features.
        names: of the inputs: ``pixels``; or ``input_ids``, ``attention_mask`` and what else the
            model reads, each (b, t) int64.
        tokens: whether inputs have a second dimension of any length, t.
        extractor: the adapter, which prepares rows.
    """

    module: torch.nn.Module
    names: tuple[str, ...]
    tokens: bool
    extractor: Any

    def inputs(self, rows: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """Raw rows -> the module's inputs, one batch of them.

        Raises:
            BadRow: a row that cannot be encoded.
        """
        prepared = [self.extractor.prepare(row) for row in rows]
        if not self.tokens:
            return (torch.stack(prepared),)
        read, _ = self.extractor.tokenize(prepared)
        if isinstance(self.extractor, SentenceExtractor):
            filling, side = self.extractor._filling or {}, self.tokenizer.padding_side
        else:
            filling, side = {"input_ids": self.extractor._padding}, "right"
        found = pad_tokens(read, filling, side)
        return tuple(found[name] for name in self.names)

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """How an image becomes ``pixels``, JSON-able; None for other rows and modules of one's own.

        color: "RGB" or "L", of the upright image. resize: {size, interpolation}; one number is the
        length of the shorter side, two are height and width. crop: [height, width] from the middle,
        or None. Then values times scale, minus mean, by std of each channel. library: the same in
        the words of the library that does it.
        """
        if isinstance(self.extractor, TimmImageExtractor):
            return _of_timm(self.extractor)
        if isinstance(self.extractor, TransformerImageExtractor):
            return _of_processor(self.extractor._processor.to_dict())
        return None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, for texts."""
        if isinstance(self.extractor, SentenceExtractor):
            return self.extractor._model.tokenizer
        return self.extractor._tokenizer


def _of_timm(extractor: TimmImageExtractor) -> dict[str, Any]:
    config = extractor._data_config
    found: dict[str, Any] = {"color": "L" if extractor._channels == 1 else "RGB"}
    found |= {"resize": None, "crop": None, "scale": 1 / 255}
    for step in extractor._transform.transforms:  # type: ignore[attr-defined]
        kind = type(step).__name__
        if kind in ("Resize", "ResizeKeepRatio"):
            found["resize"] = {"size": step.size, "interpolation": config["interpolation"]}
        elif "Crop" in kind:
            found["crop"] = list(step.size)
    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    library = {name: config[name] for name in names if name in config}
    return found | {
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "pixels": list(config["input_size"]),
        "library": {"timm": library},
    }


def _of_processor(config: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    said = {name: value for name, value in config.items() if _plain(value)}
    size, crop = said.get("size") or {}, said.get("crop_size") or {}
    how = said.get("resample")
    both = [size.get("height"), size.get("width")]
    resize = {
        "size": size.get("shortest_edge") or (both if all(both) else size),
        "interpolation": None if how is None else Image.Resampling(how).name.lower(),
    }
    return {
        "color": "RGB",
        "resize": resize if said.get("do_resize") else None,
        "crop": [crop.get("height"), crop.get("width")] if said.get("do_center_crop") else None,
        "scale": said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1,
        "mean": said.get("image_mean") if said.get("do_normalize") else None,
        "std": said.get("image_std") if said.get("do_normalize") else None,
        "library": {"transformers": said},
    }


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | list | tuple | dict)


def backbone_graph(extractor: Extractor) -> Graph:
    """The part of a backbone that is a torch module.

    Args:
        extractor: a torch backbone on the CPU, in float32.

    Raises:
        InputError: it is no torch module (a toy, features computed elsewhere), or it does more
            with a row than one forward pass (texts in windows, pairs, half precision, int8).

    Example:
        >>> from extractors.module import ModuleExtractor
        >>> own = ModuleExtractor(torch.nn.Linear(2, 3), torch.as_tensor, name="two", version="1",
        ...                       modality="features", probe=[0.0, 0.0])
        >>> graph = backbone_graph(own)
        >>> graph.module(*graph.inputs([[0.0, 1.0]])).shape
        torch.Size([1, 3])
    """
    options = getattr(extractor, "options", None)
    if isinstance(extractor, PairExtractor):
        raise InputError(
            f"{extractor.name} reads the two texts of a pair apart, which no single forward pass "
            "does: export the head alone, or fit with --pairs text"
        )
    if isinstance(extractor, SentenceExtractor | TransformerTextExtractor):
        assert options is not None
        if options.long_text == "windows":
            raise InputError(
                f"{extractor.name} reads long texts in windows, which no single forward pass does: "
                "export the head alone, or fit with --long-text truncate"
            )
        refuse_boundaries(extractor)
        filling = extractor._filling if isinstance(extractor, SentenceExtractor) else {}
        if filling is None:
            raise InputError(
                f"{extractor.name} does more with a text than its tokenizer says: export the head "
                "alone"
            )
    elif not isinstance(
        extractor, TimmImageExtractor | TransformerImageExtractor | ModuleExtractor
    ):
        raise InputError(f"{extractor.name} is no torch model: export the head alone")
    assert options is not None
    if options.autocast != "none" or options.quantize != "none":
        raise InputError(
            f"{extractor.name} computes in less than float32 here: export the head alone, or fit "
            "without --autocast and --quantize"
        )
    tokens = isinstance(extractor, SentenceExtractor | TransformerTextExtractor)
    names: tuple[str, ...] = ("pixels" if extractor.modality == "image" else "inputs",)
    if isinstance(extractor, SentenceExtractor):
        names = (*(extractor._filling or {}), "attention_mask")
    elif tokens:
        names = ("input_ids", "attention_mask")
    return Graph(_Forward(extractor, names).eval(), names, tokens, extractor)


class _Forward(torch.nn.Module):
    """What ``Extractor.encode`` does between tensors."""

    def __init__(self, extractor: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        assert extractor.dim  # loaded
        self.model = extractor._model  # its parameters are this module's
        self._adapter = extractor
        self._names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._adapter.features(dict(zip(self._names, inputs, strict=True)))

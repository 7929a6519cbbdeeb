"""From a backbone's name to its adapter."""

from __future__ import annotations

from dataclasses import replace

from extractors.base import Extractor
from extractors.errors import InputError
from extractors.names import parse_name
from extractors.options import FeatureOptions


def load_extractor(
    name: str, *, device: str | None = None, options: FeatureOptions | None = None
) -> Extractor:
    """The adapter for a backbone name. Cheap: the backbone itself is loaded at first use.

    Only ``hf:`` reads a file at once, the model's config.json, which says whether it is a text or
    an image model.

    Args:
        name: ``source:id[@revision]``, see `extractors.names`.
        device: a torch device such as "cpu" or "cuda:1"; None takes a GPU when there is one.
        options: which features; None takes the backbone's own. Options that the backbone has no
            use for are refused when it is first used.

    Raises:
        InputError: the name cannot be read (see ``parse_name``), or its package is missing.
        MachineError: ``hf:`` with a model that is not cached, and no network.

    Example:
        >>> load_extractor("toy:text-16").encode(["a fine film"]).shape
        (1, 16)
    """
    if options is not None and options.pairs == "embeddings":
        from extractors.pairs import PairExtractor

        each = replace(options, pairs="text")
        return PairExtractor(load_extractor(name, device=device, options=each))
    parsed = parse_name(name)
    if parsed.source == "module":
        raise InputError(
            f"'{name}': a torch module of your own has no name that can be loaded; make it in "
            "Python with extractors.module.ModuleExtractor"
        )
    if parsed.source in ("toy", "precomputed"):
        if options is not None:
            options.allow(frozenset(), f"the backbone {parsed}")
        if parsed.source == "toy":
            from extractors.toy import load_toy

            return load_toy(parsed)
        from extractors.precomputed import PrecomputedExtractor

        return PrecomputedExtractor(int(parsed.id))
    if parsed.source == "timm":
        from extractors.timm_image import TimmImageExtractor

        return TimmImageExtractor(parsed, options=options, device=device)
    if parsed.source == "hf":
        from extractors.hf_config import modality_of, read_config

        if modality_of(read_config(parsed), str(parsed)) == "image":
            from extractors.hf_image import TransformerImageExtractor

            return TransformerImageExtractor(parsed, options=options, device=device)
        from extractors.transformer import TransformerTextExtractor

        return TransformerTextExtractor(parsed, options=options, device=device)
    from extractors.sentence import SentenceExtractor

    return SentenceExtractor(parsed, options=options, device=device)

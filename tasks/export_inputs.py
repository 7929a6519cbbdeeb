"""How raw rows become the inputs of an exported program: files that stand beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extractors.graph import Graph


def files_beside(graph: Graph | None, out: Path) -> dict[Path, bytes]:
    """What appears beside a program, and what is in it: how raw rows become its inputs."""
    if graph is None:
        return {}
    if graph.tokens:
        content = _tokenizer(graph)
        return {} if content is None else {out.with_suffix(".tokenizer.json"): content}
    if graph.preprocessing is None:
        return {}
    text = json.dumps(graph.preprocessing, indent=2, ensure_ascii=False) + "\n"
    return {out.with_suffix(".preprocessing.json"): text.encode()}


def _tokenizer(graph: Graph) -> bytes | None:
    """The tokenizer as one JSON file, with the truncation that the head was fitted with."""
    fast = getattr(graph.tokenizer, "backend_tokenizer", None)
    if fast is None:
        return None
    limit = graph.extractor.max_length
    copy = type(fast).from_str(fast.to_str())
    copy.no_truncation() if limit is None else copy.enable_truncation(limit)
    copy.no_padding()
    return copy.to_str().encode()

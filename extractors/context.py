"""Transformers whose numbers for one text depend on the texts beside it or before it, and the cure.

BigBird takes full attention for a batch of short texts, and keeps to it ever after; rotary
positions of the kind "longrope" have two sets of frequencies, chosen by the longest text of a
batch. (Those of the kind "dynamic" change only beyond the positions that texts are cut at.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from extractors.errors import InputError


def settle(model: Any) -> None:
    """Full attention from the first text on, in place, where a model would switch to it."""
    if getattr(getattr(model, "config", None), "model_type", None) == "big_bird":
        model.set_attention_type("original_full")


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """What of this a fingerprint has to say, from the model's ``config.json``.

    Example:
        >>> settled({"model_type": "big_bird"}), settled({"model_type": "bert"})
        ({'attention': 'original_full'}, {})
    """
    found = {"attention": "original_full"} if config.get("model_type") == "big_bird" else {}
    return found | ({"positions": "by the length of each text"} if _longrope(config) else {})


def boundaries(config: dict[str, Any]) -> tuple[int, ...]:
    """Tokens up to which a text has another set of frequencies than a longer one, ascending.

    Args:
        config: of the loaded model, with the defaults of its kind.

    Example:
        >>> boundaries({"rope_parameters": {"rope_type": "longrope"},
        ...             "original_max_position_embeddings": 4, "max_position_embeddings": 8})
        (4,)
    """
    # The library's own order: the configuration's, the frequencies' own, all positions.
    name = "original_max_position_embeddings"
    lengths = {
        config.get(name) or one.get(name) or config.get("max_position_embeddings")
        for one in _longrope(config)
    }
    return tuple(sorted(int(length) for length in lengths if length))


def _longrope(config: dict[str, Any]) -> list[dict[str, Any]]:
    known = config.get("rope_parameters") or config.get("rope_scaling") or {}
    each = [known, *(one for one in known.values() if isinstance(one, dict))]  # by type of layer
    return [one for one in each if "longrope" in (one.get("rope_type"), one.get("type"))]


def apart(
    rows: list[Any],
    lengths: Sequence[int],
    limits: Sequence[int],
    encode: Callable[[list[Any]], np.ndarray],
) -> np.ndarray:
    """Encode rows on one side of a length apart from those on the other.

    Args:
        rows: b of them.
        lengths: (b,) tokens.
        limits: ascending; a row belongs to the first that it does not exceed.
        encode: rows -> (rows, d) float32.

    Returns:
        (b, d) in the order of the rows.

    Example:
        >>> apart(["abc", "d", "ef"], [3, 1, 2], [2], lambda r: np.full((len(r), 1), len(r)))
        array([[1],
               [2],
               [2]])
    """
    side = np.searchsorted(np.asarray(limits), np.asarray(lengths))
    parts = [np.flatnonzero(side == one) for one in np.unique(side)]
    if len(parts) == 1:
        return encode(rows)
    vectors = [encode([rows[i] for i in places]) for places in parts]
    return np.concatenate(vectors)[np.argsort(np.concatenate(parts))]


def refuse_boundaries(extractor: Any) -> None:
    """For what passes over short and long texts at once: training, exported graphs.

    Raises:
        InputError: the backbone computes the two in different ways.
    """
    found = getattr(extractor, "boundaries", ())
    if found:
        raise InputError(
            f"{extractor.name} has other positions for texts of more than {found[0]} tokens, which "
            f"one pass over several texts cannot have: choose --max-length {found[0]}"
        )

"""Which features of a backbone: the choices that a person may make, refused early where senseless.

None means the backbone's own way. Whatever is chosen changes the numbers, so it is part of the
fingerprint; what is left alone is not, so that stores keep their place when an option is added.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Literal, get_args

from extractors.errors import InputError

Pooling = Literal["mean", "cls", "last", "max", "cls+mean", "gem"]
Projection = Literal["before", "after"]
Normalize = Literal["none", "l2"]
LongText = Literal["truncate", "windows"]
Autocast = Literal["none", "bfloat16", "float16"]
Quantize = Literal["none", "int8"]
Pairs = Literal["text", "embeddings"]


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What to take from a backbone.

    Attributes:
        layer: hidden layers, concatenated in this order; -1 is the last (after the final norm), 0
            the embeddings. None is what the model itself gives out.
        pooling: how the vectors of a row's tokens or patches become one: the mean of the real ones,
            the class token, the last real one, the maximum, class token and mean side by side, or
            the generalised mean (see ``pooling.py``).
        projection: the point "before" or "after" the model's projection to another space.
        prompt: put before every text, as E5 ("query: ") and BGE want it.
        normalize: "l2" scales every vector to length 1, "none" takes a model's own scaling away.
        max_length: tokens read of a text, special tokens included.
        long_text: texts above ``max_length`` are cut off ("truncate"), or read in consecutive
            windows whose vectors are averaged by their number of tokens ("windows").
        pairs: rows of two texts are read as one ("text"), or encoded apart and combined
            ("embeddings", see ``pairs.py``).
        autocast: compute matrix products in half precision; the error is measured and recorded.
        quantize: "int8" computes the linear layers in 8-bit integers, on a CPU (see
            ``quantize.py``); the error is measured and recorded.
        trust_remote_code: the one model whose own Python code may be executed, by its id or folder.

    Raises:
        InputError: a value that cannot be meant.

    Example:
        >>> FeatureOptions(layer=(-1, -4), pooling="cls+mean").chosen()
        {'layer': [-1, -4], 'pooling': 'cls+mean'}
        >>> FeatureOptions(max_length=2)
        Traceback (most recent call last):
        ...
        extractors.errors.InputError: max_length 2: must be at least 4 tokens
    """

    layer: tuple[int, ...] | None = None
    pooling: Pooling | None = None
    projection: Projection | None = None
    prompt: str | None = None
    normalize: Normalize | None = None
    max_length: int | None = None
    long_text: LongText = "truncate"
    pairs: Pairs = "text"
    autocast: Autocast = "none"
    quantize: Quantize = "none"
    trust_remote_code: str | None = None

    def __post_init__(self) -> None:
        if self.layer is not None:
            if not self.layer:
                raise InputError("--layer: name at least one layer, such as -1")
            if len(set(self.layer)) < len(self.layer):
                raise InputError(f"--layer {_numbers(self.layer)}: a layer is named twice")
            object.__setattr__(self, "layer", tuple(self.layer))
        for name, known in _WORDS.items():
            value = getattr(self, name)
            if value not in known:
                listed = ", ".join(word for word in known if word is not None)
                raise InputError(f"--{name.replace('_', '-')} {value}: must be one of {listed}")
        if self.max_length is not None and self.max_length < 4:
            raise InputError(f"--max-length {self.max_length}: must be at least 4 tokens")
        if self.autocast != "none" and self.quantize != "none":
            raise InputError("--autocast and --quantize: choose one of them")

    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults and changes numbers, as plain JSON."""
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "trust_remote_code" and value != field.default:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_chosen(
        cls, chosen: dict[str, Any], *, trust_remote_code: str | None = None
    ) -> FeatureOptions:
        """The options that ``chosen()`` describes; whose code may run is never taken from a file.

        Raises:
            InputError: an option that this version does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)} - {"trust_remote_code"}
        if unknown := sorted(set(chosen) - known):
            raise InputError(
                f"the features were made with the option '{unknown[0]}', which this version does "
                "not know: install a newer one"
            )
        layer = chosen.get("layer")
        values: dict[str, Any] = chosen | {"layer": None if layer is None else tuple(layer)}
        return cls(**values, trust_remote_code=trust_remote_code)

    def allow(self, known: Set[str], who: str) -> None:
        """Refuse options that a backbone has no use for, rather than ignore them.

        Args:
            known: names of the fields that it can follow.
            who: the backbone and why, in words that begin a sentence.

        Raises:
            InputError: another option was chosen.
        """
        for name in self.chosen():
            if name not in known:
                can = ", ".join(f"--{one.replace('_', '-')}" for one in sorted(known))
                raise InputError(
                    f"--{name.replace('_', '-')}: {who} has no such choice"
                    + (f"; it has {can}" if can else "")
                )


_WORDS: dict[str, tuple[str | None, ...]] = {
    "pooling": (None, *get_args(Pooling)),
    "projection": (None, *get_args(Projection)),
    "normalize": (None, *get_args(Normalize)),
    "long_text": get_args(LongText),
    "pairs": get_args(Pairs),
    "autocast": get_args(Autocast),
    "quantize": get_args(Quantize),
}


def parse_layers(text: str | int) -> tuple[int, ...]:
    """``"-1,-4"`` -> ``(-1, -4)``.

    Raises:
        InputError: not whole numbers with commas between them.

    Example:
        >>> parse_layers("-1, -4")
        (-1, -4)
    """
    if not re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)*", str(text)):
        raise InputError(f"--layer {text}: must be whole numbers such as -1 or -1,-4")
    return tuple(int(part) for part in str(text).split(","))


def _numbers(layers: tuple[int, ...]) -> str:
    return ",".join(map(str, layers))

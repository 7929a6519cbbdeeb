"""Rows of two texts: each text encoded by itself, then both vectors as one.

::

    (a, b)  ->  [u, v, |u - v|, u * v],   u and v the backbone's vectors of a and b

The combination of InferSent (Conneau et al. 2017, "Supervised learning of universal sentence
representations from natural language inference data"). A backbone that reads both texts as one
compares them with its own attention where it was trained to; one that was not (sentence encoders)
loses in one vector which of its words belong to which text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from extractors.base import Approximate, Extractor
from extractors.encode import encode_rows
from extractors.errors import BadRow, InputError

PAIR_SEPARATOR = " [SEP] "  # between the two texts; BERT's own mark, to others a word
_ADAPTER = "pairs/1"
_ROWS_TOGETHER = 256


class PairExtractor:
    """A text backbone that encodes the two texts of a row apart.

    Args:
        inner: the backbone of one text, of width d.

    Attributes:
        inner: the same.
        dim: 4 d.
        batch_size: rows whose texts are encoded together, each different text once.

    Raises:
        InputError: a backbone of other rows than texts.

    Example:
        >>> from extractors.toy import ToyText
        >>> pairs = PairExtractor(ToyText(8))
        >>> pairs.encode([pairs.prepare("Who was it? [SEP] It was me.")]).shape
        (1, 32)
    """

    modality: Literal["text"] = "text"
    batch_size = _ROWS_TOGETHER

    def __init__(self, inner: Extractor) -> None:
        if inner.modality != "text":
            raise InputError(
                f"--pairs embeddings: {inner.name} reads {inner.modality} rows, and pairs are of "
                "texts"
            )
        self.inner = inner

    @property
    def name(self) -> str:
        """That of the backbone."""
        return self.inner.name

    @property
    def max_length(self) -> int | None:
        """Of each of the two texts."""
        return self.inner.max_length

    @property
    def dim(self) -> int:
        """Four times the backbone's; loads it."""
        return 4 * self.inner.dim

    def fingerprint(self) -> dict[str, Any]:
        """The backbone's, and that texts are encoded apart and how they are combined."""
        found = self.inner.fingerprint()
        options = {**found.get("options", {}), "pairs": "embeddings"}
        return {**found, "options": options, "pairs": _ADAPTER}

    def exact(self) -> PairExtractor | None:
        """The same in float32, where the backbone computes in less."""
        exact = self.inner.exact() if isinstance(self.inner, Approximate) else None
        return None if exact is None else PairExtractor(exact)

    def prepare(self, item: Any) -> tuple[str, str]:
        """The two texts: of one text with the separator between them, or of two that are given.

        Raises:
            BadRow: it is no pair, it has several separators, or a text cannot be encoded.
        """
        if isinstance(item, str):
            cut = item.find(PAIR_SEPARATOR)
            if cut < 0:
                raise BadRow(
                    f"a pair of texts expected, got one ({item!r:.40}): give two columns "
                    f"(--text-column A+B), or 'FIRST{PAIR_SEPARATOR}SECOND'"
                )
            if cut != item.rfind(PAIR_SEPARATOR):
                raise BadRow(f"several '{PAIR_SEPARATOR.strip()}': which of them parts the pair?")
            item = (item[:cut], item[cut + len(PAIR_SEPARATOR) :])
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise BadRow(f"a pair of texts expected, got {type(item).__name__} ({item!r:.40})")
        for text in item:
            self.inner.prepare(text)  # refuses what it cannot read
        return item[0], item[1]

    def token_counts(self, prepared: Sequence[tuple[str, str]]) -> np.ndarray | None:
        """(b,) int32 tokens of the longer text of each pair, the first that is cut off."""
        count, read = self.inner.token_counts, self.inner.prepare
        first, second = (count([read(pair[side]) for pair in prepared]) for side in (0, 1))
        return None if first is None or second is None else np.maximum(first, second)

    def encode(self, prepared: Sequence[tuple[str, str]]) -> np.ndarray:
        """(b, 4 d) float32; NaN where the backbone gives no finite vector of one of the texts."""
        texts = list(dict.fromkeys(text for pair in prepared for text in pair))
        found = encode_rows(
            self.inner, texts, [str(i) for i in range(len(texts))], on_bad_row="skip"
        )
        vectors = np.full((len(texts), found.features.shape[1]), np.nan, np.float32)
        vectors[found.kept] = found.features
        place = {text: i for i, text in enumerate(texts)}
        u, v = (vectors[[place[pair[side]] for pair in prepared]] for side in (0, 1))
        return np.hstack([u, v, np.abs(u - v), u * v])

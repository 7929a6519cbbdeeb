"""What adapters of text models share: checked texts, token counts, long texts in windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from extractors.backbone import TorchBackbone
from extractors.errors import BadRow, InputError
from extractors.windows import average_windows, split_text


class TextBackbone(TorchBackbone):
    """Base of the text adapters; one says how texts become tokens, and texts become vectors."""

    modality: Literal["text"] = "text"

    @property
    def batch_size(self) -> int:
        """Texts per forward pass; on a CPU small batches are no slower and waste less padding."""
        return 64 if self._device.startswith("cuda") else 16

    @property
    def max_length(self) -> int | None:
        """Tokens after which a text is cut off; None where it is read in windows or whole."""
        return None if self.options.long_text == "windows" else self._limit

    def prepare(self, item: Any) -> str:
        """The text itself, once it is certain that it is one."""
        if not isinstance(item, str):
            raise BadRow(f"text expected, got {type(item).__name__} ({item!r:.40})")
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"text is not valid Unicode (character {error.start})") from error
        return item

    def token_counts(self, prepared: Sequence[str]) -> np.ndarray:
        """(b,) int32 tokens before truncation, special tokens and the prompt included."""
        prompt = self._prompt
        return self._count([prompt + text for text in prepared])

    def encode(self, prepared: Sequence[str]) -> np.ndarray:
        """(b, dim) float32 features of b texts."""
        if self.options.long_text == "truncate" or self._limit is None:
            return self._vectors(list(prepared))
        windows = [self._windows(text) for text in prepared]
        flat = [window for row in windows for window in row]
        tokens = self.token_counts(flat)
        vectors = np.empty((len(flat), 0), np.float32)
        order = np.argsort(-tokens, kind="stable")
        for start in range(0, len(flat), self.batch_size):
            batch = order[start : start + self.batch_size]
            found = self._vectors([flat[i] for i in batch])
            if not vectors.shape[1]:
                vectors = np.empty((len(flat), found.shape[1]), np.float32)
            vectors[batch] = found
        means = average_windows(vectors, tokens - self._overhead, [len(row) for row in windows])
        return unit_length(means) if self._normalized else means

    def _probe(self) -> str:
        return "dimension"

    def _windows(self, text: str) -> list[str]:
        assert self._limit is not None
        size = self._limit - self._overhead
        if size < 2:
            raise InputError(
                f"--max-length {self._limit}: {self._overhead} of these tokens are the prompt and "
                "special tokens, which leaves no room for a text"
            )
        return split_text(text, self._offsets(text), size)

    @cached_property
    def _overhead(self) -> int:
        """Tokens that every window carries: the prompt's and the special ones."""
        return int(self.token_counts([""])[0])

    # What an adapter says.

    @property
    def _prompt(self) -> str:
        return self.options.prompt or ""

    @property
    def _limit(self) -> int | None:
        """Tokens that the model reads of a text."""
        raise NotImplementedError

    @property
    def _normalized(self) -> bool:
        """Whether vectors leave this backbone with length 1."""
        return self.options.normalize == "l2"

    def _count(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError

    def _vectors(self, texts: list[str]) -> np.ndarray:
        """(b, dim) float32 of b texts without their prompt, each cut at the limit."""
        raise NotImplementedError


def count_tokens(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """(b,) int32 tokens, special ones included, nothing cut."""
    found = tokenizer(
        texts, truncation=False, padding=False, return_attention_mask=False, verbose=False
    )
    return np.array([len(ids) for ids in found["input_ids"]], dtype=np.int32)


def token_offsets(tokenizer: Any, text: str, name: str) -> list[tuple[int, int]]:
    """Where each token lies in the text, without special tokens.

    Raises:
        InputError: the tokenizer cannot say.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"--long-text windows: the tokenizer of {name} does not say where its tokens lie in a "
            "text; use --long-text truncate"
        )
    found = tokenizer(
        text,
        add_special_tokens=False,
        truncation=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return [(int(start), int(end)) for start, end in found["offset_mapping"]]


def unit_length(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays.

    Example:
        >>> unit_length(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1).astype(features.dtype)

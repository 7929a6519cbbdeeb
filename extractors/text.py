"""What adapters of text models share: checked texts, token counts, long texts in windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from extractors.backbone import TorchBackbone
from extractors.errors import BadRow, InputError
from extractors.tokens import batches_of_tokens
from extractors.windows import average_windows, split_text

if TYPE_CHECKING:
    import torch


class TextBackbone(TorchBackbone):
    """Base of the text adapters; one says how texts become tokens, and texts become vectors."""

    modality: Literal["text"] = "text"

    @property
    def batch_size(self) -> int:
        """Texts per forward pass; on a CPU small batches are no slower and waste less padding."""
        return 64 if self._device.startswith("cuda") else 16

    @property
    def batch_tokens(self) -> int:
        """Tokens in one forward pass, padding included; a text in int8 is alone in it.

        On a CPU few tokens stay in the cache, and short texts still come many at a time.
        """
        if self.options.quantize == "int8":
            return 1
        return 16_384 if self._device.startswith("cuda") else 1024

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
        with self._tokenizing:
            return self._count([prompt + text for text in prepared])

    def tokenize(self, prepared: Sequence[str]) -> tuple[list[Any], np.ndarray]:
        """Rows as ``encode`` takes them too, and what ``token_counts`` says of them."""
        texts = list(prepared)
        if not texts or self._in_windows:
            return texts, self.token_counts(texts)
        with self._tokenizing:
            return self._read(texts)

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(b, dim) float32 features of b texts, or of what ``tokenize`` made of them."""
        if not self._in_windows:
            rows = list(prepared)
            if all(isinstance(row, str) for row in rows):
                rows = self.tokenize(rows)[0]
            return self._vectors(rows)
        windows = [self._windows(text) for text in prepared]
        with self._tokenizing:
            rows, tokens = self._read([window for row in windows for window in row])
        vectors = np.empty((len(rows), 0), np.float32)
        for batch in batches_of_tokens(tokens, self.batch_tokens):
            found = self._vectors([rows[i] for i in batch])
            if not vectors.shape[1]:
                vectors = np.empty((len(rows), found.shape[1]), np.float32)
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
        with self._tokenizing:
            return split_text(text, self._offsets(text), size)

    @property
    def _in_windows(self) -> bool:
        return self.options.long_text == "windows" and self._limit is not None

    @cached_property
    def _tokenizing(self) -> RLock:
        """Held while a tokenizer is used: fast ones fail when two threads do."""
        return RLock()

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

    def _read(self, texts: list[str]) -> tuple[list[Any], np.ndarray]:
        """b texts without their prompt -> rows cut at the limit, and their counts untruncated."""
        raise NotImplementedError

    def _vectors(self, rows: list[Any]) -> np.ndarray:
        """(b, dim) float32 of b rows from ``_read``."""
        raise NotImplementedError


def count_tokens(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """(b,) int32 tokens, special ones included, nothing cut."""
    found = tokenizer(
        texts, truncation=False, padding=False, return_attention_mask=False, verbose=False
    )
    return np.array([len(ids) for ids in found["input_ids"]], dtype=np.int32)


TokenRow = dict[str, np.ndarray]  # (t,) int32 each: input_ids, and what else the model wants


def read_tokens(
    tokenizer: Any, texts: list[str], limit: int | None
) -> tuple[list[TokenRow], np.ndarray]:
    """Tokens of b texts, cut at the limit, and the (b,) int32 counts before that.

    A fast tokenizer reads each text once: what it cuts off, it counts.
    """
    found = tokenizer(
        texts,
        truncation=limit is not None,
        max_length=limit,
        padding=False,
        return_attention_mask=False,
        verbose=False,
    )
    rows = [
        {name: np.asarray(values[i], np.int32) for name, values in found.items()}
        for i in range(len(texts))
    ]
    pieces = getattr(found, "encodings", None)
    if limit is None:
        counts = [len(row["input_ids"]) for row in rows]
    elif pieces is None:
        counts = count_tokens(tokenizer, texts)
    else:
        special = tokenizer.num_special_tokens_to_add(pair=False)
        counts = [len(p) + sum(len(more) - special for more in p.overflowing) for p in pieces]
    return rows, np.array(counts, np.int32)


def pad_tokens(
    rows: Sequence[TokenRow], filling: Mapping[str, int], side: str = "right"
) -> dict[str, torch.Tensor]:
    """Rows of tokens -> one (b, longest) int64 tensor for each name, and ``attention_mask``.

    Args:
        rows: b >= 1 of them, each with at least one token.
        filling: name -> the value that stands where a row has no token.
        side: where that is.

    Example:
        >>> rows = [{"input_ids": np.array([5, 6])}, {"input_ids": np.array([7])}]
        >>> pad_tokens(rows, {"input_ids": 0})["input_ids"].tolist()
        [[5, 6], [7, 0]]
    """
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    shape = (len(rows), max(lengths))
    found = {name: np.full(shape, value, np.int64) for name, value in filling.items()}
    found["attention_mask"] = np.zeros(shape, np.int64)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        place = slice(None, length) if side == "right" else slice(shape[1] - length, None)
        found["attention_mask"][i, place] = 1
        for name in filling:
            found[name][i, place] = row[name]
    return {name: torch.from_numpy(values) for name, values in found.items()}


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


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """As ``unit_length``, of tensors and with gradients."""
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-30)

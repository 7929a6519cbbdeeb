"""What adapters of text models share: checked texts, token counts, long texts in windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from extractors.backbone import TorchBackbone
from extractors.context import apart, boundaries
from extractors.errors import InputError
from extractors.raw_text import checked_text
from extractors.tokens import batches_of_tokens
from extractors.unit_length import unit_length
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
        """The text itself.

        Raises:
            BadRow: it is none.
        """
        return checked_text(item)

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
            return self._side_by_length(rows)
        windows = [self._windows(text) for text in prepared]
        with self._tokenizing:
            rows, tokens = self._read([window for row in windows for window in row])
        vectors = np.empty((len(rows), 0), np.float32)
        for batch in batches_of_tokens(tokens, self.batch_tokens):
            found = self._side_by_length([rows[i] for i in batch])
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
            return self._fitting(text, size)

    def _fitting(self, text: str, size: int) -> list[str]:
        """Pieces of a text that are read whole, about `size` tokens each.

        A piece that is tokenised by itself can have more tokens than it had within the text, at
        its beginning above all: it is then cut again.
        """
        assert self._limit is not None
        pieces = split_text(text, self._offsets(text), size)
        if text:  # several tokens can lie in one letter, and cut none off it
            pieces = [piece for piece in pieces if piece]
        counts = self._count([self._prompt + piece for piece in pieces])
        found: list[str] = []
        for piece, count in zip(pieces, counts.tolist(), strict=True):
            if count <= self._limit:
                found.append(piece)
                continue
            if size == 1:
                raise InputError(
                    f"--max-length {self._limit}: {piece!r:.40} alone has {count} tokens, the "
                    "prompt and special ones included, and would be cut off"
                )
            found += self._fitting(piece, max(size - (count - self._limit), size // 2))
        return found

    def _side_by_length(self, rows: list[Any]) -> np.ndarray:
        """``_vectors``, in which no row changes what another one is computed with."""
        if not self.boundaries:
            return self._vectors(rows)
        if all(isinstance(row, str) for row in rows):
            lengths = np.minimum(self.token_counts(rows), self._limit or np.iinfo(np.int32).max)
        else:
            lengths = np.array([len(row["input_ids"]) for row in rows])
        return apart(rows, lengths.tolist(), self.boundaries, self._vectors)

    @cached_property
    def boundaries(self) -> tuple[int, ...]:
        """Lengths such that texts on either side of one may not share a pass."""
        config = getattr(self._transformer, "config", None)
        found = () if config is None else boundaries(config.to_dict())
        return tuple(one for one in found if self._limit is None or one < self._limit)

    def fingerprint(self) -> dict[str, Any]:
        found = super().fingerprint()
        # Raise it when texts are cut in another way.
        return found | ({"windows": 2} if self.options.long_text == "windows" else {})

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
    def _transformer(self) -> Any:
        """The transformers model within, or None."""
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

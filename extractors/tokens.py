"""How long texts are, in tokens: batches of them, statistics, how much of them was cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from extractors.store import FeatureStore


class TokenHistogram:
    """Counts of texts by their number of tokens; grows with a store, its size does not.

    Example:
        >>> seen = TokenHistogram()
        >>> seen.add(np.array([3, 5, 300]))
        >>> found = seen.statistics(256)
        >>> found["median"], found["max"], found["truncated"], found["tokens_lost"]
        (5, 300, 1, 44)
    """

    def __init__(self) -> None:
        self._texts = np.zeros(0, np.int64)  # by number of tokens

    def add(self, tokens: np.ndarray) -> None:
        """Count n more texts by their (n,) numbers of tokens."""
        more = np.bincount(tokens, minlength=len(self._texts)).astype(np.int64)
        more[: len(self._texts)] += self._texts
        self._texts = more

    def statistics(self, limit: int | None) -> dict[str, Any] | None:
        """Figures of the texts counted so far; None where there are none.

        Args:
            limit: tokens after which a text was cut off; None where nothing is.

        Returns:
            ``texts``; ``mean``, ``median``, ``p95`` and ``max`` of their tokens, special ones and
            the prompt included; ``truncated`` texts; ``tokens`` in all, and ``tokens_lost`` of
            them behind the limit.
        """
        texts = int(self._texts.sum())
        if not texts:
            return None
        lengths = np.arange(len(self._texts))
        up_to = np.cumsum(self._texts)
        total = int(self._texts @ lengths)
        over = np.maximum(lengths - limit, 0) if limit is not None else np.zeros_like(lengths)
        return {
            "texts": texts,
            "mean": round(total / texts, 1),
            "median": int(np.searchsorted(up_to, 0.5 * texts)),
            "p95": int(np.searchsorted(up_to, 0.95 * texts)),
            "max": int(np.flatnonzero(self._texts)[-1]),
            "truncated": int(self._texts[over > 0].sum()),
            "tokens": total,
            "tokens_lost": int(self._texts @ over),
        }


def batches_of_tokens(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Rows of similar length, longest first, whose padded tokens stay within a budget.

    Args:
        tokens: (n,) tokens of each row.
        budget: tokens in a batch; a longer row is a batch of its own.

    Returns:
        Positions of the rows, batch by batch.

    Example:
        >>> [batch.tolist() for batch in batches_of_tokens(np.array([2, 9, 3, 4]), 8)]
        [[1], [3, 2], [0]]
    """
    order = np.argsort(-tokens, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, int(tokens[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def histogram_of(
    store: FeatureStore, ids: Mapping[str, Sequence[str]] | None = None
) -> TokenHistogram:
    """The token counts of a store's texts.

    Args:
        store: any store; one of images gives an empty histogram.
        ids: split -> the rows that count; None counts all.
    """
    seen = TokenHistogram()
    for split in store.splits if ids is None else ids:
        wanted = None if ids is None else set(ids[split])
        for block in store.blocks(split):
            if block.tokens is None:
                continue
            if wanted is None or wanted.issuperset(block.ids):
                seen.add(block.tokens)
            else:
                here = [i for i, name in enumerate(block.ids) if name in wanted]
                seen.add(block.tokens[here])
    return seen

"""A long text as consecutive windows, each short enough to be read whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def split_text(text: str, offsets: Sequence[tuple[int, int]], size: int) -> list[str]:
    """Cut a text between words into pieces of at most `size` tokens.

    The pieces follow each other without gap or overlap. A word is cut only where it is longer than
    a window, and where a language writes no spaces.

    Args:
        text: what was tokenised.
        offsets: (start, end) of each token in the text, without special tokens.
        size: tokens in a window, at least 1.

    Example:
        >>> split_text("one two three", [(0, 3), (4, 7), (8, 13)], 2)
        ['one two', ' three']
        >>> split_text("abcdef", [(0, 2), (2, 4), (4, 6)], 2)
        ['abcd', 'ef']
    """
    if len(offsets) <= size:
        return [text]
    pieces: list[str] = []
    first, begin = 0, 0
    while first < len(offsets):
        end = min(first + size, len(offsets))
        if end < len(offsets):
            end = max(
                (i for i in range(first + 1, end + 1) if _starts_word(text, offsets, i)),
                default=end,
            )
        stop = len(text) if end == len(offsets) else offsets[end - 1][1]
        pieces.append(text[begin:stop])
        first, begin = end, stop
    return pieces


def _starts_word(text: str, offsets: Sequence[tuple[int, int]], token: int) -> bool:
    start = offsets[token][0]
    # Some tokenizers count the space before a word as part of its token.
    return text[start : start + 1].isspace() or text[max(start - 1, 0) : start].isspace()


def average_windows(vectors: np.ndarray, weights: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The weighted mean of each row's windows, taken in double precision.

    Args:
        vectors: (w, d) of all windows, row after row.
        weights: (w,) tokens in each window; a short last window counts for little.
        counts: windows of each row, adding up to w.

    Returns:
        (rows, d) float32.

    Example:
        >>> average_windows(np.array([[1.0], [4.0], [7.0]]), np.array([2, 1, 5]), [2, 1]).tolist()
        [[2.0], [7.0]]
    """
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.intp)
    heavy = np.maximum(np.asarray(weights, np.float64), 1)[:, None]
    sums = np.add.reduceat(vectors.astype(np.float64) * heavy, starts, axis=0)
    return (sums / np.add.reduceat(heavy, starts, axis=0)).astype(np.float32)

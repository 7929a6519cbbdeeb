"""Rows whose label is probably wrong: neighbours and a head that never saw the row disagree.

For every row there are two opinions that its own label has no part in: the labels of its nearest
other rows, and a head fitted on other folds. Their mean is p (n, C), in which the head counts twice
(``together``). A row labelled y is suspected if some other class k is at least three times as
probable, p_k >= 3 p_y; suspects are ordered by p_k / p_y, the surest first.

Measured with ``tests/benchmarks/label_errors.py``, where this rule found more of the changed labels
at the same precision than confident learning's (a class counts from its mean probability on its own
rows on; Northcutt, Jiang & Chuang 2021), and ordering by the ratio more than by the difference
wherever labels are wrong by accident and not by likeness.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.data.duplicates import FeatureSpace

__all__ = ["Neighbours", "Suspects", "nearest_neighbours", "suspects", "together"]

NEIGHBOURS = 10
TIMES = 3.0
_TEMPERATURE = 0.1
_LEAST = 1e-4  # what is less probable is as improbable
_BLOCK = 4096


class Neighbours(NamedTuple):
    """What the rows around each of n rows are labelled.

    Attributes:
        shares: (n, C) votes, weighted by exp(cosine / 0.1), with a vote's worth of doubt.
        nearest: (n,) number of the nearest other row.
        agree: (n,) how many of the neighbours have the row's own label.
        asked: how many neighbours were asked.
    """

    shares: NDArray[np.float64]
    nearest: NDArray[np.int64]
    agree: NDArray[np.int64]
    asked: int


class Suspects(NamedTuple):
    """Rows that are probably labelled wrong, the surest first.

    Attributes:
        rows: (s,) row numbers.
        suggested: (s,) the class that is more probable.
        ratio: (s,) its probability divided by that of the given label.
    """

    rows: NDArray[np.int64]
    suggested: NDArray[np.int64]
    ratio: NDArray[np.float64]


def nearest_neighbours(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    n_classes: int,
    *,
    queries: NDArray[np.floating] | None = None,
    query_labels: NDArray[np.integer] | None = None,
    k: int = NEIGHBOURS,
) -> Neighbours:
    """Votes of the nearest rows by cosine of standardised features, exactly, by faiss.

    Args:
        features: (n, d) rows that vote.
        labels: (n,) of them.
        n_classes: C.
        queries: (m, d) rows that are asked about; None: the voting rows, without their own vote.
        query_labels: (m,) of those.
        k: neighbours asked.

    Example:
        >>> X = np.array([[0.0, 1], [0.1, 1], [1, 0], [1, 0.1], [1.0, 0.2]], np.float32)
        >>> found = nearest_neighbours(X, np.array([0, 0, 1, 1, 0]), 2, k=1)
        >>> found.nearest.tolist(), found.agree.tolist()
        ([1, 0, 3, 2, 3], [1, 1, 1, 1, 0])
    """
    import faiss  # here: it brings an OpenMP runtime of its own

    own = queries is None
    asked, given = (features, labels) if queries is None else (queries, query_labels)
    assert given is not None
    space = FeatureSpace(features)
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(space.unit(features))  # pyright: ignore[reportCallIssue]
    k = min(k, len(features) - own)
    shares = np.zeros((len(asked), n_classes))
    nearest = np.zeros(len(asked), np.int64)
    agree = np.zeros(len(asked), np.int64)
    for start in range(0, len(asked), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(asked)))
        cosine, found = index.search(space.unit(asked[rows]), k + own)  # pyright: ignore
        if own:
            # Its own place is not always the first: other rows can be equal to it.
            other = found != rows[:, None]
            other[other.all(axis=1), -1] = False
            cosine, found = cosine[other].reshape(-1, k), found[other].reshape(-1, k)
        weight = np.exp((cosine - cosine[:, :1]).astype(np.float64) / _TEMPERATURE)
        votes = labels[found]
        place = (rows - start)[:, None]
        block = np.zeros((len(rows), n_classes))
        np.add.at(block, (np.broadcast_to(place, votes.shape), votes), weight)
        block += 1 / n_classes
        shares[rows] = block / block.sum(axis=1, keepdims=True)
        nearest[rows] = found[:, 0]
        agree[rows] = (votes == given[rows][:, None]).sum(axis=1)
    return Neighbours(shares, nearest, agree, k)


def together(neighbours: NDArray[np.floating], head: NDArray[np.floating]) -> NDArray[np.floating]:
    """Both opinions (n, C) as one; the neighbours' alone where the head has none (NaN)."""
    return np.where(np.isnan(head), neighbours, (neighbours + 2 * head) / 3)


def suspects(p: NDArray[np.floating], labels: NDArray[np.integer]) -> Suspects:
    """Rows whose label is probably wrong.

    Args:
        p: (n, C) probabilities from which each row's own label was kept out.
        labels: (n,) as given.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.2, 0.8], [0.05, 0.95]])
        >>> found = suspects(p, np.array([0, 0, 0, 1, 0]))
        >>> found.rows.tolist(), found.suggested.tolist(), found.ratio.round(1).tolist()
        ([4], [1], [19.0])
    """
    every = np.arange(len(p))
    own = np.maximum(p[every, labels], _LEAST)
    others = p.copy()
    others[every, labels] = -1.0
    best = others.argmax(axis=1)
    ratio = others[every, best] / own
    order = np.flatnonzero(ratio >= TIMES)
    order = order[np.argsort(-ratio[order], kind="stable")]
    return Suspects(order, best[order], ratio[order])

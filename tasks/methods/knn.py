"""Nearest neighbours by cosine, weighted by exp(similarity / temperature).

One search for the most neighbours serves every setting. Neighbours are found by faiss, exactly.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from tasks.methods.base import Fitted, Part, Problem, standardised
from tasks.methods.settings import SETTINGS

_NEIGHBOURS, _TEMPERATURES = SETTINGS["knn"]["neighbours"], SETTINGS["knn"]["temperatures"]


def fit(problem: Problem) -> Fitted:
    """7 k, 4 temperatures, raw or standardised features; the best validation accuracy chooses."""
    train, validation = problem.train, problem.validation
    best: tuple[float, Any] = (-1.0, None)
    spaces = {"raw": _raw, "standardised": standardised(train)}
    tried = 0
    for name, transform in spaces.items():
        index = faiss.IndexFlatIP(train.features.shape[1])
        index.add(_unit(transform(train)))  # pyright: ignore[reportCallIssue]
        similarity, neighbour = _search(index, _unit(transform(validation)))
        labels = train.labels[neighbour]
        for k in sorted({min(k, len(train)) for k in _NEIGHBOURS}, reverse=True):
            for temperature in _TEMPERATURES[::-1]:
                votes = _votes(similarity[:, :k], labels[:, :k], temperature, problem.n_classes)
                accuracy = float(np.mean(votes.argmax(axis=1) == validation.labels))
                tried += 1
                if accuracy > best[0]:
                    best = accuracy, (name, k, temperature, index)
    name, k, temperature, index = best[1]

    def predict_proba(part: Part) -> NDArray[np.floating]:
        similarity, neighbour = _search(index, _unit(spaces[name](part)), k)
        votes = _votes(similarity, train.labels[neighbour], temperature, problem.n_classes)
        # One more neighbour's worth of doubt, spread over the classes: no class is impossible.
        votes = votes * k + 1 / problem.n_classes
        return votes / votes.sum(axis=1, keepdims=True)

    return Fitted(
        predict_proba,
        settings_tried=tried,
        chosen={"features": name, "k": k, "temperature": temperature},
        parameters=train.features.size + len(train),
    )


def _raw(part: Part) -> NDArray[np.float32]:
    return np.array(part.features, np.float32)


def _unit(X: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return np.ascontiguousarray(X / np.where(norms > 0, norms, 1), np.float32)


def _search(index: Any, X: NDArray[np.float32], k: int = max(_NEIGHBOURS)) -> tuple[Any, Any]:
    return index.search(X, min(k, index.ntotal))


def _votes(
    similarity: NDArray[np.float32], labels: NDArray[np.int64], temperature: float, C: int
) -> NDArray[np.float64]:
    """Shares (n, C) of the classes among neighbours (n, k)."""
    # Relative to the nearest, so that nothing overflows.
    weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(labels), C))
    rows = np.arange(len(labels))
    for k in range(labels.shape[1]):
        votes[rows, labels[:, k]] += weight[:, k]
    return votes / weight.sum(axis=1, keepdims=True)

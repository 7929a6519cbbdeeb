"""How far a method's probabilities can be relied on, as numbers: bins, coverage, noise, radii.

All of it is computed from test rows after everything has been chosen; nothing here chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.methods.base import Part
from tasks.metrics import reliability

__all__ = ["bins", "certified_accuracy", "noise_accuracy", "selective_accuracy"]

COVERAGE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
SIGMAS = (0.0, 0.1, 0.25, 0.5, 1.0)
RADII = (0.0, *np.round(np.geomspace(0.01, 10.0, 31), 5).tolist())
_NOISE_ROWS = 1000
_PROBES = 8
_DIGITS = 6


def bins(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, list[float]]:
    """The reliability diagram's 15 bins: rows, mean confidence and accuracy of each.

    Example:
        >>> found = bins([[0.9, 0.1], [0.9, 0.1]], [0, 1])
        >>> found["counts"][13], found["accuracy"][13]
        (2, 0.5)
    """
    r = reliability(probabilities, labels)
    return {
        "counts": r.counts.tolist(),
        "confidence": np.round(r.confidence, _DIGITS).tolist(),
        "accuracy": np.round(r.accuracy, _DIGITS).tolist(),
    }


def selective_accuracy(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Accuracy on the rows a method is surest of: the risk-coverage curve, as accuracies.

    Args:
        probabilities: (n, C).
        labels: (n,) integers.

    Returns:
        coverage (shares of the rows, answered in order of the top probability), accuracy on them,
        and aurc, the mean risk over all coverages (Geifman & El-Yaniv 2017). Rows with equal
        probabilities share their mean, so that their order does not matter.

    Example:
        >>> found = selective_accuracy([[0.9, 0.1], [0.6, 0.4]], [0, 1])
        >>> found["accuracy"][4], found["accuracy"][-1], found["aurc"]  # at 50% and at 100%
        (1.0, 0.5, 0.25)
    """
    p, y = np.asarray(probabilities), np.asarray(labels)
    top, right = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)
    _, tied = np.unique(-top, return_inverse=True)
    expected = (np.bincount(tied, weights=right) / np.bincount(tied))[np.sort(tied)]
    answered = np.arange(1, len(y) + 1)
    accuracy = np.cumsum(expected) / answered
    at = [max(1, round(share * len(y))) - 1 for share in COVERAGE]
    return {
        "coverage": list(COVERAGE),
        "accuracy": np.round(accuracy[at], _DIGITS).tolist(),
        "aurc": round(float(np.mean(1 - accuracy)), _DIGITS),
    }


def noise_accuracy(
    predict: Callable[[Part], NDArray[np.floating]], test: Part, train: Part, seed: int
) -> dict[str, Any] | None:
    """Accuracy when Gaussian noise is added to the test features.

    Args:
        predict: rows to probabilities (n, C).
        test: rows; at most 1,000 of them are taken, the same for every method and seed.
        train: whose standard deviations are the unit of the noise, column by column.
        seed: of the noise.

    Returns:
        sigma, accuracy at each, and rows; None for a method that does not read the features.
    """
    rows = np.arange(len(test))
    if len(rows) > _NOISE_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), _NOISE_ROWS, replace=False))
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(rows), test.features.shape[1]), dtype=np.float32)
    noise *= train.features.std(axis=0, dtype=np.float64).astype(np.float32)

    def at(sigma: float, some: NDArray[np.intp], moved: NDArray[np.float32]) -> Part:
        texts = None if test.texts is None else [test.texts[i] for i in some]
        features = test.features[some] + np.float32(sigma) * moved
        return dataclasses.replace(test, features=features, labels=test.labels[some], texts=texts)

    few, loud = rows[:_PROBES], 10 * SIGMAS[-1]
    still = predict(at(0.0, few, noise[:_PROBES]))
    if np.array_equal(still, predict(at(loud, few, noise[:_PROBES]))):
        return None
    accuracies = [
        float(np.mean(predict(at(sigma, rows, noise)).argmax(axis=1) == test.labels[rows]))
        for sigma in SIGMAS
    ]
    return {
        "sigma": list(SIGMAS),
        "accuracy": np.round(accuracies, _DIGITS).tolist(),
        "rows": len(rows),
    }


def certified_accuracy(radius: NDArray[np.floating], right: NDArray[np.bool_]) -> Mapping[str, Any]:
    """Share of rows that are right and stay so under every change shorter than r, for many r.

    Args:
        radius: (n,) of `convex_heads.robustness.robustness_radius`, in standardised features.
        right: (n,) whether the row's prediction is right.

    Example:
        >>> found = certified_accuracy(np.array([0.5, 5.0]), np.array([True, True]))
        >>> found["accuracy"][0], found["accuracy"][-1], found["median_radius"]
        (1.0, 0.0, 2.75)
    """
    held = np.where(right, radius, -1.0)
    return {
        "radius": list(RADII),
        "accuracy": [round(float(np.mean(held >= r)), _DIGITS) for r in RADII],
        "median_radius": round(float(np.median(radius)), _DIGITS),
        "rows": len(radius),
    }

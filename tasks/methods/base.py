"""What a method of the comparison is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tasks.calibration import fit_temperature
from tasks.data.labels import row_weights
from tasks.standardise import scaling_of

__all__ = [
    "Backbone",
    "Fitted",
    "Part",
    "Problem",
    "Unavailable",
    "best_of",
    "for_all_classes",
    "platt",
    "scored",
    "standardised",
]


class Unavailable(Exception):
    """This method cannot run here or on these data; the text is the one sentence that says why."""


@dataclass(frozen=True)
class Part:
    """Rows of one split.

    Attributes:
        features: (n, d) float32, of the frozen backbone.
        labels: (n,) integers from 0.
        texts: the n raw texts; None where the rows are not texts.
        targets: (n, C) of 0 and 1 where rows have several labels; `labels` then only stratify.
        images: the n images as encoded files, for methods that train the backbone; else None.
        min_spread: columns of the features with less, as a fraction of the median column's, are
            left out where columns are standardised; see `tasks.standardise`.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    texts: Sequence[str] | None = None
    targets: NDArray[np.uint8] | None = None
    images: Sequence[bytes] | None = None
    min_spread: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Backbone:
    """The backbone that the features are of, for methods that train it.

    Attributes:
        name: as ``load_extractor`` takes it.
        options: those that were chosen (``FeatureOptions.chosen``).
        device: a torch device; None: the best there is.
        trust_remote_code: the model whose own code may run.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    trust_remote_code: str | None = None


@dataclass(frozen=True)
class Problem:
    """What a method may see: training rows to fit, validation rows to choose by, never test rows.

    Attributes:
        train: every class has rows in it.
        validation: rows that choose settings and are never fitted.
        n_classes: C; labels run from 0 to C - 1.
        seed: of everything random in the method.
        options: of the convex head, as ``ConvexHeadClassifier`` takes them; empty: its defaults.
        class_weight: of every method that can weigh classes: None or "balanced".
        backbone: that the features are of, for methods that train it.
        budget_seconds: wall-clock time for each of them; None: as long as it takes.
    """

    train: Part
    validation: Part
    n_classes: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    class_weight: str | None = None

    def targets(self, part: Part) -> NDArray[np.uint8]:
        """(n, C) of 0 and 1: the sets of labels of some of the rows."""
        assert part.targets is not None
        return part.targets

    def row_weights(self) -> NDArray[np.float64]:
        """(n_train,) of mean 1: n / (C n_c) for a row of class c where classes are balanced."""
        return row_weights(self.class_weight, self.train.labels)

    backbone: Backbone | None = None
    budget_seconds: float | None = None


@dataclass(frozen=True)
class Fitted:
    """A fitted method.

    Attributes:
        predict_proba: rows -> (n, C) probabilities.
        settings_tried: how many settings were fitted and judged by the validation rows.
        chosen: the setting that won, by name.
        parameters: numbers that prediction needs, stored training rows included.
        notes: what a reader must know of this fit, a sentence each.
        training: path and convergence of a head with a certificate, for the report.
        certified_radius: rows -> (n,) radii within which the class cannot change, where the method
            proves one; and how many rows that can be asked for at a moderate cost.
        refit: the chosen setting on other training rows, for predictions out of sample.
    """

    predict_proba: Callable[[Part], NDArray[np.floating]]
    settings_tried: int
    chosen: Mapping[str, Any]
    parameters: int
    notes: tuple[str, ...] = ()
    training: Mapping[str, Any] | None = None
    certified_radius: tuple[Callable[[Part], NDArray[np.floating]], int] | None = None
    refit: Callable[[Part], Callable[[Part], NDArray[np.floating]]] | None = None


def standardised(train: Part) -> Callable[[Part], NDArray[np.float32]]:
    """Features with mean 0 and spread 1 on the training rows, zeros in columns of no spread.

    Example:
        >>> part = Part(np.array([[0.0], [2.0]], np.float32), np.array([0, 1]))
        >>> standardised(part)(part).ravel().tolist()
        [-1.0, 1.0]
    """
    scaling = scaling_of(train.features, train.min_spread)

    def transform(part: Part) -> NDArray[np.float32]:
        return np.ascontiguousarray(scaling.transform(part.features)[:, :-1])

    return transform


# Margins and votes have a unit of their own, unlike log-odds: a factor of e^2 is no news.
_SPREAD_OF_SCORES = 2.0


def scored(
    scores: Callable[[Part], NDArray[np.floating]], validation: Part
) -> Callable[[Part], NDArray[np.floating]]:
    """Probabilities of a method that gives scores: their softmax at the validation rows' best T."""
    from scipy.special import softmax

    temperature = fit_temperature(
        scores(validation), "softmax", validation.labels, spread=_SPREAD_OF_SCORES
    )
    assert temperature is not None  # the softmax has one

    def predict_proba(part: Part) -> NDArray[np.floating]:
        return softmax(scores(part) / temperature, axis=1)

    return predict_proba


def platt(
    z: NDArray[np.floating], Y: NDArray[Any]
) -> Callable[[NDArray[np.floating]], NDArray[np.floating]]:
    """Scores (n, C) to probabilities, fitted on these rows (Platt 1999).

    A label that all or none of them have gets its share.
    """
    from sklearn.linear_model import LogisticRegression

    slopes, offsets = np.zeros(z.shape[1]), np.zeros(z.shape[1])
    for c in range(z.shape[1]):
        y = Y[:, c]
        if y.min() == y.max():
            share = (y.sum() + 1) / (len(y) + 2)
            offsets[c] = np.log(share / (1 - share))
            continue
        model = LogisticRegression(C=1e3).fit(z[:, [c]], y)
        slopes[c], offsets[c] = model.coef_[0, 0], model.intercept_[0]
    return lambda z: expit(z * slopes + offsets)


def for_all_classes(
    p: NDArray[np.floating], classes: NDArray[np.integer], C: int
) -> NDArray[np.floating]:
    """Probabilities (n, C) from those of the classes that were there to learn.

    >>> for_all_classes(np.array([[0.25, 0.75]]), np.array([0, 2]), 3).tolist()
    [[0.25, 0.0, 0.75]]
    """
    every = np.zeros((len(p), C))
    every[:, classes] = p
    return every


def best_of(accuracies: Sequence[float]) -> int:
    """Index of the highest validation accuracy; of equal ones the first, the most regularised.

    >>> best_of([0.5, 0.9, 0.9])
    1
    """
    return int(np.argmax(accuracies))

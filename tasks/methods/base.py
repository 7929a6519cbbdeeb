"""What a method of the comparison is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convex_heads.scaling import Scaling
from tasks.calibration import fit_temperature

__all__ = [
    "Backbone",
    "Fitted",
    "Part",
    "Problem",
    "Unavailable",
    "best_of",
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
        images: the n images as encoded files, for methods that train the backbone; else None.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    texts: Sequence[str] | None = None
    images: Sequence[bytes] | None = None

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
        backbone: that the features are of, for methods that train it.
        budget_seconds: wall-clock time for each of them; None: as long as it takes.
    """

    train: Part
    validation: Part
    n_classes: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
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
    """

    predict_proba: Callable[[Part], NDArray[np.floating]]
    settings_tried: int
    chosen: Mapping[str, Any]
    parameters: int
    notes: tuple[str, ...] = ()


def standardised(train: Part) -> Callable[[Part], NDArray[np.float32]]:
    """Features with mean 0 and spread 1 on the training rows, constant columns as zeros.

    Example:
        >>> part = Part(np.array([[0.0], [2.0]], np.float32), np.array([0, 1]))
        >>> standardised(part)(part).ravel().tolist()
        [-1.0, 1.0]
    """
    scaling = Scaling.fit(train.features, np.ones(len(train)))

    def transform(part: Part) -> NDArray[np.float32]:
        return np.ascontiguousarray(scaling.transform(part.features)[:, :-1])

    return transform


def scored(
    scores: Callable[[Part], NDArray[np.floating]], validation: Part
) -> Callable[[Part], NDArray[np.floating]]:
    """Probabilities of a method that gives scores: their softmax at the validation rows' best T."""
    from scipy.special import softmax

    temperature = fit_temperature(scores(validation), "softmax", validation.labels)
    assert temperature is not None  # the softmax has one

    def predict_proba(part: Part) -> NDArray[np.floating]:
        return softmax(scores(part) / temperature, axis=1)

    return predict_proba


def best_of(accuracies: Sequence[float]) -> int:
    """Index of the highest validation accuracy; of equal ones the first, the most regularised.

    >>> best_of([0.5, 0.9, 0.9])
    1
    """
    return int(np.argmax(accuracies))

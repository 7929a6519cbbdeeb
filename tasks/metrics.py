"""Test metrics of a probabilistic classifier, with intervals, and the paired test of two of them.

scikit-learn and SciPy do the work. What is written here are the choices: which interval, which
average, which bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LabelSetMetrics",
    "Metrics",
    "PairedTest",
    "Reliability",
    "best_threshold",
    "binary_nll",
    "evaluate",
    "evaluate_sets",
    "mcnemar",
    "reliability",
]

# Of fewer classes almost every head has the right one among its first five.
_TOP5_CLASSES = 20


@dataclass(frozen=True)
class Metrics:
    """How well predicted probabilities agree with the labels of n rows.

    Attributes:
        n: rows.
        accuracy: share of rows whose most probable class is the right one.
        accuracy_interval: 95 % Wilson score interval (low, high) of the accuracy: it stays inside
            [0, 1] and is honest near 1, where the normal approximation is not.
        macro_f1: mean F1 score of the classes that occur, as label or as prediction.
        balanced_accuracy: mean recall of the classes that occur as labels.
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error of the top probability, 15 bins of equal width.
        top5_accuracy: share of rows whose class is among the five most probable ones; None with
            fewer than twenty classes, where it is near one for any head.
    """

    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    balanced_accuracy: float
    nll: float
    ece: float
    top5_accuracy: float | None = None


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, bin by bin.

    Attributes:
        edges: (n_bins + 1,); bin k holds the top probabilities p with edges[k] < p <= edges[k+1].
        counts: (n_bins,) rows in each bin.
        confidence: (n_bins,) mean top probability; NaN in an empty bin.
        accuracy: (n_bins,) share of right predictions; NaN in an empty bin.
        ece: mean over the rows of ``|confidence - accuracy|`` of the row's bin.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    ece: float


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of two classifiers on the same rows.

    Attributes:
        only_first: rows that only the first classifier gets right.
        only_second: rows that only the second classifier gets right.
        p_value: two-sided; the probability of a split at least this uneven if both classifiers
            were equally accurate.
    """

    only_first: int
    only_second: int
    p_value: float


def evaluate(probabilities: ArrayLike, labels: ArrayLike) -> Metrics:
    """Compare predicted probabilities with labels.

    Args:
        probabilities: (n, C) with C >= 2, non-negative, each row sums to 1.
        labels: (n,) integers from 0 to C - 1; not every class has to occur.

    Returns:
        Accuracy with a 95 % interval, macro F1, balanced accuracy, NLL and ECE.

    Raises:
        ValueError: a shape is wrong, there are no rows, a row of probabilities is no distribution,
            or a label is outside its range.

    Example:
        >>> m = evaluate([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1])
        >>> m.n, round(m.accuracy, 3), round(m.nll, 3)
        (3, 0.667, 0.415)
    """
    from scipy.stats import binomtest
    from sklearn.metrics import f1_score, log_loss, recall_score

    p, y = _checked(probabilities, labels)
    predicted = p.argmax(axis=1)
    right = int((predicted == y).sum())
    interval = binomtest(right, len(y)).proportion_ci(0.95, method="wilson")
    return Metrics(
        n=len(y),
        accuracy=right / len(y),
        accuracy_interval=(float(interval.low), float(interval.high)),
        macro_f1=float(f1_score(y, predicted, average="macro")),
        # Mean recall over the labels present: balanced_accuracy_score, without its warning about
        # predictions of classes that this sample does not contain.
        balanced_accuracy=float(recall_score(y, predicted, labels=np.unique(y), average="macro")),
        nll=float(log_loss(y, p, labels=np.arange(p.shape[1]))),
        ece=reliability(p, y).ece,
        top5_accuracy=_top_accuracy(p, y, 5) if p.shape[1] >= _TOP5_CLASSES else None,
    )


def _top_accuracy(p: NDArray[np.float64], y: NDArray[np.int64], k: int) -> float:
    """Share of rows whose class is among the k most probable ones; of equals the first, as argmax.

    So it is never below the accuracy, which is k = 1.
    """
    own = p[np.arange(len(y)), y][:, None]
    earlier = np.arange(p.shape[1]) < y[:, None]
    return float(np.mean(((p > own) | (earlier & (p == own))).sum(axis=1) < k))


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, n_bins: int = 15) -> Reliability:
    """Bin rows by their top probability and compare it with the accuracy in each bin.

    Args:
        probabilities: (n, C), one distribution per row.
        labels: (n,) integers from 0 to C - 1.
        n_bins: bins of equal width over [0, 1].

    Returns:
        The bins and the expected calibration error (Naeini et al. 2015; Guo et al. 2017).

    Raises:
        ValueError: as `evaluate`; also if n_bins is below 1.

    Example:
        >>> r = reliability([[0.9, 0.1], [0.9, 0.1]], [0, 1], n_bins=1)
        >>> round(r.ece, 3)
        0.4
    """
    if n_bins < 1:
        raise ValueError(f"n_bins is {n_bins}: at least 1 bin is needed")
    p, y = _checked(probabilities, labels)
    top = p.max(axis=1)
    right = p.argmax(axis=1) == y
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    bins = np.clip(np.searchsorted(edges, top, side="left") - 1, 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, weights=top, minlength=n_bins) / counts
        accuracy = np.bincount(bins, weights=right, minlength=n_bins) / counts
    ece = float(np.nansum(counts * np.abs(confidence - accuracy)) / len(y))
    return Reliability(edges, counts, confidence, accuracy, ece)


@dataclass(frozen=True)
class LabelSetMetrics:
    """How well probabilities of C labels, each on its own, agree with the rows' sets of labels.

    Attributes:
        exact: share of rows whose whole set of labels is right.
        micro_f1: F1 score of all (row, label) pairs together.
        macro_f1: mean F1 score of the labels that occur, as label or as prediction.
        average_precision: mean over the labels that occur of the area under precision and recall;
            no threshold is in it.
        nll: mean negative log-likelihood of a (row, label) pair, in nats.
        ece: expected calibration error of the pairs' probabilities, 15 bins.
    """

    exact: float
    micro_f1: float
    macro_f1: float
    average_precision: float
    nll: float
    ece: float


def evaluate_sets(p: ArrayLike, targets: ArrayLike, threshold: float = 0.5) -> LabelSetMetrics:
    """Compare probabilities (n, C) of labels with targets (n, C) of 0 and 1.

    Args:
        p: in [0, 1], rows need not sum to 1.
        targets: of the same rows and labels.
        threshold: from which a label is predicted.

    Raises:
        ValueError: shapes that differ, no rows, or p outside [0, 1].

    Example:
        >>> m = evaluate_sets([[0.9, 0.2], [0.8, 0.7]], [[1, 0], [1, 0]])
        >>> m.exact, round(m.micro_f1, 2), m.average_precision
        (0.5, 0.8, 1.0)
    """
    from sklearn.metrics import average_precision_score

    q, Y = np.asarray(p, np.float64), np.asarray(targets)
    if q.ndim != 2 or q.shape != Y.shape or not len(q):
        raise ValueError(f"shapes are {q.shape} and {Y.shape}: give two (n, C) with n >= 1")
    if not np.isfinite(q).all() or q.min() < 0 or q.max() > 1:
        raise ValueError("probabilities must be between 0 and 1")
    said = q >= threshold
    occur = Y.any(axis=0)
    # F1 = 2 right / (labels + predictions), where there are any.
    right, pairs = (said & (Y > 0)).sum(axis=0), Y.sum(axis=0, dtype=int) + said.sum(axis=0)
    either = np.flatnonzero(pairs)
    two = np.stack([1 - q.ravel(), q.ravel()], axis=1)
    return LabelSetMetrics(
        exact=float((said == Y).all(axis=1).mean()),
        micro_f1=2 * float(right.sum()) / max(1.0, float(pairs.sum())),
        macro_f1=float(np.mean(2 * right[either] / pairs[either])) if len(either) else 0.0,
        average_precision=float(
            average_precision_score(Y[:, occur], q[:, occur], average="macro") if occur.any() else 0
        ),
        nll=binary_nll(q, Y),
        ece=reliability(two, Y.ravel().astype(np.int64)).ece,
    )


def binary_nll(p: ArrayLike, targets: ArrayLike) -> float:
    """Mean negative log-likelihood of probabilities of yes, clipped at 1e-7.

    >>> round(binary_nll([0.5, 0.5], [0, 1]), 4)
    0.6931
    """
    q = np.clip(np.asarray(p, np.float64), 1e-7, 1 - 1e-7)
    y = np.asarray(targets)
    return float(-np.mean(np.where(y > 0, np.log(q), np.log1p(-q))))


def best_threshold(p: ArrayLike, targets: ArrayLike) -> float:
    """The threshold in 0.05, 0.1, ..., 0.95 with the highest micro F1.

    Of equally good ones it is the nearest to one half.

    >>> best_threshold([[0.3, 0.1], [0.1, 0.4]], [[1, 0], [0, 1]])
    0.3
    """
    q, Y = np.asarray(p), np.asarray(targets) > 0
    best, chosen = -1.0, 0.5
    for threshold in sorted(np.arange(1, 20) / 20, key=lambda t: (abs(t - 0.5), t)):
        said = q >= threshold
        f1 = 2 * (said & Y).sum() / max(1, said.sum() + Y.sum())
        if f1 > best:
            best, chosen = f1, float(threshold)
    return chosen


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> PairedTest:
    """Test whether two classifiers, judged on the same rows, are equally accurate.

    Only rows on which exactly one of them is right say anything. Under equality each of those is
    a fair coin, so the exact binomial distribution gives the p-value, at every sample size.

    Args:
        first_right: (n,) bool, whether the first classifier is right on each row.
        second_right: (n,) bool, the same for the second, rows in the same order.

    Returns:
        The two discordant counts and the two-sided p-value (1.0 if there are none).

    Raises:
        ValueError: the shapes differ or are not one-dimensional.

    Example:
        >>> mcnemar([True] * 8 + [False] * 2, [False] * 8 + [True] * 2)
        PairedTest(only_first=8, only_second=2, p_value=0.109375)
    """
    from scipy.stats import binomtest

    a, b = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"shapes are {a.shape} and {b.shape}: give two flags of shape (n,)")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return PairedTest(only_first, only_second, p_value)


def _checked(
    probabilities: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities as float64 rows that sum to 1 and labels as int64, or refuse them."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"probabilities have shape {p.shape}: give (n, C) with C >= 2")
    if y.shape != (len(p),):
        raise ValueError(f"labels have shape {y.shape}: give ({len(p)},), one label per row")
    if not len(y):
        raise ValueError("there are no rows to evaluate")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels are {y.dtype}: give integers from 0 to C - 1")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(
            f"labels run from {y.min()} to {y.max()}: with {p.shape[1]} columns of probabilities"
            f" they must be from 0 to {p.shape[1] - 1}"
        )
    sums = p.sum(axis=1)
    # A float32 softmax over many classes misses 1 by rounding; anything more is no distribution.
    if not np.isfinite(p).all() or (p < 0).any() or (np.abs(sums - 1) > 1e-3).any():
        raise ValueError("probabilities must be finite, non-negative and sum to 1 in every row")
    return p / sums[:, None], y.astype(np.int64)

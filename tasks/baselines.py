"""The linear probe: what a careful practitioner would fit on the same features.

A rival is only worth beating at its best, so the probe gets what a careful user gives it:
standardised features, a wide path of regularisation strengths chosen on the validation rows, and
every fit run to convergence. Where memory does not hold the features,
:mod:`tasks.streamed_probe` goes along the same path.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convex_heads.scaling import Scaling
from convex_heads.sources import RowSource, chunks, is_streamed
from tasks.calibration import fit_temperature
from tasks.methods.settings import SETTINGS as METHOD_SETTINGS
from tasks.standardise import scaling_of

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

__all__ = ["SETTINGS", "LinearProbe", "Point", "linear_probe", "probe_along_the_path"]

_TRIED = METHOD_SETTINGS["linear"]
_C_TIMES_D = np.array(_TRIED["C_times_d"])
SETTINGS = len(_C_TIMES_D)
_WORTH_THREADS = 2**25  # numbers in the feature matrix; with 2**22 a fit took a quarter longer
_MIN_SETTINGS, _PATIENCE = _TRIED["fewest"], _TRIED["patience"]


@dataclass(frozen=True)
class LinearProbe:
    """A multinomial logistic regression on standardised features, tuned on validation rows.

    Attributes:
        C: the chosen inverse regularisation strength, as scikit-learn defines it.
        validation_accuracy: at that C.
        settings_tried: fits on the path; `seconds` is the wall time of all of them.
        seconds: see above.
        scaling: what was done to the features.
        weights: (d, n_classes), for standardised features.
        intercept: (n_classes,); minus infinity for a class without training rows.
        temperature: that scores are divided by; None: not calibrated.
    """

    C: float
    validation_accuracy: float
    settings_tried: int
    seconds: float
    scaling: Scaling = field(repr=False)
    weights: NDArray[np.floating] = field(repr=False)
    intercept: NDArray[np.floating] = field(repr=False)
    temperature: float | None = None

    def scores(self, X: ArrayLike | RowSource) -> NDArray[np.floating]:
        """Scores (n, n_classes) for the features X (n, d), read in chunks."""
        source: Any = X if is_streamed(X) else np.asarray(X)
        scores = [
            _standardise(self.scaling, source[rows]) @ self.weights for rows in chunks(source)
        ]
        return np.concatenate(scores) + self.intercept

    def predict_proba(self, X: ArrayLike | RowSource) -> NDArray[np.floating]:
        """Probabilities (n, n_classes) for the features X (n, d), read in chunks."""
        from scipy.special import softmax

        T = 1.0 if self.temperature is None else self.temperature
        return softmax(self.scores(X) / T, axis=1)

    def calibrated(self, X_val: ArrayLike | RowSource, y_val: NDArray[np.integer]) -> LinearProbe:
        """The same probe with a temperature chosen on these rows, as the head's is."""
        return replace(self, temperature=fit_temperature(self.scores(X_val), "softmax", y_val))


def linear_probe(
    X: ArrayLike,
    y: ArrayLike,
    X_val: ArrayLike,
    y_val: ArrayLike,
    *,
    n_classes: int | None = None,
    class_weight: str | None = None,
    min_spread: float = 0.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> LinearProbe:
    """Fit a logistic regression for each C of a warm-started path; keep the best on validation.

    Args:
        X: (n, d) training features.
        y: (n,) labels, integers from 0.
        X_val: (m, d) features that choose C, never fitted.
        y_val: (m,) their labels.
        n_classes: columns of the probabilities; None means the largest label seen, plus 1.
        class_weight: None, or "balanced" as scikit-learn means it.
        min_spread: columns with less, as a fraction of the median column's, are left out.
        seed: handed to scikit-learn, whose solver used here draws no random numbers.
        progress: called with 1 after each fit, at most SETTINGS times.

    Returns:
        The probe with the highest validation accuracy; of equal ones that with the smallest C,
        the most regularised. The path ends early, after at least 8 values of C, when 3 in a row
        have not been better.

    Raises:
        ValueError: fewer than two classes in y, no rows, or features that are not finite.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
        >>> y = (X[:, 0] > 0).astype(int)
        >>> probe = linear_probe(X[:100], y[:100], X[100:], y[100:])
        >>> probe.settings_tried, probe.validation_accuracy > 0.9
        (9, True)
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    X, y, y_val = np.asarray(X), np.asarray(y), np.asarray(y_val)
    if n_classes is None:
        n_classes = int(max(y.max(), y_val.max())) + 1
    scaling = scaling_of(X, min_spread)
    Z, Z_val = _standardise(scaling, X), _standardise(scaling, X_val)

    # A pass over a small matrix is over before threads have met; on a busy machine they then spin
    # and wait for each other, which has been seen to make it ten times slower.
    threads = 1 if Z.size < _WORTH_THREADS else None
    # One object along the path: each fit starts from the last one's weights.
    model = LogisticRegression(
        max_iter=2000, tol=1e-4, warm_start=True, class_weight=class_weight, random_state=seed
    )

    def fit(C: float) -> Point:
        model.C = C
        with warnings.catch_warnings(), threadpool_limits(threads):
            # Said once, at the end, if it concerns the fit that is returned.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(Z, y)
        short = f"{model.max_iter} iterations" if model.n_iter_.max() >= model.max_iter else None
        return Point(*_per_class(model, n_classes), short)

    def right(point: Point) -> float:
        return float(np.mean((Z_val @ point.weights + point.intercept).argmax(axis=1) == y_val))

    return probe_along_the_path(fit, right, scaling, started, progress)


class Point(NamedTuple):
    """A fit at one C.

    Attributes:
        weights: (d, n_classes), for standardised features.
        intercept: (n_classes,).
        stopped: after what, where it had not converged.
    """

    weights: NDArray[np.floating]
    intercept: NDArray[np.floating]
    stopped: str | None


def probe_along_the_path(
    fit: Callable[[float], Point],
    right: Callable[[Point], float],
    scaling: Scaling,
    started: float,
    progress: Callable[[int], None] | None,
) -> LinearProbe:
    """The probe with the highest validation accuracy along the path of C.

    Args:
        fit: C -> the fit; called with rising C, so that each can begin where the last one ended.
        right: the share of the validation rows that a fit gets right.
        scaling: of the features, d of them.
        started: ``time.perf_counter()`` when the work began.
        progress: called with 1 after each fit.
    """
    from sklearn.exceptions import ConvergenceWarning

    best: tuple[float, float, Point] | None = None
    tried = best_at = 0
    for C in (_C_TIMES_D / len(scaling.mean)).tolist():
        if tried >= _MIN_SETTINGS and tried - best_at >= _PATIENCE:
            break  # the head's path ends in the same way
        tried += 1
        point = fit(C)
        accuracy = right(point)
        if best is None or accuracy > best[0]:  # not >=: of equals, the smaller C
            best, best_at = (accuracy, C, point), tried
        if progress is not None:
            progress(1)
    assert best is not None
    accuracy, C, point = best
    if point.stopped is not None:
        warnings.warn(
            f"the linear probe at C = {C:.3g} stopped at {point.stopped} before it"
            " converged: its accuracy may be understated",
            ConvergenceWarning,
            stacklevel=3,
        )
    return LinearProbe(
        C=C,
        validation_accuracy=accuracy,
        settings_tried=tried,
        seconds=time.perf_counter() - started,
        scaling=scaling,
        weights=point.weights,
        intercept=point.intercept,
    )


def _standardise(scaling: Scaling, X: ArrayLike) -> NDArray[np.floating]:
    """Standardised features without the constant column: scikit-learn has its own intercept."""
    return np.ascontiguousarray(scaling.transform(np.asarray(X))[:, :-1])


def _per_class(
    model: LogisticRegression, n_classes: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """One column of weights per class, also for two classes and for classes never seen."""
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps the log-odds of the second class alone
        coef, intercept = np.vstack([0 * coef, coef]), np.append(0.0, intercept)
    weights = np.zeros((coef.shape[1], n_classes), coef.dtype)
    weights[:, model.classes_] = coef.T
    offsets = np.full(n_classes, -np.inf, coef.dtype)
    offsets[model.classes_] = intercept
    return weights, offsets

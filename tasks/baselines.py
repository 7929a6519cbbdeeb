"""The linear probe: what a careful practitioner would fit on the same features.

A rival is only worth beating at its best, so the probe gets what a careful user gives it:
standardised features, a wide path of regularisation strengths chosen on the validation rows, and
every fit run to convergence.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convex_heads.scaling import Scaling
from convex_heads.sources import RowSource, chunks, is_streamed
from tasks.methods.settings import SETTINGS as METHOD_SETTINGS

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

__all__ = ["SETTINGS", "LinearProbe", "linear_probe"]

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
    """

    C: float
    validation_accuracy: float
    settings_tried: int
    seconds: float
    scaling: Scaling = field(repr=False)
    weights: NDArray[np.floating] = field(repr=False)
    intercept: NDArray[np.floating] = field(repr=False)

    def predict_proba(self, X: ArrayLike | RowSource) -> NDArray[np.floating]:
        """Probabilities (n, n_classes) for the features X (n, d), read in chunks."""
        from scipy.special import softmax

        source: Any = X if is_streamed(X) else np.asarray(X)
        scores = [
            _standardise(self.scaling, source[rows]) @ self.weights for rows in chunks(source)
        ]
        return softmax(np.concatenate(scores) + self.intercept, axis=1)


def linear_probe(
    X: ArrayLike,
    y: ArrayLike,
    X_val: ArrayLike,
    y_val: ArrayLike,
    *,
    n_classes: int | None = None,
    class_weight: str | None = None,
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
        (8, True)
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    X, y, y_val = np.asarray(X), np.asarray(y), np.asarray(y_val)
    if n_classes is None:
        n_classes = int(max(y.max(), y_val.max())) + 1
    scaling = Scaling.fit(X, np.ones(len(X)))
    Z, Z_val = _standardise(scaling, X), _standardise(scaling, X_val)

    # A pass over a small matrix is over before threads have met; on a busy machine they then spin
    # and wait for each other, which has been seen to make it ten times slower.
    threads = 1 if Z.size < _WORTH_THREADS else None
    # One object along the path: each fit starts from the last one's weights.
    model = LogisticRegression(
        max_iter=2000, tol=1e-4, warm_start=True, class_weight=class_weight, random_state=seed
    )
    best: LogisticRegression | None = None
    best_accuracy, unconverged = -1.0, False
    tried = best_at = 0
    for C in _C_TIMES_D / X.shape[1]:
        if tried >= _MIN_SETTINGS and tried - best_at >= _PATIENCE:
            break  # the head's path ends in the same way
        tried += 1
        model.C = float(C)
        with warnings.catch_warnings(), threadpool_limits(threads):
            # Said once, below, if it concerns the fit that is returned.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(Z, y)
        accuracy = float(np.mean(model.predict(Z_val) == y_val))
        if accuracy > best_accuracy:  # not >=: of equals, the smaller C
            best, best_accuracy, best_at = copy.deepcopy(model), accuracy, tried
            unconverged = model.n_iter_.max() >= model.max_iter
        if progress is not None:
            progress(1)
    assert best is not None
    if unconverged:
        warnings.warn(
            f"the linear probe at C = {best.C:.3g} stopped at {best.max_iter} iterations before it"
            " converged: its accuracy may be understated",
            ConvergenceWarning,
            stacklevel=2,
        )
    weights, intercept = _per_class(best, n_classes)
    return LinearProbe(
        C=best.C,
        validation_accuracy=best_accuracy,
        settings_tried=tried,
        seconds=time.perf_counter() - started,
        scaling=scaling,
        weights=weights,
        intercept=intercept,
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

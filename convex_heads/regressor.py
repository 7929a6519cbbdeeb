"""The scikit-learn regressor: a certified gated ReLU head with the squared loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import _check_sample_weight, validate_data

from convex_heads.head import ConvexHead, check_validation, feature_dtype
from convex_heads.solution import Record
from convex_heads.training import TrainingSet


class ConvexHeadRegressor(RegressorMixin, ConvexHead):
    """A two-layer gated ReLU regressor (squared loss), trained to proven global optimality.

    The same program as :class:`ConvexHeadClassifier` with l(z, y) = |z - y|^2 / 2; beta is chosen
    by the validation loss.

    Parameters and attributes: as for the classifier, where they apply.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(400, 3))
        >>> head = ConvexHeadRegressor().fit(X, np.abs(X[:, 0]))
        >>> head.score(X, np.abs(X[:, 0])) > 0.9
        True
    """

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        on_progress: Callable[[float], None] | None = None,
        on_record: Callable[[Record], None] | None = None,
    ) -> Self:
        """Fits and certifies the head.

        Args:
            X: features (n, d), finite.
            y: real targets (n,) or (n, C).
            sample_weight: (n,), non-negative.
            X_val: validation features (m, d) to choose beta by; they are never trained on.
            y_val: their targets.
            on_progress: called every few steps with the share of the fit that is done, in [0, 1].
            on_record: called every few steps with the record of the solve that is running, as for
                the classifier.

        Raises:
            ValueError: unusable input or options, said in one sentence.
        """
        X, y = validate_data(
            self,
            X,
            y,
            dtype=[feature_dtype()],
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2,
        )
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._one_output = y.ndim == 1
        target = np.asarray(y, X.dtype).reshape(len(X), -1)
        validation = None
        if X_val is not None:
            X_val, y_val = check_validation(X, X_val, y_val)
            validation = X_val, np.asarray(y_val, X.dtype).reshape(len(X_val), -1)
        data = TrainingSet.build(
            X, target, weight, validation=validation, hold_out=self._chooses_beta, classes=False
        )
        self._fit(data, "squared", _r2, on_progress, on_record)
        self.network_ = self.network_.astype(np.float64)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """Predicted targets, shaped like y, in double precision as scikit-learn's are."""
        z = self._scores(X)
        return z[:, 0] if self._one_output else z


def _r2(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    return float(r2_score(target, z, sample_weight=weight))

"""The scikit-learn regressor: a certified gated ReLU head with the squared loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import _check_sample_weight

from convex_heads.head import ConvexHead
from convex_heads.inputs import all_or_nothing, check_validation
from convex_heads.solution import Record
from convex_heads.training import TrainingSet, feature_dtype


class ConvexHeadRegressor(RegressorMixin, ConvexHead):
    """A two-layer gated ReLU regressor (squared loss), solved to a certified optimality gap.

    The same program as :class:`ConvexHeadClassifier` with ``l(z, y) = |z - y|^2 / 2``; beta is
    chosen by the validation loss.

    Parameters and attributes: as for the classifier, where they apply.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(400, 3))
        >>> head = ConvexHeadRegressor().fit(X, np.abs(X[:, 0]))
        >>> head.score(X, np.abs(X[:, 0])) > 0.9
        True
    """

    @all_or_nothing
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
            X: features (n, d), finite; memory-mapped ones and row sources as for the classifier.
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
        X, y = self._check_rows(X, y, multi_output=True, y_numeric=True)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._one_output = y.ndim == 1
        y = np.asarray(y, np.float64).reshape(len(X), -1)
        units = _Units.of(y[weight > 0], weight[weight > 0])
        validation = None
        if X_val is not None:
            X_val, y_val = check_validation(self, X, X_val, y_val, outputs=y.shape[1])
            validation = X_val, units.into(y_val)
        data = TrainingSet.build(
            X,
            units.into(y),
            weight,
            validation=validation,
            hold_out=self._chooses_beta,
            classes=False,
        )
        tell = None if on_record is None else lambda r: on_record(units.records((r,))[0])
        self._fit(data, "squared", _r2, on_progress, tell)
        self._back(units)
        return self

    def _back(self, units: _Units) -> None:
        """Everything that was learnt, from the units of the program into those of y."""
        u = units.unit
        self.network_ = self.network_.astype(np.float64).in_units(u, units.centre)
        c = self.certificate_
        self.certificate_ = c._replace(
            primal=c.primal * u**2, dual=c.dual * u**2, beta=c.beta * u, beta_max=c.beta_max * u
        )
        self._unit = u
        self.history_ = units.records(self.history_)
        self.path_ = tuple(
            replace(
                point,
                beta=point.beta * u,
                primal=point.primal * u**2,
                loss=point.loss * u**2,
                standard_error=point.standard_error * u**2,
                difference_error=point.difference_error * u**2,
                gate_norms=tuple(norm * u for norm in point.gate_norms),
                history=units.records(point.history),
            )
            for point in self.path_
        )

    @property
    def coef_path_(self) -> list[np.ndarray]:
        """As of the classifier, in the units of y."""
        return [W.astype(np.float64) * self._unit for W in super().coef_path_]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """Predicted targets, shaped like y, in double precision as scikit-learn's are."""
        z = self._scores(X)
        return z[:, 0] if self._one_output else z


# Squares of larger (or smaller) targets leave the range of double precision.
_LARGEST = 1e100


class _Units(NamedTuple):
    """Targets as the program sees them: (y - centre) / unit, of size one.

    The squared loss in single precision would lose the digits of targets with a large mean, and
    overflow where targets are above 1e19. The unit is a power of two and the centre a multiple of
    1/64 of it, so that neither depends on the last bits of a mean: weights and repeats of rows give
    the same targets.

    Attributes:
        centre: (C,).
        unit: the same for all outputs.
    """

    centre: np.ndarray
    unit: float

    @classmethod
    def of(cls, y: np.ndarray, weight: np.ndarray) -> _Units:
        """Of the targets (n, C) that are fitted, and their weights (n,), positive.

        Raises:
            ValueError: targets whose squares are no numbers.
        """
        low, high = y.min(axis=0), y.max(axis=0)
        largest, spread = max(abs(low).max(), abs(high).max()), (high / 2 - low / 2).max()
        if largest > _LARGEST or 0 < spread < 1 / _LARGEST:
            raise ValueError(
                f"y reaches {largest:.1e} and varies by {2 * spread:.1e}: both must be between "
                f"{1 / _LARGEST:g} and {_LARGEST:g}, so give y in another unit"
            )
        if spread <= 0:
            return cls(low, 1.0)
        mean = np.average(y, axis=0, weights=weight / weight.max())
        unit = 2.0 ** math.frexp(spread)[1]
        return cls(np.round(mean / unit * 64) / 64 * unit, unit)

    def into(self, y: np.ndarray) -> np.ndarray:
        """Targets (m, C) in the units of the program."""
        return ((y - self.centre) / self.unit).astype(feature_dtype())

    def records(self, history: Sequence[Record]) -> tuple[Record, ...]:
        """Records of the program in the units of y."""
        u2 = self.unit**2
        return tuple(r._replace(primal=r.primal * u2, dual=r.dual * u2) for r in history)


def _r2(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    return float(r2_score(target, z, sample_weight=weight))

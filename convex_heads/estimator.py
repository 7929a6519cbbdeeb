"""scikit-learn estimators: certified gated ReLU heads for classification and regression."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from convex_heads.decode import Network, probabilities
from convex_heads.fista import Limits, minimise
from convex_heads.gated import (
    Options,
    Prepared,
    certify_prepared,
    held_out_program,
    prepare,
    reweight,
    unrotate,
)
from convex_heads.losses import LOSSES
from convex_heads.operators import apply, rows
from convex_heads.path import DEFAULT_BETAS, record_progress, solve_path
from convex_heads.scaling import Scaling
from convex_heads.solution import Status
from convex_heads.training import TrainingSet

# Gates offered by "auto": more of them than an eighth of the rows would let single rows have
# gates of their own.
MAX_AUTO_GATES = 64
_ROWS_PER_GATE = 8
_FIXED_BETA = 0.1
# No looser: weights far from their optimum are weights stopped early, and their validation score
# says little about the weights that the final solve would reach.
_SELECTION_GAP = 5e-2


class _ConvexHead(BaseEstimator):
    """What the classifier and the regressor share: everything after the targets are numbers."""

    def __init__(
        self,
        *,
        n_gates: int | str = "auto",
        beta: float | str | Sequence[float] = "auto",
        tolerance: float = 5e-2,
        max_passes: int = 1000,
        max_seconds: float | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_gates = n_gates
        self.beta = beta
        self.tolerance = tolerance
        self.max_passes = max_passes
        self.max_seconds = max_seconds
        self.random_state = random_state

    def _fit(
        self,
        data: TrainingSet,
        loss_name: str,
        score: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
        on_progress: Callable[[float], None] | None,
    ) -> None:
        limits = Limits(self.tolerance, self.max_passes, self.max_seconds)
        n_gates = self.n_gates
        if n_gates == "auto":
            n_gates = min(MAX_AUTO_GATES, max(1, len(data.X) // _ROWS_PER_GATE))
        if not isinstance(n_gates, int | np.integer):
            raise ValueError(f"n_gates must be 'auto' or a whole number; got {self.n_gates!r}")
        fractions = self._fractions(data)
        for fraction in fractions:
            Options(beta=fraction, n_gates=int(n_gates), loss=loss_name)
        loss = LOSSES[loss_name]
        scaling = Scaling.fit(data.X, data.weight)
        key, certificate_key = jax.random.split(
            jax.random.key(check_random_state(self.random_state).randint(2**31 - 1))
        )
        prepared = prepare(
            scaling.transform(data.X), data.target, data.omega, loss, int(n_gates), key
        )
        path = solve_path(
            prepared,
            fractions,
            replace(limits, tolerance=max(limits.tolerance, _SELECTION_GAP)),
            score=_validation_score(data, prepared, scaling, score),
            # The path is taken for half of the work, the final solve for the other half.
            on_progress=None if on_progress is None else lambda done: on_progress(done / 2),
        )
        fraction, W = path.points[path.best].fraction, path.weights[path.best]
        if data.held_out.any():
            prepared = reweight(prepared, data.weight)
        beta = fraction * prepared.beta_max
        solution, _ = minimise(
            prepared.program,
            loss,
            beta,
            h=prepared.h,
            W=W,
            L=path.L,
            limits=limits,
            on_record=record_progress(limits, on_progress, 1, 2),
        )
        self.certificate_ = certify_prepared(
            prepared, solution.value, beta, R=solution.residual, key=certificate_key
        )
        if solution.status is not Status.CONVERGED:
            warnings.warn(
                f"relative gap {self.certificate_.relative_gap:.2g} is above the tolerance "
                f"{self.tolerance:.2g}: {solution.status.value}",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.network_ = Network.decode(
            scaling,
            prepared.gates,
            unrotate(prepared, solution.value),
            np.asarray(prepared.program.z0),
            loss_name,
        )
        self.loss_ = loss_name
        self.status_ = solution.status
        self.beta_ = fraction
        self.path_ = path.points
        self.coef_path_ = [unrotate(prepared, W) for W in path.weights]
        self.history_ = solution.history
        self.passes_ = sum(point.passes for point in path.points) + solution.stats.passes
        self.block_rows_ = solution.stats.block_rows

    def _fractions(self, data: TrainingSet) -> Sequence[float]:
        if isinstance(self.beta, str):
            if self.beta != "auto":
                raise ValueError(
                    f"beta must be 'auto', a fraction of beta_max or a list of them; got "
                    f"{self.beta!r}"
                )
            choice = data.validation is not None or data.held_out.any()
            return DEFAULT_BETAS if choice else (_FIXED_BETA,)
        return [self.beta] if np.ndim(self.beta) == 0 else list(self.beta)  # type: ignore

    @property
    def _chooses_beta(self) -> bool:
        return isinstance(self.beta, str) or np.ndim(self.beta) > 0

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[_dtype()], reset=False)
        return self.network_.scores(np.asarray(X))


class ConvexHeadClassifier(ClassifierMixin, _ConvexHead):
    r"""A two-layer gated ReLU classifier, trained to proven global optimality.

    .. math:: \min_W\; \frac1n \sum_j l\Big(z_0 + \sum_i D_i X W_i\Big)_j
              + \beta \sum_i \|W_i\|_F

    over standardised features X with a constant column, gates g_i drawn once, and
    D_i = diag(1[X g_i >= 0]); see :mod:`convex_heads.gated`. The first gate is always on, so the
    head contains the linear probe. There is no learning rate and nothing to initialise; what is
    random are the gates. "Globally optimal" is meant for the drawn gates.

    Parameters:
        n_gates: how many gates to draw, or "auto" (one for every 8 distinct rows, at most 64).
        beta: penalty as a fraction of beta_max (the value at which the head is zero), a list of
            fractions to choose from, or "auto": a path from 0.1 to 0.001 of which the lowest
            validation loss chooses; the larger beta wins ties. Without ``X_val``, 15% of the rows
            are held out by a hash of their content to choose, then all rows are fitted; with
            fewer than 100 distinct rows beta is 0.1.
        loss: "auto" (logistic for two classes, else softmax), "softmax", "logistic", "squared".
        class_weight: None, "balanced" or a dict from class to weight.
        tolerance: relative gap to reach. Default 5e-2.
        max_passes: data passes to spend on one solve. Default 1000.
        max_seconds: seconds to spend on one solve. Default None, no limit.
        random_state: seed of the gates. Default 0; results repeat to the bit.

    Attributes:
        classes_: class labels.
        certificate_: :class:`convex_heads.certificate.Certificate` of the final weights.
        status_: how the final solve ended.
        beta_: the chosen fraction of beta_max.
        path_: one :class:`convex_heads.path.PathPoint` for each beta tried.
        coef_path_: weights (P, d + 1, C) of every point of the path, standardised coordinates.
        history_: records of the final solve.
        network_: :class:`convex_heads.decode.Network`, what predicts.
        passes_: data passes spent in all.

    Equal rows are merged into weights and rows are ordered by content first, so neither their
    order nor repeating a row instead of weighting it changes the result.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(400, 5))
        >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "different")
        >>> head = ConvexHeadClassifier().fit(X[:300], y[:300])
        >>> bool(head.score(X[300:], y[300:]) > 0.85), head.certificate_.relative_gap <= 5e-2
        (True, True)
    """

    def __init__(
        self,
        *,
        n_gates: int | str = "auto",
        beta: float | str | Sequence[float] = "auto",
        loss: str = "auto",
        class_weight: str | dict | None = None,
        tolerance: float = 5e-2,
        max_passes: int = 1000,
        max_seconds: float | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        super().__init__(
            n_gates=n_gates,
            beta=beta,
            tolerance=tolerance,
            max_passes=max_passes,
            max_seconds=max_seconds,
            random_state=random_state,
        )
        self.loss = loss
        self.class_weight = class_weight

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Self:
        """Fits and certifies the head.

        Args:
            X: features (n, d), finite.
            y: class labels (n,), at least two classes.
            sample_weight: (n,), non-negative.
            X_val: validation features (m, d) to choose beta by; they are never trained on.
            y_val: their labels, all of them occurring in y.
            on_progress: called every few steps with the share of the fit that is done, in [0, 1].

        Raises:
            ValueError: unusable input or options, said in one sentence.
        """
        X, y = validate_data(self, X, y, dtype=[_dtype()], ensure_min_samples=2)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self.classes_, label = np.unique(y, return_inverse=True)
        C = len(self.classes_)
        if len(np.unique(label[weight > 0])) < 2:
            raise ValueError(
                f"a classifier needs rows of at least 2 classes; got 1 class, "
                f"{self.classes_[label[weight > 0][:1]].tolist()}"
            )
        if self.class_weight is not None:
            balance = compute_class_weight(
                self.class_weight, classes=self.classes_, y=y, sample_weight=weight
            )
            weight = weight * balance[label]
        loss = self._loss_name(C)
        target = _targets(label, loss, C, X.dtype)
        validation = None
        if X_val is not None:
            X_val, y_val = _validation(X, X_val, y_val)
            unknown = np.setdiff1d(y_val, self.classes_)
            if len(unknown):
                raise ValueError(f"y_val holds classes that y does not: {unknown.tolist()[:5]}")
            label_val = np.searchsorted(self.classes_, y_val)
            validation = X_val, _targets(label_val, loss, C, X.dtype)
        data = TrainingSet.build(
            X, target, weight, validation=validation, hold_out=self._chooses_beta, classes=True
        )
        self._fit(data, loss, _accuracy, on_progress)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores: (n, C), or (n,) for two classes (positive means ``classes_[1]``)."""
        z = self._scores(X)
        if len(self.classes_) > 2:
            return z
        return z[:, 0] if z.shape[1] == 1 else z[:, 1] - z[:, 0]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, C). For the squared loss: scores clipped and normalised."""
        return probabilities(self._scores(X), self.loss_)

    def predict(self, X: Any) -> np.ndarray:
        """Class labels (n,)."""
        z = self._scores(X)
        index = (z[:, 0] > 0).astype(int) if z.shape[1] == 1 else z.argmax(axis=1)
        return self.classes_[index]

    def _loss_name(self, C: int) -> str:
        if self.loss == "auto":
            return "logistic" if C == 2 else "softmax"
        if self.loss == "logistic" and C > 2:
            raise ValueError(f"the logistic loss is for two classes, y has {C}: use loss='softmax'")
        return self.loss


class ConvexHeadRegressor(RegressorMixin, _ConvexHead):
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
    ) -> Self:
        """Fits and certifies the head.

        Args:
            X: features (n, d), finite.
            y: real targets (n,) or (n, C).
            sample_weight: (n,), non-negative.
            X_val: validation features (m, d) to choose beta by; they are never trained on.
            y_val: their targets.
            on_progress: called every few steps with the share of the fit that is done, in [0, 1].

        Raises:
            ValueError: unusable input or options, said in one sentence.
        """
        X, y = validate_data(
            self, X, y, dtype=[_dtype()], multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._one_output = y.ndim == 1
        target = np.asarray(y, X.dtype).reshape(len(X), -1)
        validation = None
        if X_val is not None:
            X_val, y_val = _validation(X, X_val, y_val)
            validation = X_val, np.asarray(y_val, X.dtype).reshape(len(X_val), -1)
        data = TrainingSet.build(
            X, target, weight, validation=validation, hold_out=self._chooses_beta, classes=False
        )
        self._fit(data, "squared", _r2, on_progress)
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


def _dtype() -> type:
    """float32, or float64 where JAX has been told to compute in it."""
    return np.float64 if jax.dtypes.canonicalize_dtype(np.float64) == np.float64 else np.float32


def _validation(X: np.ndarray, X_val: Any, y_val: Any) -> tuple[np.ndarray, np.ndarray]:
    X_val = check_array(X_val, dtype=X.dtype.name)
    if X_val.shape[1] != X.shape[1]:
        raise ValueError(f"X_val has {X_val.shape[1]} features, X has {X.shape[1]}")
    if y_val is None:
        raise ValueError("X_val was given without y_val")
    check_consistent_length(X_val, y_val)
    return X_val, np.asarray(y_val)


def _targets(label: np.ndarray, loss: str, C: int, dtype: Any) -> np.ndarray:
    """(n, 1) zeros and ones for the logistic loss, else one-hot (n, C)."""
    if loss == "logistic":
        return label[:, None].astype(dtype)
    return np.eye(C, dtype=dtype)[label]


def _validation_score(
    data: TrainingSet,
    prepared: Prepared,
    scaling: Scaling,
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
) -> Callable[[Array, Array], tuple[float, float]]:
    """(rotated weights, their F W on the training rows) -> loss and score of the choosing rows."""
    z0 = np.asarray(prepared.program.z0)

    def both(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
        losses = np.asarray(prepared.loss.value(jnp.asarray(z), jnp.asarray(target)))
        return float(np.average(losses, weights=weight)), score(z, target, weight)

    if data.validation is not None:
        X_val, target_val = data.validation
        program = held_out_program(prepared, scaling.transform(X_val), target_val)
        weight = np.ones(len(X_val))
        return lambda W, _: both(rows(apply(program, W), len(X_val)) + z0, target_val, weight)
    chosen = np.flatnonzero(data.held_out)
    if len(chosen):
        target, weight = data.target[chosen], data.held_out[chosen]
        return lambda _, z: both(rows(z, len(data.X))[chosen] + z0, target, weight)
    return lambda *_: (float("nan"), float("nan"))


def _accuracy(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    if z.shape[1] == 1:
        right = (z[:, 0] > 0) == (target[:, 0] > 0.5)
    else:
        right = z.argmax(axis=1) == target.argmax(axis=1)
    return float(np.average(right, weights=weight))


def _r2(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    return float(r2_score(target, z, sample_weight=weight))

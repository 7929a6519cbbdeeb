"""What the classifier and the regressor share: everything after the targets are numbers."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from convex_heads.checkpoint import one_fit
from convex_heads.gated import Prepared, turned, unrotate
from convex_heads.gates import DEFAULT_SAMPLER
from convex_heads.growth import Growth, Round, grow
from convex_heads.inputs import raw_dtypes
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES
from convex_heads.mappings import make_room
from convex_heads.path import counted_after, record_progress, solve_path
from convex_heads.penalties import PENALTIES
from convex_heads.precision import Precision
from convex_heads.programs import (
    ACTIVATIONS,
    AUTO,
    Options,
    default_penalty,
    default_tolerance,
)
from convex_heads.scaling import Scaling
from convex_heads.selection import check_selection, validation_score
from convex_heads.solution import Record, Status
from convex_heads.sources import RowSource, check_source, is_streamed
from convex_heads.training import (
    MIN_ROWS_TO_SELECT,
    TrainingSet,
    standardised,
)

# Rows for each gate offered by "auto": with fewer of them single rows would have gates of their
# own.
_ROWS_PER_GATE = 8
# Numbers in the weights (P, d, C) of a default head, 256 MB; solvers hold some twenty such arrays.
# Features of 768 numbers and 1,000 classes get all gates, 10,000 classes an eighth of them.
_WEIGHTS = 1 << 26
_FIXED_BETA = 0.1
# Few large rounds: each compiles the solver for its number of gates.
_GROWN_AT_ONCE = 32
# No looser: weights far from their optimum are weights stopped early, and their validation score
# says little about the weights that the final solve would reach.
_SELECTION_GAP = 5e-2


class ConvexHead(BaseEstimator):
    """Options, the fit on numeric targets, and scores."""

    def __init__(
        self,
        *,
        n_gates: int | str = "auto",
        gates: str = DEFAULT_SAMPLER,
        beta: float | str | Sequence[float] = "auto",
        penalty: str = "auto",
        activation: str = "gated_relu",
        tolerance: float | str = "auto",
        solver: str = "auto",
        max_passes: int = 1000,
        max_seconds: float | None = None,
        precision: str = "float32",
        selection: str = "best",
        min_spread: float = 0.0,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_gates = n_gates
        self.gates = gates
        self.beta = beta
        self.penalty = penalty
        self.activation = activation
        self.tolerance = tolerance
        self.solver = solver
        self.max_passes = max_passes
        self.max_seconds = max_seconds
        self.precision = precision
        self.selection = selection
        self.min_spread = min_spread
        self.random_state = random_state

    def _fit(
        self,
        data: TrainingSet,
        loss_name: str,
        score: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
        on_progress: Callable[[float], None] | None,
        on_record: Callable[[Record], None] | None,
    ) -> None:
        check_selection(self.selection)
        if not (isinstance(self.min_spread, numbers.Real) and 0 <= self.min_spread < 1):
            raise ValueError(f"min_spread must be at least 0 and below 1; got {self.min_spread!r}")
        options = self._options(data, loss_name)
        fractions = self._fractions(data, AUTO[options.activation, options.penalty].betas)
        for fraction in fractions:
            replace(options, beta=fraction)
        make_room()
        scaling = Scaling.fit(data.X, data.weight, self.min_spread)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        # A seed of None is another every time.
        identity = (self.get_params(), seed, data.X, data.target, data.omega, data.held_out)
        with one_fit(*identity, *(data.validation or ())):
            self._fit_scaled(
                data,
                scaling,
                options,
                fractions,
                jax.random.key(seed),
                score,
                on_progress,
                on_record,
            )

    def _fit_scaled(
        self,
        data: TrainingSet,
        scaling: Scaling,
        options: Options,
        fractions: Sequence[float],
        key: jax.Array,
        score: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
        on_progress: Callable[[float], None] | None,
        on_record: Callable[[Record], None] | None,
    ) -> None:
        activation = ACTIVATIONS[options.activation]
        limits, loss_name = options.limits, options.loss
        key, certificate_key = jax.random.split(key)
        # For the middle of the path: gates that help there help on both sides of it.
        middle = sorted(fractions)[len(fractions) // 2]
        prepared, rounds = self._prepare(data, scaling, replace(options, beta=middle), key)
        prepared, solver = activation.with_solver(prepared, options.solver)
        path = solve_path(
            prepared,
            fractions,
            _loose(limits),
            solver=solver,
            activation=activation,
            score=validation_score(data, prepared, scaling, activation.scores, score),
            selection=self.selection,
            begin=self._begin(options),
            # The path is taken for half of the work, the final solve for the other half.
            on_progress=None if on_progress is None else lambda done: on_progress(done / 2),
            on_record=on_record,
        )
        fraction = path.points[path.best].fraction
        if data.held_out.any():
            prepared = activation.reweight(prepared, data.weight)
        beta = fraction * prepared.beta_max
        passes = sum(point.passes for point in path.points)
        seconds = sum(point.seconds for point in path.points)
        # The final state is let go: it is many times the solution.
        solution = activation.minimise(
            prepared,
            beta,
            solver=solver,
            warm=path.state,
            limits=limits,
            on_record=record_progress(
                limits, on_progress, 1, 2, counted_after(on_record, passes, seconds)
            ),
        )[0]
        self.certificate_ = activation.certify(
            prepared, solution.value, beta, R=solution.residual, key=certificate_key
        )
        # The certificate is what counts, whatever the solver knew of it.
        status = solution.status.judged_by(self.certificate_.relative_gap, options.limits.tolerance)
        if status is not Status.CONVERGED:
            warnings.warn(
                f"relative gap {self.certificate_.relative_gap:.2g} is above the tolerance "
                f"{options.limits.tolerance:.2g}: {status.value}",
                ConvergenceWarning,
                stacklevel=4,
            )
        self.network_ = activation.decode(
            scaling,
            prepared.gates,
            unrotate(prepared, solution.value),
            np.asarray(prepared.program.z0),
            loss_name,
        )
        self.gates_ = prepared.gates
        self.loss_ = loss_name
        self.solver_ = solver
        self.penalty_ = options.penalty
        self.status_ = status
        self.tolerance_ = options.limits.tolerance
        self.beta_ = fraction
        self.path_ = path.points
        self._rotated_path = prepared.Q, [np.asarray(W) for W in path.weights]
        self.history_ = solution.history
        self.precision_effect_ = solution.precision_effect
        self.passes_ = sum(each.passes for each in rounds) + passes + solution.stats.passes
        before = (*rounds, *path.points)
        self.reduced_passes_ = sum(each.reduced_passes for each in before) + solution.reduced_passes
        self.block_rows_ = solution.stats.block_rows

    @property
    def coef_path_(self) -> list[np.ndarray]:
        """Weights W (P, d + 1, C) of every point of ``path_``, computed when asked for."""
        check_is_fitted(self)
        Q, weights = self._rotated_path
        return [turned(Q, W) for W in weights]

    def _check_rows(self, X: Any, y: Any, **options: Any) -> tuple[RowSource, np.ndarray]:
        """X (n, d) and y (n,) or (n, C), checked; a streamed X is read and left where it is."""
        dtypes = raw_dtypes(X)
        if not is_streamed(X):
            X, y = validate_data(self, X, y, dtype=dtypes, ensure_min_samples=2, **options)
            return X, y
        X = check_source("X", X, dtypes)
        y = np.asarray(validate_data(self, "no_validation", y, **options))
        check_consistent_length(X, y)
        if len(X) < 2:
            raise ValueError("Found array with 1 sample(s) while a minimum of 2 is required.")
        self.n_features_in_ = X.shape[1]
        # Of an earlier fit on named columns.
        vars(self).pop("feature_names_in_", None)
        return X, y

    def _options(self, data: TrainingSet, loss_name: str) -> Options:
        """The options as checked numbers; beta is still to be chosen."""
        n_gates, tolerance, penalty = self.n_gates, self.tolerance, self.penalty
        d, C = data.X.shape[1] + 1, data.target.shape[1]
        if penalty == "auto":
            # Gates are grown until none violates the group penalty's dual constraint.
            penalty = (
                "group"
                if n_gates == "grow"
                else default_penalty(self.activation, loss_name, len(data.X), d, C)
            )
        # An unknown activation or penalty is refused below, whatever the gates.
        known = AUTO.get((self.activation, penalty), AUTO["gated_relu", "group"])
        if n_gates in ("auto", "grow"):
            held = _WEIGHTS // (d * C)
            n_gates = max(1, min(known.gates, len(data.X) // _ROWS_PER_GATE, held))
        if tolerance == "auto":
            tolerance = default_tolerance(self.activation, loss_name)
        if isinstance(tolerance, str):
            raise ValueError(f"tolerance is 'auto' or a relative gap; got {tolerance!r}")
        if not isinstance(n_gates, int | np.integer):
            raise ValueError(
                f"n_gates must be 'auto', 'grow' or a whole number; got {self.n_gates!r}"
            )
        if self.n_gates == "grow" and self.activation == "relu":
            raise ValueError("n_gates='grow' is for gated heads: ReLU heads find their patterns")
        return Options(
            n_gates=int(n_gates),
            gates=self.gates,
            loss=loss_name,
            penalty=penalty,
            activation=self.activation,
            solver=self.solver,
            limits=Limits(tolerance, self.max_passes, self.max_seconds),
            precision=self.precision,
        )

    def _prepare(
        self, data: TrainingSet, scaling: Scaling, options: Options, key: jax.Array
    ) -> tuple[Prepared, tuple[Round, ...]]:
        """The program with its gates, drawn or grown, and the rounds of growing."""
        X = standardised(scaling, data.X)
        growing = self.n_gates == "grow"
        prepared = ACTIVATIONS[options.activation].prepare(
            X,
            data.target,
            data.omega,
            LOSSES[options.loss],
            1 if growing else options.n_gates,
            key,
            PENALTIES[options.penalty],
            options.gates,
        )
        prepared = prepared._replace(precision=Precision(options.precision))
        if not growing:
            return prepared, ()
        growth = Growth(batch=_GROWN_AT_ONCE, max_gates=options.n_gates, sampler=options.gates)
        grown = grow(
            prepared,
            X,
            options.beta * prepared.beta_max,
            key,
            growth,
            # A program that grows has no kernel to keep.
            solver="fista" if options.solver == "fista" else "subspace",
            limits=_loose(options.limits),
        )
        return grown.prepared, grown.rounds

    def _fractions(self, data: TrainingSet, betas: Sequence[float]) -> Sequence[float]:
        choice = data.validation is not None or data.held_out.any()
        if isinstance(self.beta, str):
            if self.beta != "auto":
                raise ValueError(
                    f"beta must be 'auto', a fraction of beta_max or a list of them; got "
                    f"{self.beta!r}"
                )
            return betas if choice else (_FIXED_BETA,)
        fractions: list[float] = np.atleast_1d(self.beta).tolist()
        if not fractions:
            raise ValueError("beta is an empty list: give at least one fraction of beta_max")
        if len(fractions) > 1 and not choice:
            raise ValueError(
                f"choosing one of {len(fractions)} betas needs validation rows: pass X_val and "
                f"y_val, or one beta (fewer than {MIN_ROWS_TO_SELECT} distinct rows are too few "
                f"to hold some out)"
            )
        return fractions

    def _begin(self, options: Options) -> float | None:
        """Where the path begins, if not at its end."""
        # The simplest head that is no worse may be any number of points before the best.
        if not isinstance(self.beta, str) or self.selection != "best":
            return None
        return AUTO[options.activation, options.penalty].begin

    @property
    def _chooses_beta(self) -> bool:
        return isinstance(self.beta, str) or np.ndim(self.beta) > 0

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        if is_streamed(X):
            X = check_source("X", X, raw_dtypes(X))
            if X.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                    f"{self.n_features_in_} features as input"
                )
            return self.network_.scores(X)
        X = validate_data(self, X, dtype=raw_dtypes(X), reset=False)
        return self.network_.scores(np.asarray(X))


def _loose(limits: Limits) -> Limits:
    """Limits of solves that only choose."""
    return replace(limits, tolerance=max(limits.tolerance, _SELECTION_GAP))

"""The scikit-learn classifier: a certified gated ReLU head."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

from convex_heads.decode import probabilities
from convex_heads.gates import DEFAULT_SAMPLER
from convex_heads.head import ConvexHead
from convex_heads.inputs import all_or_nothing, check_validation
from convex_heads.losses import LOSSES, targets
from convex_heads.solution import Record
from convex_heads.training import TrainingSet, feature_dtype


class ConvexHeadClassifier(ClassifierMixin, ConvexHead):
    r"""A two-layer gated ReLU classifier, solved to a certified optimality gap.

    .. math:: \min_W\; \frac1n \sum_j l\Big(z_0 + \sum_i D_i X W_i\Big)_j
              + \frac{\beta}{2} \sum_i \|W_i\|_F^2

    over standardised features X with a constant column, gates g_i drawn once, and
    D_i = diag(1[X g_i >= 0]); see :mod:`convex_heads.gated`. The first gate is always on, so the
    head can represent every linear probe. There is no learning rate and nothing to initialise; what
    is random are the gates, and the gap is that of the program of these gates.

    Parameters:
        n_gates: how many gates to draw, or "auto" (one for every 8 distinct rows, at most 256; 64
            under the group penalty; 32 for ReLU heads, which have two neurons for every gate and
            class), or "grow": at most as many as that, added where they lower the objective
            most, under the group penalty if none is named (slower; see :mod:`convex_heads.growth`).
        gates: how they are drawn: "aligned" (default), "gaussian", "geometric" or "pairs"; see
            :mod:`convex_heads.gates`.
        beta: penalty as a fraction of beta_max (the value at which the head is zero under the group
            penalty), a list of fractions to choose from, or "auto": a path from 10 to 0.003 (group
            penalty: from 0.1 to 0.001; ReLU heads: from 0.003 to 0.3 of a smaller beta_max) of
            which the lowest validation loss chooses; the larger beta wins ties. The path ends early
            once two points in turn have not lowered it; under ridge, unless selection is "one_se",
            it begins at 1, and looks at larger ones only if no smaller one is better. Without
            ``X_val``, 15% of the rows are held out by a hash of their content to choose, then all
            rows are fitted; with fewer than 100 distinct rows beta is 0.1.
        loss: "auto" (logistic for two classes, else softmax), "softmax", "logistic", "squared".
            Logistic with more than two classes is one-vs-rest: the sum of C binary losses, each
            class against the others, over shared gates. Under the group penalty it is one program
            and not C of them, since a group is what a gate owns for all classes together, and one
            certificate proves it; under "ridge" it falls apart into the C binary programs.
            Probabilities are the C sigmoids, normalised.
        class_weight: None, "balanced" or a dict from class to weight.
        penalty: "ridge" (the formula above), which uses all gates and comes, with many, near the
            kernel (x'y) Pr(g'x >= 0, g'y >= 0); "group", sum_i ||W_i||_F in its place, which
            switches gates off; or "auto" (default): ridge, but group for ReLU heads, for the
            squared loss, for gates that grow, with fewer than 100 distinct rows, and where 256
            gates would make a head of more than 64 MB. Fractions in ``beta`` are of the group
            penalty's beta_max for both, and may be above 1 for ridge.
        activation: "gated_relu" (default), or "relu": a ReLU network on whose own objective the
            fit descends, certified as a point of the convex program of its own neurons, each
            pattern with the output and sign that it has (:mod:`convex_heads.relu`); its gap can end
            above ``tolerance``, which is said.
        tolerance: relative gap to reach, between 0 and 1. "auto" (default) is 1e-3, and 2e-2 for
            ReLU heads and for the squared loss.
        solver: "auto" (the fastest known), "subspace", "fista" (the baseline) or, under ridge,
            "kernel" (in the span of the rows, see :mod:`convex_heads.kernel`); for ReLU heads
            "descent" or "admm" (the program of the drawn gates, CRONOS).
        max_passes: data passes to spend on one solve. Default 1000.
        max_seconds: seconds to spend on one solve. Default None, no limit.
        precision: of the products with the rows that a solve of a gated head begins with:
            "float32" (default), "tf32" (for NVIDIA GPUs; on a CPU that is float32) or "bfloat16",
            all summed in float32. The gap and the certificate are always computed in float32;
            where the gap is above ``tolerance`` after such products, the solve goes on in float32
            from the weights it has (:mod:`convex_heads.reduced`). ``precision_effect_`` says what
            they did to the gap.
        selection: how a path chooses: "best" (default, the lowest validation loss) or "one_se",
            the one-standard-error rule: the largest beta, so the simplest head, whose loss exceeds
            the lowest by at most one standard error of that excess, row by row on the same rows;
            see :mod:`convex_heads.selection`.
        min_spread: columns whose spread is below this fraction of the median column's are left
            out, for features of one unit. Default 0: only constant columns are, since the units
            are yours. Columns of a network's features that are all but zero (three of MiniLM's 384
            have spreads of 1e-33 to 1e-9, the others 0.05) say what others say too, and once
            standardised a float16 copy without them has other labels; ``2**-16`` leaves them out.
        random_state: seed of the gates. Default 0; results repeat to the bit.

    Attributes:
        classes_: class labels.
        certificate_: :class:`convex_heads.certificate.Certificate` of the final weights.
        status_: how the final solve ended.
        solver_: the solver that was used.
        penalty_: the penalty that was used.
        beta_: the chosen fraction of beta_max.
        path_: one :class:`convex_heads.path.PathPoint` for each beta tried, beta decreasing:
            validation loss, its standard errors and score, norms of every gate's weights, gap,
            passes and history.
        coef_path_: weights W (P, d + 1, C) of every point of ``path_``, in the same order: gates
            along the first axis (the always-on gate first), standardised features and then the
            constant column along the second. Fitted without the rows that choose beta, to a gap
            of 5e-2 or ``tolerance_``, whichever is larger.
        tolerance_: relative gap that was asked for.
        gates_: all gates offered (P, d + 1), standardised coordinates; ``network_`` holds those
            in use.
        history_: records (:class:`convex_heads.solution.Record`) of the final solve.
        precision_effect_: :class:`convex_heads.solution.PrecisionEffect` of the final solve: passes
            in ``precision``, the gap believed at their end and the one that held in float32; None
            for "float32".
        network_: :class:`convex_heads.decode.Network` (or ``ReluNetwork``), what predicts.
        passes_: data passes spent in all.
        reduced_passes_: those of them with products in less than float32, of which each is two.

    Equal rows are merged into weights and rows are ordered by content first, so neither their
    order nor repeating a row instead of weighting it changes the result.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(400, 5))
        >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "different")
        >>> head = ConvexHeadClassifier().fit(X[:300], y[:300])
        >>> bool(head.score(X[300:], y[300:]) > 0.85), head.certificate_.relative_gap <= 1e-3
        (True, True)
    """

    def __init__(
        self,
        *,
        n_gates: int | str = "auto",
        gates: str = DEFAULT_SAMPLER,
        beta: float | str | Sequence[float] = "auto",
        loss: str = "auto",
        class_weight: str | dict | None = None,
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
        super().__init__(
            n_gates=n_gates,
            gates=gates,
            beta=beta,
            penalty=penalty,
            activation=activation,
            tolerance=tolerance,
            solver=solver,
            max_passes=max_passes,
            max_seconds=max_seconds,
            precision=precision,
            selection=selection,
            min_spread=min_spread,
            random_state=random_state,
        )
        self.loss = loss
        self.class_weight = class_weight

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
            X: features (n, d), finite. A memory-mapped array or a row source
                (:mod:`convex_heads.sources`) is read in chunks and may be larger than memory: its
                standardised rows go to a temporary file, and the order and the repeats of its
                rows stay as they are.
            y: class labels (n,), at least two classes.
            sample_weight: (n,), non-negative.
            X_val: validation features (m, d) to choose beta by; they are never trained on.
            y_val: their labels, all of them occurring in y.
            on_progress: called every few steps with the share of the fit that is done, in [0, 1].
            on_record: called every few steps with the record (objective, bound, gap, passes,
                seconds) of the solve that is running, a point of the path or the final one; its
                passes and seconds count from the beginning of the path.

        Raises:
            ValueError: unusable input or options, said in one sentence.
        """
        X, y = self._check_rows(X, y)
        _check_labels(y)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self.classes_, label = np.unique(y, return_inverse=True)
        C = len(self.classes_)
        if self.class_weight is not None:
            balance = compute_class_weight(
                self.class_weight, classes=self.classes_, y=y, sample_weight=weight
            )
            if not (np.isfinite(balance).all() and (balance >= 0).all()):
                raise ValueError(
                    f"class_weight must give every class a finite weight of at least 0; got "
                    f"{balance.tolist()}"
                )
            weight = weight * balance[label]
        present = np.unique(label[weight > 0])
        if len(present) < 2:
            raise ValueError(
                f"a classifier needs rows of at least 2 classes with weights above 0; got "
                f"{len(present)} class{'' if len(present) == 1 else 'es'}, "
                f"{self.classes_[present].tolist()}"
            )
        loss = self._loss_name(C)
        target = targets(label, loss, C, feature_dtype())
        validation = None
        if X_val is not None:
            X_val, y_val = check_validation(self, X, X_val, y_val)
            unknown = np.setdiff1d(y_val, self.classes_)
            if len(unknown):
                raise ValueError(f"y_val holds classes that y does not: {unknown.tolist()[:5]}")
            label_val = np.searchsorted(self.classes_, y_val)
            validation = X_val, targets(label_val, loss, C, feature_dtype())
        data = TrainingSet.build(
            X, target, weight, validation=validation, hold_out=self._chooses_beta, classes=True
        )
        self._fit(data, loss, _accuracy, on_progress, on_record)
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
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of auto, {', '.join(LOSSES)}; got {self.loss!r}")
        return self.loss


def _check_labels(y: np.ndarray) -> None:
    """Labels are put in order, so they are all of one kind."""
    kinds = {_kind(label) for label in y.ravel()} if y.dtype == object else set()
    if "None" in kinds:
        raise ValueError("a label in y is None: leave out rows without a label")
    if len(kinds) > 1:
        raise ValueError(
            f"y holds labels of several types ({', '.join(sorted(kinds))}): make them all strings "
            "or all numbers"
        )


def _kind(label: Any) -> str:
    if label is None:
        return "None"
    return "number" if isinstance(label, numbers.Number | np.bool_) else type(label).__name__


def _accuracy(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    if z.shape[1] == 1:
        right = (z[:, 0] > 0) == (target[:, 0] > 0.5)
    else:
        right = z.argmax(axis=1) == target.argmax(axis=1)
    return float(np.average(right, weights=weight))

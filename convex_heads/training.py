"""What a fit is given: canonical rows, their weights, and which of them choose beta."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import jax
import numpy as np

from convex_heads.scaling import Scaling, Standardised, as_given, canonical
from convex_heads.sources import RowSource, is_streamed

# Below this many distinct rows a held-out share is too small to choose by.
MIN_ROWS_TO_SELECT = 100
HELD_OUT = 0.15


def feature_dtype() -> type:
    """What programs are solved in: float32, or float64 where JAX has been told to compute in it."""
    return np.float64 if jax.dtypes.canonicalize_dtype(np.float64) == np.float64 else np.float32


def standardised(scaling: Scaling, X: RowSource) -> RowSource:
    """Rows (n, d) -> (n, d + 1), in the dtype of programs; streamed ones stay streamed."""
    if is_streamed(X):
        return Standardised(X, scaling, feature_dtype())
    return scaling.transform(X, feature_dtype())


class TrainingSet(NamedTuple):
    """Rows to fit, and rows to choose beta by: separate ones, or some of the rows themselves.

    Attributes:
        X: raw features (n, d).
        target: one-hot or real targets (n, C).
        omega: training weights (n,); zero on rows that are held out while beta is chosen.
        held_out: their weights (n,), zero on training rows; once beta is chosen they are fitted
            with the others.
        validation: separate rows (X (m, d), target (m, C)), which are never fitted, or None.
    """

    X: RowSource
    target: np.ndarray
    omega: np.ndarray
    held_out: np.ndarray
    validation: tuple[RowSource, np.ndarray] | None = None

    @property
    def weight(self) -> np.ndarray:
        """Weights (n,) of all rows that are fitted in the end."""
        return self.omega + self.held_out

    @classmethod
    def build(
        cls,
        X: RowSource,
        target: np.ndarray,
        weight: np.ndarray,
        *,
        validation: tuple[RowSource, np.ndarray] | None,
        hold_out: bool,
        classes: bool,
    ) -> Self:
        """Canonical rows, 15% of them held out by a hash of their content where it makes sense.

        Args:
            X: raw features (n, d). Where they are streamed their order and repeats stay.
            target: one-hot or real targets (n, C).
            weight: (n,), non-negative.
            validation: separate validation rows; then none are held out.
            hold_out: whether there is a beta to choose; with fewer than 100 distinct rows none
                are held out all the same.
            classes: whether targets are classes, none of which may be held out altogether.
        """
        # Only ratios of weights count; a power of two changes no digit, and no sum overflows.
        largest = float(np.max(weight, initial=0))
        weight = np.ldexp(weight, -math.frexp(largest)[1])
        if is_streamed(X):
            rows = as_given(X, target, weight)
        else:
            rows = canonical(np.asarray(X), target, weight)
        held_out = np.zeros(len(rows.X), bool)
        if hold_out and validation is None and len(rows.X) >= MIN_ROWS_TO_SELECT:
            held_out = rows.uniform < HELD_OUT
            if classes:
                label = rows.target.argmax(axis=1) if target.shape[1] > 1 else rows.target[:, 0]
                held_out &= np.isin(label, np.unique(label[~held_out]))
        return cls(
            X=rows.X,
            target=rows.target,
            omega=np.where(held_out, 0, rows.weight),
            held_out=np.where(held_out, rows.weight, 0),
            validation=validation,
        )

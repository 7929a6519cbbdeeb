"""What a fit is given: canonical rows, their weights, and which of them choose beta."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from convex_heads.scaling import canonical

# Below this many distinct rows a held-out share is too small to choose by.
MIN_ROWS_TO_SELECT = 100
HELD_OUT = 0.15


class TrainingSet(NamedTuple):
    """Training rows and validation rows, m in all, in one array.

    Attributes:
        X: raw features (m, d).
        target: one-hot or real targets (m, C).
        omega: training weights (m,); zero on validation rows.
        held_out: validation weights (m,); zero on training rows.
        refit: whether validation rows join the training rows once beta is chosen.
    """

    X: np.ndarray
    target: np.ndarray
    omega: np.ndarray
    held_out: np.ndarray
    refit: bool

    @classmethod
    def with_validation(
        cls,
        X: np.ndarray,
        target: np.ndarray,
        weight: np.ndarray,
        X_val: np.ndarray,
        target_val: np.ndarray,
    ) -> Self:
        """Training rows and separate validation rows, which are never trained on."""
        rows = canonical(X, target, weight)
        n, m = len(rows.X), len(X_val)
        return cls(
            X=np.concatenate([rows.X, X_val]),
            target=np.concatenate([rows.target, target_val]),
            omega=np.concatenate([rows.weight, np.zeros(m)]),
            held_out=np.concatenate([np.zeros(n), np.ones(m)]),
            refit=False,
        )

    @classmethod
    def holding_out(
        cls,
        X: np.ndarray,
        target: np.ndarray,
        weight: np.ndarray,
        *,
        hold_out: bool,
        one_hot: bool,
    ) -> Self:
        """Training rows, 15% of them held out by a hash of their content where it makes sense.

        Args:
            X: raw features (n, d).
            target: one-hot or real targets (n, C).
            weight: (n,), non-negative.
            hold_out: whether there is a choice to make; with fewer than 100 distinct rows none is
                held out all the same.
            one_hot: whether targets are classes, none of which may be held out altogether.
        """
        rows = canonical(X, target, weight)
        held_out = np.zeros(len(rows.X), bool)
        if hold_out and len(rows.X) >= MIN_ROWS_TO_SELECT:
            held_out = rows.uniform < HELD_OUT
            if one_hot:
                classes = rows.target.argmax(axis=1) if target.shape[1] > 1 else rows.target[:, 0]
                held_out &= np.isin(classes, np.unique(classes[~held_out]))
        return cls(
            X=rows.X,
            target=rows.target,
            omega=np.where(held_out, 0, rows.weight),
            held_out=np.where(held_out, rows.weight, 0),
            refit=True,
        )

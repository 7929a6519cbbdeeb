r"""The linear probe on features that memory does not hold: all rows, read from the store.

With the always-on gate alone and a ridge penalty the head's program is logistic regression, so the
head's solver (:mod:`convex_heads.subspace`) fits the probe out of core. scikit-learn minimises

.. math:: C \sum_j l(z_0 + W'x_j, y_j) + \tfrac12 \|W\|_F^2 ,

which is n C times the mean loss with beta = 1 / (n C). scikit-learn does not penalise the intercept
z_0, and here it is penalised hardly: it is the log odds of the classes' shares, which cost nothing,
plus the weight of a constant column that is 32 in place of 1 (as liblinear's
``intercept_scaling``), so that a step away from these odds costs 1/1024 of what it would.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convex_heads.limits import Limits
from convex_heads.scaling import Standardised
from convex_heads.sources import RowSource, chunks
from tasks.baselines import LinearProbe, Point, probe_along_the_path
from tasks.data.labels import row_weights
from tasks.standardise import scaling_of

__all__ = ["STREAMED", "streamed_probe"]

STREAMED = (
    "the linear probe was fitted on all rows, from the store, by the head's solver with one gate "
    "and a ridge penalty"
)
_LIMITS = Limits(tolerance=1e-3, max_passes=1000)
_CONSTANT = 32.0


def streamed_probe(
    X: RowSource,
    y: ArrayLike,
    X_val: RowSource,
    y_val: ArrayLike,
    *,
    n_classes: int | None = None,
    class_weight: str | None = None,
    min_spread: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> LinearProbe:
    """As `tasks.baselines.linear_probe`: the same path of C, the same choice, features streamed.

    Every fit is certified to be within a relative gap of 1e-3 of its optimum.

    Args:
        X: (n, d) training features, a row source.
        y: (n,) labels, integers from 0.
        X_val: (m, d) features that choose C, never fitted.
        y_val: (m,) their labels.
        n_classes: columns of the probabilities; None means the largest label seen, plus 1.
        class_weight: None, or "balanced" as scikit-learn means it.
        min_spread: columns with less, as a fraction of the median column's, are left out.
        progress: called with 1 after each fit.

    Raises:
        ValueError: fewer than two classes in y.
        OSError: no room for the standardised rows in the folder for temporary files.

    Example:
        >>> from convex_heads.sources import Shards
        >>> X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
        >>> y = (X[:, 0] > 0).astype(int)
        >>> probe = streamed_probe(Shards([X[:100]]), y[:100], Shards([X[100:]]), y[100:])
        >>> probe.settings_tried, probe.validation_accuracy > 0.9
        (9, True)
    """
    import jax

    from convex_heads.gated import minimise, prepare_given, unrotate
    from convex_heads.losses import LOSSES, targets
    from convex_heads.penalties import RIDGE

    started = time.perf_counter()
    y, y_val = np.asarray(y), np.asarray(y_val)
    if n_classes is None:
        n_classes = int(max(y.max(), y_val.max())) + 1
    # Classes without rows have no odds.
    present, labels = np.unique(y, return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"a probe needs rows of at least two classes; got {present.tolist()}")
    n, d = X.shape
    loss = LOSSES["logistic" if len(present) == 2 else "softmax"]
    Y, omega = targets(labels, loss.name, len(present)), row_weights(class_weight, labels)
    scaling = scaling_of(X, min_spread)
    always = np.zeros((1, d + 1), np.float32)
    always[0, -1] = 1
    z0 = np.asarray(loss.offset(jax.numpy.asarray(omega @ Y / n, np.float32)))
    rows = _Rows(X, scaling, np.float32)
    prepared = prepare_given(rows, Y, omega, loss, always, z0, jax.random.key(0), RIDGE)
    state = None

    def fit(C: float) -> Point:
        nonlocal state
        solution, state = minimise(prepared, 1 / (n * C), warm=state, limits=_LIMITS)
        W = unrotate(prepared, solution.value)[0]
        scores, offset = W[:-1], z0 + _CONSTANT * W[-1]
        if len(present) == 2:  # the log-odds of the second class alone
            scores, offset = np.hstack([0 * scores, scores]), np.append(0.0, offset)
        weights = np.zeros((d, n_classes), W.dtype)
        weights[:, present] = scores
        intercept = np.full(n_classes, -np.inf, W.dtype)
        intercept[present] = offset
        gap = solution.stats.relative_gap
        short = None if gap <= _LIMITS.tolerance else f"a relative gap of {gap:.1e}"
        return Point(weights, intercept, short)

    def right(point: Point) -> float:
        hits = 0
        for rows in chunks(X_val):
            z = scaling.transform(X_val[rows])[:, :-1] @ point.weights + point.intercept
            hits += int(np.count_nonzero(z.argmax(axis=1) == y_val[rows]))
        return hits / len(y_val)

    return probe_along_the_path(fit, right, scaling, started, progress)


class _Rows(Standardised):
    """Standardised rows with a larger constant column."""

    def __getitem__(self, rows: Any) -> NDArray[np.floating]:
        out = super().__getitem__(rows)
        out[:, -1] = _CONSTANT
        return out

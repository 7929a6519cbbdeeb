"""How features of a backbone are standardised, for the head and for all it is compared with."""

from __future__ import annotations

import numpy as np

from convex_heads.scaling import Scaling
from convex_heads.sources import RowSource
from extractors.base import Modality

#: Columns of a backbone's features have one unit. One whose spread is below this fraction of the
#: median column's is left out: it holds weights that decayed (three of MiniLM's 384 columns have
#: spreads of 1e-33 to 1e-9, the others 0.05) and says what the others say too: test accuracy is
#: the same to 0.4 points. Standardised like the others it would be read to its last digit, which
#: float16 copies of the features, and those of a vector store, do not have: on these, 7% and 86%
#: of the labels of a trec6 head changed (tests/benchmarks/copies.py).
MIN_SPREAD = 2.0**-16


def min_spread_of(modality: Modality) -> float:
    """The fraction for the features of raw rows; 0 for vectors that came as they are.

    Their columns may have units of their own: a yes or no beside sums of money is no noise.

    >>> min_spread_of("text") == MIN_SPREAD, min_spread_of("features")
    (True, 0.0)
    """
    return 0.0 if modality == "features" else MIN_SPREAD


def scaling_of(features: RowSource, min_spread: float) -> Scaling:
    """Mean and spread of the columns of features (n, d), without those that are all but zero.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        >>> X[:, 1] *= 1e-8
        >>> scaling_of(X, MIN_SPREAD).keep.tolist(), scaling_of(X, 0.0).keep.all()
        ([True, False, True], np.True_)
    """
    return Scaling.fit(features, np.ones(len(features)), min_spread)

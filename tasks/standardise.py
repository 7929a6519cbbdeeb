"""How features of a backbone are standardised, for the head and for all it is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convex_heads.scaling import Scaling
from convex_heads.sources import RowSource

#: Columns of a backbone's features have one unit. One whose spread is below this fraction of the
#: median column's is left out: it holds weights that decayed (three of MiniLM's 384 columns have
#: spreads of 1e-33 to 1e-9, the others 0.05) and says what the others say too: test accuracy is
#: the same to 0.4 points. Standardised like the others it would be read to its last digit, which
#: float16 copies of the features, and those of a vector store, do not have: on these, 7% and 86%
#: of the labels of a trec6 head changed (tests/benchmarks/copies.py).
MIN_SPREAD = 2.0**-16


def left_out_note(keep: NDArray[np.bool_]) -> tuple[str, ...]:
    """What to know of vectors with columns that were left out; nothing where all were kept.

    >>> left_out_note(np.array([True, False, True]))[0]
    '1 of 3 columns is left out: constant, or of a spread below 1.5e-05 of the median column'
    """
    left = int(np.sum(~keep))
    if not left:
        return ()
    verb = "is" if left == 1 else "are"
    return (
        f"{left:,} of {len(keep):,} columns {verb} left out: constant, or of a spread below "
        f"{MIN_SPREAD:.1e} of the median column",
    )


def scaling_of(features: RowSource) -> Scaling:
    """Mean and spread of the columns of features (n, d), without those that are all but zero.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        >>> X[:, 1] *= 1e-8
        >>> scaling_of(X).keep.tolist()
        [True, False, True]
    """
    return Scaling.fit(features, np.ones(len(features)), MIN_SPREAD)

"""Methods on the same test rows and seeds: means, intervals and paired tests.

Right answers of one method are a table of seeds by test rows, r[s, j] in {0, 1}. Both are drawn at
random, and both are shared by the methods, so every comparison pairs them: which rows happen to be
in the test split cancels in the difference.

Intervals resample seeds and rows at once and independently (the pigeonhole bootstrap, Owen 2007,
"The pigeonhole bootstrap"; slightly too wide, never too narrow). What no row has shown no resample
can show: of 24 rows that two methods both get right, every resample has the difference 0, and the
bootstrap would be certain of it. So an interval has a least width on the side of what was never
seen. Where no row favours a method, in any seed, the share of such rows is still up to
1 - 0.05^(1/n) (exact, 95%; the "rule of three", 3/n), and the interval reaches as far beyond the
difference. A mean of 0 or 1 has Wilson's interval, as everywhere else. All other intervals are the
bootstrap's.

The test of a pair flips signs of the rows' differences d_j = mean_s (r_a[s, j] - r_b[s, j]): with
one seed it is McNemar's exact test, with several it asks the same of their mean. It takes the seeds
as they are; that other seeds might say something else is in the interval, and a method is called
better where both agree. Beside it stand McNemar's exact test of every seed (these share their rows
and are not independent: twice the median of their p-values is a p-value whatever their dependence,
Rüger 1978) and the permutation test over seeds, which with K of them cannot fall below 2 / 2^K. All
are corrected by Holm's method for the number of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tasks.metrics import mcnemar

RESAMPLES = 2000
_LEVEL = 0.05


@dataclass(frozen=True)
class Mean:
    """A method's accuracy: mean over seeds, with the chance of seeds and of test rows."""

    accuracy: float
    standard_error: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """What tells two methods apart.

    Attributes:
        first, second: their names.
        difference: accuracy of the first minus that of the second, mean over seeds.
        standard_error: of it, over seeds and test rows.
        interval: 95%, bootstrap over seeds and test rows.
        rows_p, rows_holm: of signs flipped over test rows, and corrected for the number of pairs.
        mcnemar_p, mcnemar_holm: twice the median over the seeds (with one seed: the p-value), and
            corrected for the number of pairs.
        permutation_p, permutation_holm: over seeds; None with one seed.
    """

    first: str
    second: str
    difference: float
    standard_error: float
    interval: tuple[float, float]
    rows_p: float
    rows_holm: float
    mcnemar_p: float
    mcnemar_holm: float
    permutation_p: float | None
    permutation_holm: float | None

    @property
    def better(self) -> str | None:
        """The method that is shown to be better: by the corrected test and by the interval."""
        low, high = self.interval
        if self.rows_holm >= _LEVEL or low <= 0 <= high:
            return None
        return self.first if self.difference > 0 else self.second


@dataclass(frozen=True)
class Comparison:
    """All methods of one backbone and training size."""

    means: Mapping[str, Mean]
    pairs: tuple[Pair, ...]

    def pair(self, first: str, second: str) -> Pair:
        """Of two methods, the first one's accuracy minus the second one's."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                low, high = pair.interval
                return Pair(
                    first,
                    second,
                    -pair.difference,
                    pair.standard_error,
                    (-high, -low),
                    pair.rows_p,
                    pair.rows_holm,
                    pair.mcnemar_p,
                    pair.mcnemar_holm,
                    pair.permutation_p,
                    pair.permutation_holm,
                )
        raise KeyError((first, second))


def compare_right(right: Mapping[str, NDArray[np.bool_]], *, seed: int = 0) -> Comparison:
    """Compares methods by which test rows each gets right.

    Args:
        right: (K, n) of each method: K seeds, the same for all, and n test rows.
        seed: of the resampling.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> hard = rng.random(1000)
        >>> found = compare_right({"a": hard[None] < 0.9, "b": hard[None] < 0.8})
        >>> found.pairs[0].better, round(found.pairs[0].difference, 1)
        ('a', 0.1)
    """
    names = list(right)
    K, n = right[names[0]].shape
    rng = np.random.default_rng(seed)
    seeds = rng.multinomial(K, np.full(K, 1 / K), size=RESAMPLES) / K
    draws = {name: np.zeros(RESAMPLES) for name in names}
    share = np.full(n, 1 / n)
    for start in range(0, RESAMPLES, 200):  # 200 x n counts at once
        counts = rng.multinomial(n, share, size=min(200, RESAMPLES - start)).astype(np.float32)
        rows = slice(start, start + len(counts))
        for name in names:
            by_seed = counts @ right[name].T.astype(np.float32) / n
            draws[name][rows] = (by_seed * seeds[rows]).sum(axis=1)
    means = {
        name: Mean(
            float(right[name].mean()),
            float(draws[name].std(ddof=1)),
            _mean_interval(draws[name], right[name]),
        )
        for name in names
    }
    found = []
    for a, b in combinations(names, 2):
        difference = right[a].mean(axis=1) - right[b].mean(axis=1)
        ps = [mcnemar(right[a][s], right[b][s]).p_value for s in range(K)]
        p = ps[0] if K == 1 else min(1.0, 2 * float(np.median(ps)))
        spread = draws[a] - draws[b]
        interval = _difference_interval(spread, right[a], right[b])
        rows_p = _flip_rows(right[a].sum(axis=0, dtype=int) - right[b].sum(axis=0, dtype=int))
        of_seeds = _permutation(difference)
        found.append((a, b, float(difference.mean()), spread, interval, rows_p, p, of_seeds))
    holm_r = holm([r for *_, r, _, _ in found])
    holm_m = holm([p for *_, p, _ in found])
    holm_p = holm([q for *_, q in found if q is not None])
    pairs = tuple(
        Pair(
            a,
            b,
            mean,
            float(spread.std(ddof=1)),
            interval,
            r,
            holm_r[k],
            p,
            holm_m[k],
            q,
            None if q is None else holm_p[k],
        )
        for k, (a, b, mean, spread, interval, r, p, q) in enumerate(found)
    )
    return Comparison(means, pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p-values: below 0.05, the family's error rate is at most 0.05.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = largest
    return corrected


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _mean_interval(draws: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float]:
    if not right.all() and right.any():
        return _interval(draws)
    from scipy.stats import binomtest

    n = right.shape[1]
    found = binomtest(n if right.all() else 0, n).proportion_ci(1 - _LEVEL, method="wilson")
    return float(found.low), float(found.high)


def _difference_interval(
    spread: NDArray[np.float64], first: NDArray[np.bool_], second: NDArray[np.bool_]
) -> tuple[float, float]:
    """The bootstrap's, and at least as wide as rows that were never seen allow."""
    low, high = _interval(spread)
    unseen = 1 - _LEVEL ** (1 / first.shape[1])
    difference = float(first.mean() - second.mean())
    if not (first & ~second).any():
        high = max(high, difference + unseen)
    if not (second & ~first).any():
        low = min(low, difference - unseen)
    return low, high


def _flip_rows(difference: NDArray[np.integer]) -> float:
    """Two-sided p-value of sum_j d_j under random signs of the d_j (n,), exactly.

    The sum of +-m for rows with |d_j| = m has a distribution that a convolution for each row gives.

    >>> round(_flip_rows(np.array([1] * 8 + [-1] * 2 + [0] * 5)), 6)  # McNemar's, 8 against 2
    0.109375
    """
    sizes = np.abs(difference[difference != 0])
    from scipy.signal import fftconvolve
    from scipy.stats import binom

    # Of the sum over all rows with one size: a binomial on a grid of twice that size.

    total = np.ones(1)
    for size in np.unique(sizes):
        count = int((sizes == size).sum())
        spread = np.zeros(2 * size * count + 1)
        spread[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        # By transforms where that is quicker: exact to 1e-16, far below any level.
        large = total.size * spread.size > 1e7
        total = fftconvolve(total, spread) if large else np.convolve(total, spread)
    reach = len(total) // 2  # sums run from -reach to reach
    found = abs(int(difference.sum()))
    tail = float(total[reach + found :].sum())
    return min(1.0, max(0.0, 2 * tail)) if found else 1.0


def _permutation(difference: NDArray[np.float64]) -> float | None:
    """Two-sided sign-flip test of K paired differences, exact up to 14 seeds."""
    if len(difference) < 2:
        return None
    from scipy.stats import permutation_test

    found = permutation_test(
        (difference,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**14,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)

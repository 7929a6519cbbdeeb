"""What a comparison says, in words: from the tests, never from the order of two numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.comparison.paired import Comparison, Pair
from tasks.methods import METHODS

REFERENCE, OURS = "linear", "convex"
# "Nothing better was found" is not "nothing is better": the linear probe is called enough where
# every interval of a gain ends below this.
_ENOUGH = 0.01


def verdict(
    comparison: Comparison, seconds: Mapping[str, float], skipped: Mapping[str, str] | None = None
) -> list[str]:
    """Sentences, the most important first.

    Args:
        comparison: of the methods on one backbone and training size.
        seconds: of each method, tuning included and compiling left out.
        skipped: methods that were asked for and could not run, and why.

    Example:
        >>> import numpy as np
        >>> from tasks.comparison.paired import compare_right
        >>> hard = np.random.default_rng(0).random((1, 2000))
        >>> found = compare_right({"linear": hard < 0.8, "convex": hard < 0.85})
        >>> verdict(found, {"linear": 1.0, "convex": 3.0})[0].split(" (")[0]
        'The convex head beats the linear probe by 5.6 points'
    """
    names = list(comparison.means)
    said: list[str] = []
    if len(names) < 2:
        said.append("With one method there is nothing to compare.")
    else:
        reference = REFERENCE if REFERENCE in names else names[0]
        said += _against_reference(comparison, seconds, reference)
        if OURS in names and reference != OURS:
            said += _against_ours(comparison, seconds, reference)
        said += _without_backbone(comparison)
    for name, reason in (skipped or {}).items():
        if name in comparison.means:
            continue  # left out on another backbone or size alone
        said.append(f"Not compared: {METHODS[name].title} ({reason}).")
    return said


def _against_reference(
    comparison: Comparison, seconds: Mapping[str, float], reference: str
) -> list[str]:
    names = [name for name in comparison.means if name != reference]
    pairs = {name: comparison.pair(name, reference) for name in names}
    better = [name for name in names if pairs[name].better == name]
    said = []
    if OURS in pairs:
        said.append(_sentence(pairs[OURS], seconds))
    if not better:
        most = max(pair.interval[1] for pair in pairs.values())
        if most <= _ENOUGH:
            said.append(
                f"{_the(reference, capital=True)} is enough: no method is shown to be more"
                f" accurate, and a gain above {100 * _ENOUGH:.0f} point is excluded."
            )
        else:
            said.append(
                f"No method is shown to be more accurate than {_the(reference)}; these test rows"
                f" cannot exclude a gain of up to {100 * most:.1f} points."
            )
    elif OURS not in better:
        best = max(better, key=lambda name: pairs[name].difference)
        said.append(_sentence(pairs[best], seconds))
    return said


def _against_ours(
    comparison: Comparison, seconds: Mapping[str, float], reference: str
) -> list[str]:
    others = [name for name in comparison.means if name not in (OURS, reference)]
    pairs = {name: comparison.pair(name, OURS) for name in others}
    said = []
    for name in sorted(others, key=lambda name: -pairs[name].difference):
        if pairs[name].better == name:
            said.append(
                f"{_the(name, capital=True)} is more accurate than {_the(OURS)} by"
                f" {_points(pairs[name])}, {_times(seconds, name, OURS)}."
            )
    alike = [name for name in others if pairs[name].better is None]
    if alike:
        words = ", ".join(
            f"{_the(name)} ({_signed(pairs[name])} points, {_times(seconds, name, OURS)})"
            for name in alike
        )
        said.append(f"No difference from {_the(OURS)} is shown for {words}.")
    worse = [name for name in others if pairs[name].better == OURS]
    if worse:
        words = ", ".join(
            f"{_the(name)} by {100 * abs(pairs[name].difference):.1f}" for name in worse
        )
        said.append(f"{_the(OURS, capital=True)} beats {words} points.")
    return said


def _without_backbone(comparison: Comparison) -> list[str]:
    """Whether words alone do better than the best head on the features."""
    heads = [name for name in comparison.means if not METHODS[name].text_only]
    if "tfidf" not in comparison.means or not heads:
        return []
    best = max(heads, key=lambda name: comparison.means[name].accuracy)
    pair = comparison.pair("tfidf", best)
    if pair.better == "tfidf":
        return [
            f"Words alone are better than these features: TF-IDF beats {_the(best)}, the best head,"
            f" by {_points(pair)}. Look for another backbone, or read more of every text."
        ]
    return []


def _sentence(pair: Pair, seconds: Mapping[str, float]) -> str:
    first, second = _the(pair.first, capital=True), _the(pair.second)
    times = _times(seconds, pair.first, pair.second)
    if pair.better is None:
        return (
            f"No difference in accuracy between {_the(pair.first)} and {second} is shown:"
            f" {_signed(pair)} points ({_interval(pair)}), {times}."
        )
    if pair.better == pair.first:
        return f"{first} beats {second} by {_points(pair)}, {times}."
    return f"{first} loses to {second} by {_points(pair)}, {times}."


def _signed(pair: Pair) -> str:
    return f"{_rounded(pair.difference):+.1f}"


def _points(pair: Pair) -> str:
    return f"{100 * abs(pair.difference):.1f} points ({_interval(pair)})"


def _interval(pair: Pair) -> str:
    low, high = pair.interval
    if pair.better is not None and pair.difference < 0:
        low, high = -high, -low
    return f"95% interval {_rounded(low):.1f} to {_rounded(high):.1f}"


def _rounded(share: float) -> float:
    """In points, without a minus before a zero."""
    return round(100 * share, 1) + 0.0


def _times(seconds: Mapping[str, float], name: str, other: str) -> str:
    ratio = max(seconds[name], 1e-3) / max(seconds[other], 1e-3)
    digits = f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
    return f"at {digits} times its time without compiling"


def _the(name: str, *, capital: bool = False) -> str:
    title = METHODS[name].title
    if name not in ("linear", "convex", "relu", "svm", "mlp"):
        capital &= title[1].islower()  # not of kNN
        return title[0].upper() + title[1:] if capital else title
    return f"{'The' if capital else 'the'} {title}"


def order(names: Sequence[str]) -> list[str]:
    """Methods in the order of the table, whatever order they were named or finished in.

    >>> order(["mlp", "linear"])
    ['linear', 'mlp']
    """
    return sorted(names, key=list(METHODS).index)

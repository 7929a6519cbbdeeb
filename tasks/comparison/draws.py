"""Which rows train and which choose, for every seed of a comparison.

The test rows are fixed. All others are the pool, from which each seed draws anew: validation rows
first, then training rows. A row's place depends on its own content and the seed, so equal rows are
never on both sides, and a smaller training set is part of a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from extractors.errors import InputError
from tasks.data.splits import hold_out, stratified_order

# Of few labelled rows a person would not spend more than this on validation (Zhou et al. 2022,
# "Learning to prompt for vision-language models", who take min(n, 4)).
MOST_VALIDATION_SHOTS = 4
CURVE = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # and all
MOST_EXAMINED = 20_000  # rows that are looked at for label errors


@dataclass(frozen=True)
class Draw:
    """Row numbers in the pool."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]


def draw(
    labels: NDArray[np.integer],
    digests: Sequence[bytes],
    seed: int,
    *,
    fraction: float,
    shots: int | None = None,
    train_rows: int | None = None,
) -> Draw:
    """Training and validation rows of one seed.

    Args:
        labels: (n,) of the pool.
        digests: of the pool's raw rows; equal rows have equal ones.
        seed: another one draws others.
        fraction: of every class that chooses.
        shots: so many training rows of every class, and at most 4 that choose; None: all rows.
        train_rows: so many training rows, stratified, chosen among those of the full draw by the
            same validation rows; None: all.

    Raises:
        InputError: a class has too few rows.

    Example:
        >>> labels, digests = np.arange(8) % 2, [bytes([i]) for i in range(8)]
        >>> drawn = draw(labels, digests, 0, fraction=0.15, shots=2)
        >>> np.bincount(labels[drawn.train]).tolist(), len(drawn.validation)
        ([2, 2], 4)
    """
    seeded = [hashlib.sha256(b"%d\0%b" % (seed, digest)).digest() for digest in digests]
    if shots is not None:
        return _few(labels, seeded, shots)
    held = hold_out(labels, seeded, fraction)
    train, validation = np.flatnonzero(~held), np.flatnonzero(held)
    if train_rows is not None:
        order = stratified_order(labels[train], [seeded[i] for i in train])
        train = np.sort(train[order[:train_rows]])
    return Draw(train, validation)


def folds(
    labels: NDArray[np.integer],
    digests: Sequence[bytes],
    n_folds: int = 5,
    most_rows: int = MOST_EXAMINED,
) -> NDArray[np.int64]:
    """A fold for each row, every class spread over all of them; -1 for rows beyond `most_rows`.

    Equal rows of one class are in one fold, so that none is predicted from its copy.

    Example:
        >>> folds(np.array([0, 0, 0, 1, 1]), [b"a", b"b", b"a", b"c", b"d"], n_folds=2).tolist()
        [0, 1, 0, 0, 1]
    """
    fold = np.full(len(labels), -1, np.int64)
    for rows in _by_content(labels, digests).values():
        for place, group in enumerate(rows):
            fold[group] = place % n_folds
    if len(labels) > most_rows:
        seeded = [hashlib.sha256(digest).digest() for digest in digests]
        fold[stratified_order(labels, seeded)[most_rows:]] = -1
    return fold


def _by_content(
    labels: NDArray[np.integer], digests: Sequence[bytes]
) -> dict[int, list[list[int]]]:
    """The rows of each class, equal ones together, in the order of their digests."""
    found: dict[int, dict[bytes, list[int]]] = {}
    for row, (label, digest) in enumerate(zip(labels.tolist(), digests, strict=True)):
        found.setdefault(label, {}).setdefault(digest, []).append(row)
    return {
        label: [rows[digest] for digest in sorted(rows)] for label, rows in sorted(found.items())
    }


def curve_sizes(n_train: int, n_classes: int) -> tuple[int, ...]:
    """Numbers of training rows of a learning curve, without the full one; each has every class.

    >>> curve_sizes(1000, 2)
    (62, 125, 250, 500)
    """
    return tuple(int(n_train * part) for part in CURVE if int(n_train * part) >= 2 * n_classes)


def _few(labels: NDArray[np.integer], seeded: Sequence[bytes], shots: int) -> Draw:
    choosing = min(shots, MOST_VALIDATION_SHOTS)
    train, validation = [], []
    for label in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == label).tolist(), key=seeded.__getitem__)
        # Of equal rows one: otherwise the same text could be learnt and then asked for.
        distinct = [i for k, i in enumerate(rows) if k == 0 or seeded[i] != seeded[rows[k - 1]]]
        if len(distinct) < shots + choosing:
            raise InputError(
                f"--shots {shots}: a class has {len(distinct)} different rows, and {shots} to train"
                f" and {choosing} to choose are needed; ask for fewer shots"
            )
        train += distinct[:shots]
        validation += distinct[shots : shots + choosing]
    return Draw(np.sort(np.array(train)), np.sort(np.array(validation)))

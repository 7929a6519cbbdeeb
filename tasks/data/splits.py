"""Which row belongs to which split, and which rows a smaller run takes.

Both rules depend on a row's own content, never on its place in a file or on a random state: a row
keeps its split when the file is shuffled, and a run on fewer rows takes rows of the full run.

Symbols: n rows, label c_i of row i, n_c rows of class c, digest h_i = sha256 of row i's content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from extractors.errors import InputError

TEST_FRACTION = 0.20
VALIDATION_FRACTION = 0.15


def seeded_digests(ids: Sequence[str], seed: int) -> list[bytes]:
    """One digest per row id that depends on `seed`: the order in which a subset takes rows.

    >>> seeded_digests(["a", "b"], seed=0) == seeded_digests(["a", "b"], seed=1)
    False
    """
    return [hashlib.sha256(f"{seed}\0{row_id}".encode()).digest() for row_id in ids]


def hold_out(labels: np.ndarray, digests: Sequence[bytes], fraction: float) -> np.ndarray:
    """Mark the stratified `fraction` of rows with the smallest digests in each class.

    Parameters: `labels` (n,) integers; `digests` n byte strings, equal for equal contents;
    `fraction` in (0, 1). Returns a boolean array (n,), True for the rows that are held out.

    Each class gives round(fraction * n_c) rows, and keeps at least one. Rows with the same digest
    (the same text twice) stay on the same side wherever that leaves both sides something: a
    repeated row must not be trained on and tested on. Raises InputError when no class is large
    enough to give a row.

    >>> import numpy as np
    >>> hold_out(np.array([0, 0, 0, 0, 0]), [b"d", b"a", b"c", b"b", b"e"], 0.2)
    array([False,  True, False, False, False])
    """
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label).tolist()
        rows.sort(key=digests.__getitem__)
        ordered = [digests[i] for i in rows]
        held[rows[: _cut(ordered, int(fraction * len(rows) + 0.5))]] = True
    if not held.any():
        raise InputError(
            f"{len(labels)} rows are too few to hold out {fraction:.0%} of every class; "
            "add rows, or give the split as a file of its own"
        )
    return held


def stratified_order(labels: np.ndarray, digests: Sequence[bytes]) -> np.ndarray:
    """Order all rows so that every prefix is stratified: `order[:m]` is the subset of m rows.

    Row i is sorted by (its rank by digest inside its class) / n_c. The first rows are one of every
    class; after that each class has its share, to within C rows. Prefixes are nested, so a run on
    more rows takes all the rows of a run on fewer.

    Parameters: `labels` (n,) integers; `digests` n byte strings. Returns a permutation of range(n).

    >>> import numpy as np
    >>> order = stratified_order(np.array([0, 0, 0, 0, 1, 1]), [b"a", b"b", b"c", b"d", b"e", b"f"])
    >>> np.array([0, 0, 0, 0, 1, 1])[order].tolist()
    [0, 1, 0, 0, 1, 0]
    """
    rank = _argsort(digests)
    position = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        rows = rank[labels[rank] == label]
        position[rows] = np.arange(len(rows)) / len(rows)
    # A stable sort of the digest order: equal positions fall back to the digest.
    return rank[np.argsort(position[rank], kind="stable")]


def take_subset(labels: np.ndarray, ids: Sequence[str], size: int, seed: int) -> np.ndarray:
    """The stratified, seeded subset of `size` rows, as increasing row numbers.

    The caller has checked 1 <= size <= n.

    >>> import numpy as np
    >>> take_subset(np.array([0, 1, 0, 1]), ["a", "b", "c", "d"], 4, seed=0).tolist()
    [0, 1, 2, 3]
    """
    order = stratified_order(labels, seeded_digests(ids, seed))
    return np.sort(order[:size])


def _argsort(digests: Sequence[bytes]) -> np.ndarray:
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def _cut(ordered: Sequence[bytes], wanted: int) -> int:
    """The cut nearest to `wanted` that separates no equal neighbours; `wanted` if there is none."""
    wanted = min(wanted, len(ordered) - 1)
    if wanted == 0:
        return 0
    for distance in range(len(ordered)):
        for cut in (wanted - distance, wanted + distance):
            if 0 < cut < len(ordered) and ordered[cut - 1] != ordered[cut]:
                return cut
    return wanted

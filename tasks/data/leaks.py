"""Leaks: test rows that the head has seen in training, and rows that repeat.

A test row that is in train too, word for word or nearly, is answered from memory, and the accuracy
on it says nothing about new rows. Checked are test rows against train and validation, validation
rows against train, and train rows against the train rows before them.

A row is an *exact* duplicate where its raw content is the same, or its features are (a longer text
cut at the same place, capitals that the backbone does not see); it is a *near* duplicate where the
cosine of the standardised features is at least 0.99. Measured with ``tests/benchmarks/leaks.py``:
of the pairs of texts between 0.99 and 0.995 in trec6, banking77 and wordnet6 69 to 100% share nine
tenths of their characters, between 0.98 and 0.99 16 to 56%; different images stay below 0.97.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from extractors.errors import InputError, worded
from extractors.gather import Picked
from extractors.store import StoredRows
from tasks.console import Reporter
from tasks.data.duplicates import FeatureSpace, SeenRows, Twins
from tasks.data.leak_words import examples_in_words, leaks_in_words

__all__ = ["SIMILARITY", "LeakReport", "Pair", "check_leaks", "find_leaks"]

SIMILARITY = 0.99
# Above both, nearly every row has a twin, whatever the data: two features cannot tell rows apart.
_TOO_ALIKE = 0.02  # share of all pairs of train rows
_TOO_MANY = 10  # twins of a row on average
_EXAMPLES = 2
_BLOCK = 4096

Digests = Mapping[str, Sequence[bytes]]


@dataclass(frozen=True)
class Pair:
    """A row and its twin: ids, splits, cosine (1.0 for exact ones), and whether labels agree."""

    row: str
    split: str
    twin: str
    twin_split: str
    similarity: float
    same_label: bool


@dataclass(frozen=True)
class LeakReport:
    """What ``find_leaks`` returns.

    Attributes:
        checked: rows of train, validation and test.
        similarity: cosine from which a pair is a near duplicate; None where the features of
            ordinary rows are that close to each other, so that only exact ones were looked for.
        counts: (split, of) -> (exact, near): rows of `split` with a twin in `of`, each row once;
            within train, rows that repeat an earlier one.
        other_label: of all those rows, how many have a twin of another class.
        examples: (split, of) -> the first pairs, exact ones before near ones.
        leaking: (split, of) as above -> row numbers of `split`, ascending.
        remove: train and validation -> row numbers, ascending; without them no row of test or
            validation has a twin before it, and train no repeats.
        complete: whether every pair was looked at; False beyond 100,000 rows.
    """

    checked: Mapping[str, int]
    similarity: float | None
    counts: Mapping[tuple[str, str], tuple[int, int]]
    other_label: int
    examples: Mapping[tuple[str, str], tuple[Pair, ...]]
    leaking: Mapping[tuple[str, str], NDArray[np.int64]]
    remove: Mapping[str, NDArray[np.int64]]
    complete: bool

    def as_record(self) -> dict[str, Any]:
        """The JSON object under `leaks` in `fit --json`."""
        return {
            "checked": dict(self.checked),
            "similarity": self.similarity,
            "complete": self.complete,
            **{
                name: {"exact": self.counts[pair][0], "near": self.counts[pair][1]}
                for name, pair in _NAMES.items()
            },
            "other_label": self.other_label,
            "examples": [vars(pair) for pairs in self.examples.values() for pair in pairs],
            "dropped": {"train": 0, "validation": 0},
        }


_NAMES = {
    "test_in_train": ("test", "train"),
    "test_in_validation": ("test", "validation"),
    "validation_in_train": ("validation", "train"),
    "within_train": ("train", "train"),
}


def check_leaks(
    rows: Mapping[str, StoredRows],
    digests: Digests | None = None,
    *,
    drop: bool = False,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    examples: int = _EXAMPLES,
    reporter: Reporter,
) -> tuple[dict[str, Any], dict[str, StoredRows]]:
    """Look for leaks, say what was found, and take them out of train and validation if asked to.

    Args:
        rows: train, validation and test.
        digests: of the raw rows; see ``find_leaks``.
        drop: take out of train and validation what has a twin in test, out of train what has one in
            validation, and all but the first of what repeats within train.
        inputs: split -> id -> raw row, of which texts are shown with the examples.
        examples: pairs in the record, at most so many of each two splits.
        reporter: told how far it is, and of what was found.

    Returns:
        the object for the record, and the rows to go on with (`rows` where nothing was dropped).

    Raises:
        InputError: nothing would be left of train or of validation.
    """
    total = sum(len(part.ids) for part in rows.values()) + len(rows["test"].ids)
    with reporter.stage("leaks", total=total) as stage:
        report = find_leaks(rows, digests, examples=examples, progress=stage.advance)
    record, kept = report.as_record(), dict(rows)
    for split, numbers in report.remove.items() if drop else ():
        if len(numbers) == len(rows[split].ids):
            raise InputError(
                f"--drop-leaks would leave no {split} rows: each of them is in "
                f"{'test or validation' if split == 'train' else 'test'} too; give the data other "
                "splits"
            )
        kept[split] = _without(rows[split], numbers)
        record["dropped"][split] = len(numbers)
    if record["examples"]:
        advice = "" if drop else worded("; --drop-leaks leaves such rows out of train")
        reporter.note(f"duplicates: {leaks_in_words(record)}{advice}")
        for example in examples_in_words(record, inputs):
            reporter.note(f"for example {example}")
    elif record["similarity"] is None:
        reporter.note(f"duplicates: {leaks_in_words(record)}")
    return record, kept


def _without(rows: StoredRows, numbers: NDArray[np.int64]) -> StoredRows:
    left = np.delete(np.arange(len(rows.ids)), numbers)
    return StoredRows(
        [rows.ids[i] for i in left.tolist()],
        rows.labels[left],
        _features_of(rows, left),
        None if rows.tokens is None else rows.tokens[left],
    )


def _features_of(rows: StoredRows, left: NDArray[np.int64]) -> NDArray[np.floating]:
    """Those of some rows; of rows that are read as they are needed they stay where they are."""
    if isinstance(rows.features, np.ndarray):
        return rows.features[left]
    return cast(Any, Picked(rows.features, left))


def find_leaks(
    rows: Mapping[str, StoredRows],
    digests: Digests | None = None,
    *,
    examples: int = _EXAMPLES,
    progress: Callable[[int], None] | None = None,
) -> LeakReport:
    """Compare the splits train, validation and test of one store with each other.

    Memory: the features given, 64 float32 for every train row, and blocks of 4,096 rows.

    Args:
        rows: train, validation and test.
        digests: of the raw rows, as in ``Dataset.digests``, in the order of `rows`; None compares
            features alone.
        examples: pairs to return, at most so many of each two splits.
        progress: called with the number of rows done since the last call; in all each train and
            validation row once or twice and each test row twice.

    Raises:
        ValueError: digests that do not fit the rows.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32)
        >>> X[80] = X[3]  # a test row that is in train
        >>> ids = [f"row/{i}" for i in range(90)]
        >>> parts = {"train": slice(0, 60), "validation": slice(60, 75), "test": slice(75, 90)}
        >>> found = find_leaks({
        ...     name: StoredRows(ids[part], np.zeros(len(ids[part]), int), X[part], None)
        ...     for name, part in parts.items()})
        >>> found.counts["test", "train"], found.examples["test", "train"][0].twin
        ((1, 0), 'row/3')
    """
    train, validation = rows["train"], rows["validation"]
    keys = [_numbered({name: _feature_digests(part) for name, part in rows.items()})]
    if digests is not None:
        for name, part in rows.items():
            if len(digests[name]) != len(part.ids):
                raise ValueError(f"{len(digests[name])} digests for {len(part.ids)} {name} rows")
        keys.append(_numbered(digests))
    space = FeatureSpace(train.features)
    alike = space.alike(train.features, SIMILARITY)
    telling = alike <= _TOO_ALIKE or alike * len(train.ids) <= _TOO_MANY

    def search(seen: SeenRows, split: str, earlier: bool = False) -> Twins:
        if not telling:
            return _no_twins(len(rows[split].ids))
        look = seen.earlier_twins if earlier else seen.twins
        return look(rows[split].features, SIMILARITY, progress)

    seen = SeenRows(space, len(train.ids), train.features)
    found = {
        ("train", "train"): search(seen, "train", earlier=True),
        ("validation", "train"): search(seen, "validation"),
        ("test", "train"): search(seen, "test"),
    }
    chosen_on = SeenRows(space, len(validation.ids), validation.features)
    chosen_on.add(validation.features)
    found["test", "validation"] = search(chosen_on, "test")

    counts, shown, leaking, other_label = {}, {}, {}, {}
    for split, of in _NAMES.values():
        twins = found[split, of]
        for numbers in keys:
            twins = _with_equal(twins, numbers[split], numbers[of], split == of)
        counted = np.flatnonzero(twins.of >= 0)
        exact = twins.same[counted]
        twin = twins.of[counted]
        same = rows[split].labels[counted] == rows[of].labels[twin]
        leaking[split, of] = counted
        counts[split, of] = (int(exact.sum()), int((~exact).sum()))
        other_label.setdefault(split, set()).update(counted[~same].tolist())
        first = np.argsort(~exact, kind="stable")[:examples]
        shown[split, of] = tuple(
            Pair(
                rows[split].ids[counted[i]],
                split,
                rows[of].ids[twin[i]],
                of,
                1.0 if exact[i] else min(round(float(twins.similarity[counted[i]]), 4), 0.9999),
                bool(same[i]),
            )
            for i in first.tolist()
        )
    return LeakReport(
        checked={name: len(part.ids) for name, part in rows.items()},
        similarity=SIMILARITY if telling else None,
        counts=counts,
        other_label=sum(map(len, other_label.values())),
        examples=shown,
        leaking=leaking,
        remove=_remove(rows, keys, space if telling else None, leaking),
        complete=seen.exact,
    )


def _feature_digests(rows: StoredRows) -> list[bytes]:
    """One short digest per row of features."""
    return [
        hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        for start in range(0, len(rows.ids), _BLOCK)
        for row in rows.features[start : start + _BLOCK]
    ]


def _numbered(digests: Digests) -> dict[str, NDArray[np.int64]]:
    """One integer for each content, the same in all splits."""
    numbers: dict[bytes, int] = {}
    return {
        name: np.array([numbers.setdefault(d, len(numbers)) for d in each], np.int64)
        for name, each in digests.items()
    }


def _no_twins(n: int) -> Twins:
    return Twins(np.full(n, -1, np.int64), np.full(n, np.nan, np.float32), np.zeros(n, bool))


def _with_equal(
    twins: Twins, own: NDArray[np.int64], of: NDArray[np.int64], earlier: bool
) -> Twins:
    """The twins, and where the content is the same, the first row that has it."""
    first: dict[int, int] = {}
    for position, number in enumerate(of.tolist()):
        first.setdefault(number, position)
    position = np.array([first.get(number, -1) for number in own.tolist()], np.int64)
    if earlier:  # the first of a kind repeats nothing
        position[position == np.arange(len(own))] = -1
    equal = position >= 0
    return Twins(
        np.where(equal, position, twins.of),
        np.where(equal, np.float32(1), twins.similarity),
        twins.same | equal,
    )


def _remove(
    rows: Mapping[str, StoredRows],
    keys: Sequence[Mapping[str, NDArray[np.int64]]],
    space: FeatureSpace | None,
    leaking: Mapping[tuple[str, str], NDArray[np.int64]],
) -> dict[str, NDArray[np.int64]]:
    """The rows of train and validation to take out, so that no twin is left on both sides.

    A leaking test row has one twin above; here all rows that are its twins are found.
    """
    gone: dict[str, set[int]] = {
        "train": set(leaking["train", "train"].tolist()),
        "validation": set(),
    }
    for split, of in (("test", "train"), ("test", "validation"), ("validation", "train")):
        hit = leaking[split, of]
        if not len(hit):
            continue
        if space is not None:
            index = SeenRows(space, len(hit), rows[split].features)
            index.add(rows[split].features[hit])
            twins = index.twins(rows[of].features, SIMILARITY)
            gone[of].update(np.flatnonzero(twins.of >= 0).tolist())
        for numbers in keys:
            equal = np.isin(numbers[of], numbers[split][hit])
            gone[of].update(np.flatnonzero(equal).tolist())
    return {name: np.array(sorted(numbers), np.int64) for name, numbers in gone.items()}

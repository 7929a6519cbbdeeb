"""Which row goes to which split, and which rows a smaller run takes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.errors import InputError
from tasks.data.splits import hold_out, seeded_digests, stratified_order, take_subset


def digests_of(contents: list[int]) -> list[bytes]:
    return [hashlib.sha256(str(content).encode()).digest() for content in contents]


# Labels of up to five classes, and contents drawn from few values so that rows repeat.
rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), min_size=10, max_size=120)


@settings(deadline=None)
@given(rows, st.sampled_from([0.15, 0.2, 0.5]))
def test_held_out_rows_leave_every_class_something_and_are_near_the_fraction(rows, fraction):
    labels = np.array([label for label, _ in rows])
    digests = digests_of(list(range(len(rows))))  # all different
    if all(int(fraction * n + 0.5) == 0 for n in np.bincount(labels)):
        return
    try:
        held = hold_out(labels, digests, fraction)
    except InputError:
        assert all(n < 2 or int(fraction * n + 0.5) == 0 for n in np.bincount(labels))
        return
    for label in np.unique(labels):
        n = int((labels == label).sum())
        taken = int(held[labels == label].sum())
        assert taken == min(int(fraction * n + 0.5), n - 1)


@settings(deadline=None)
@given(rows, st.randoms())
def test_a_row_keeps_its_side_when_the_file_is_shuffled(rows, random):
    labels = np.array([label for label, _ in rows])
    digests = digests_of([content for _, content in rows])
    try:
        held = hold_out(labels, digests, 0.2)
    except InputError:
        return
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = hold_out(labels[order], [digests[i] for i in order], 0.2)
    # Rows that are equal in label and content are exchangeable: compare counts of each.
    before = sorted((rows[i], bool(held[i])) for i in range(len(rows)))
    after = sorted((rows[i], bool(shuffled[k])) for k, i in enumerate(order))
    assert before == after


@settings(deadline=None)
@given(rows)
def test_repeated_rows_of_a_class_stay_on_one_side(rows):
    labels = np.array([label for label, _ in rows])
    digests = digests_of([content for _, content in rows])
    try:
        held = hold_out(labels, digests, 0.2)
    except InputError:
        return
    sides: dict[tuple[int, int], set[bool]] = {}
    for row, side in zip(rows, held, strict=True):
        sides.setdefault(row, set()).add(bool(side))
    divided = [row for row, found in sides.items() if len(found) > 1]
    for label, _ in divided:  # only possible where the class is one text over and over
        assert len({content for other, content in rows if other == label}) == 1


def test_too_few_rows_to_hold_out_is_said():
    with pytest.raises(InputError, match="too few to hold out 20%"):
        hold_out(np.array([0, 1]), digests_of([1, 2]), 0.2)


@settings(deadline=None)
@given(rows, st.integers(0, 3))
def test_subsets_are_nested_and_stratified(rows, seed):
    labels = np.array([label for label, _ in rows])
    ids = [f"row/{i:06d}" for i in range(len(rows))]
    present = np.unique(labels)
    order = stratified_order(labels, seeded_digests(ids, seed))
    assert sorted(order.tolist()) == list(range(len(rows)))
    shares = np.bincount(labels) / len(labels)
    for size in (1, len(present), len(rows) // 2, len(rows)):
        subset = take_subset(labels, ids, size, seed)
        assert subset.tolist() == sorted(order[:size].tolist())  # prefixes, hence nested
        counts = np.bincount(labels[subset], minlength=len(shares))
        assert np.abs(counts - size * shares).max() <= len(present)
        if size >= len(present):
            assert set(labels[subset]) == set(present)


def test_the_seed_chooses_the_subset():
    labels = np.repeat([0, 1], 50)
    ids = [str(i) for i in range(100)]
    first, again, other = (take_subset(labels, ids, 20, seed).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other

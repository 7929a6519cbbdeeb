"""Rows of a comparison are drawn honestly."""

from __future__ import annotations

import numpy as np
import pytest

from extractors.errors import InputError
from tasks.comparison.draws import curve_sizes, draw


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_equal_rows_are_never_on_both_sides() -> None:
    labels = np.repeat([0, 1], 60)
    contents = np.repeat(np.arange(40), 3)  # every row three times
    digests = [digest(int(c)) for c in contents]
    for seed in range(5):
        drawn = draw(labels, digests, seed, fraction=0.2)
        assert sorted([*drawn.train, *drawn.validation]) == list(range(120))
        assert not set(contents[drawn.train]) & set(contents[drawn.validation])
        few = draw(labels, digests, seed, fraction=0.2, shots=4)
        assert np.bincount(labels[few.train]).tolist() == [4, 4]
        assert len(set(contents[few.train]) | set(contents[few.validation])) == 16


def test_seeds_draw_other_rows_and_smaller_sets_are_parts_of_larger_ones() -> None:
    labels = np.arange(300) % 3
    digests = [digest(i) for i in range(300)]
    first, again, other = (draw(labels, digests, seed, fraction=0.15) for seed in (0, 0, 1))
    assert np.array_equal(first.train, again.train)
    assert set(first.validation) != set(other.validation)
    smaller = [draw(labels, digests, 0, fraction=0.15, train_rows=n) for n in (30, 60)]
    assert set(smaller[0].train) < set(smaller[1].train) < set(first.train)
    assert np.array_equal(smaller[0].validation, first.validation)
    assert np.bincount(labels[smaller[0].train]).tolist() == [10, 10, 10]
    assert curve_sizes(48, 3) == (6, 12, 24)


def test_more_shots_than_rows_are_refused() -> None:
    with pytest.raises(InputError, match=r"shots 9: a class has 10 different rows, and 9 to"):
        draw(np.arange(20) % 2, [digest(i) for i in range(20)], 0, fraction=0.1, shots=9)

"""A process that fits many heads keeps room for compiled programs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from convex_heads import ConvexHeadClassifier, mappings


def taken() -> int:
    return len(Path("/proc/self/maps").read_bytes().splitlines())


def fit(d: int) -> np.ndarray:
    X = np.random.default_rng(0).normal(size=(60, d)).astype(np.float32)
    head = ConvexHeadClassifier(n_gates=4, beta=0.1).fit(X, X[:, 0] > 0)
    return head.predict_proba(X)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells of mappings")
def test_fits_of_many_widths_do_not_add_up(monkeypatch, tmp_path):
    first = fit(5)
    each = taken()
    fit(6)
    each = taken() - each
    assert each > 50  # mappings of what one more width has compiled

    # As if so few were granted that half of them are taken after two more fits.
    granted = tmp_path / "max_map_count"
    granted.write_text(str(2 * (taken() + each + each // 2)))
    monkeypatch.setattr(mappings, "_GRANTED", granted)
    at = []
    for d in range(7, 11):
        fit(d)
        at.append(taken())
    assert any(later < earlier for earlier, later in itertools.pairwise(at))
    np.testing.assert_array_equal(fit(5), first)

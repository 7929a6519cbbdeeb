"""Small feature stores with random rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from extractors import FeatureStore
from extractors.manifest import Manifest
from extractors.shard import StoredRows

DIM = 6


def manifest(dtype: str = "float32", **changes: object) -> Manifest:
    new = Manifest(
        fingerprint={"data": {"sha256": "d"}, "extractor": {}, "storage": dtype},
        task="demo",
        backbone="toy:text-6",
        modality="text",
        dim=DIM,
        classes=("no", "yes"),
        max_length=10,
        dtype=dtype,
    )
    return replace(new, **changes)


def some_rows(start: int, n: int) -> StoredRows:
    """Rows `start` to `start + n`, each with as many tokens as its number."""
    rng = np.random.default_rng(start)
    return StoredRows(
        [f"row/{i:04d}" for i in range(start, start + n)],
        rng.integers(0, 2, n),
        rng.standard_normal((n, DIM), dtype=np.float32),
        np.arange(start, start + n, dtype=np.int32),
    )


def make(folder: Path, dtype: str = "float32") -> FeatureStore:
    """12 train shards of 5 rows and 3 test shards of 2."""
    with FeatureStore.writer(folder, manifest(dtype)) as writer:
        for i in range(12):
            writer.append("train", some_rows(5 * i, 5), seconds=0.5)
        for i in range(3):
            writer.append("test", some_rows(500 + 2 * i, 2), seconds=0.25)
    return FeatureStore.open(folder)


def same_rows(first: FeatureStore, second: FeatureStore) -> None:
    assert first.splits == second.splits
    for split in first.splits:
        one, two = first.read(split), second.read(split)
        assert one.ids == two.ids
        for a, b in zip(one[1:], two[1:], strict=True):
            np.testing.assert_array_equal(a, b)

"""Extractions of a small data set of texts, for tests of what may happen on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from extractors import FeatureStore, Rows
from extractors.extract import Extraction, extract
from extractors.toy import ToyText

SHARD_ROWS = 16


def text_rows(split: str, n: int) -> Rows:
    rng = np.random.default_rng(n)
    words = np.array(["a", "fine", "dull", "film", "that", "nobody", "would", "want", "to", "miss"])
    texts = [" ".join(rng.choice(words, rng.integers(1, 200))) for _ in range(n)]
    return Rows([f"{split}/{i:05d}" for i in range(n)], texts, rng.integers(0, 2, n))


def data_set() -> dict[str, Rows]:
    return {"train": text_rows("train", 150), "test": text_rows("test", 40)}


def run(cache: Path, splits: dict[str, Rows] | None = None, **options: Any) -> Extraction:
    settings: dict[str, Any] = {
        "task": "demo",
        "classes": ("no", "yes"),
        "data_fingerprint": {"sha256": "demo"},
        "cache_dir": cache,
        "shard_rows": SHARD_ROWS,
    }
    extractor = options.pop("extractor", None) or ToyText(24)
    return extract(splits or data_set(), extractor, **(settings | options))


def content(store: FeatureStore) -> list[tuple[str, str, int, str]]:
    """Everything about a store's shards but the time they took: names, sizes, checksums."""
    assert store.verify() == []
    return [(s.file, s.split, s.rows, s.sha256) for s in store.manifest.shards]

"""Which rows a comparison is made on: those that every backbone encodes, as trials take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extractors.errors import InputError
from extractors.store import StoredRows
from tasks.comparison.images import image_bytes
from tasks.comparison.trial import Rows
from tasks.config import CompareConfig
from tasks.console import Reporter
from tasks.data.leaks import check_leaks
from tasks.data.load import Dataset
from tasks.extraction import Extracted

_DUPLICATES = 25  # pairs in the table, of each two splits


def common_rows(found: Sequence[Extracted]) -> list[dict[str, StoredRows]]:
    """Every backbone's rows of every split, those that all of them could encode."""
    splits = [{name: each.rows(name) for name in ("train", "validation", "test")} for each in found]
    if len(splits) == 1:
        return splits
    for name in splits[0]:
        shared = set.intersection(*(set(each[name].ids) for each in splits))
        for each in splits:
            each[name] = _take(each[name], shared)
    return splits


def _take(rows: StoredRows, ids: set[str]) -> StoredRows:
    kept = np.array([i for i, name in enumerate(rows.ids) if name in ids], dtype=np.intp)
    return rows._replace(
        ids=[rows.ids[i] for i in kept],
        labels=rows.labels[kept],
        features=rows.features[kept],
        tokens=None if rows.tokens is None else rows.tokens[kept],
    )


def without_leaks(
    config: CompareConfig,
    found: Sequence[Extracted],
    splits: list[dict[str, StoredRows]],
    reporter: Reporter,
) -> tuple[Mapping[str, Any], list[dict[str, StoredRows]]]:
    """What the leak check found, and every backbone's rows without those that it took out."""
    first = splits[0]
    inputs = {name: found[0].inputs(name) for name in first}
    report, kept = check_leaks(
        first,
        found[0].digests(first),
        drop=config.drop_leaks,
        examples=_DUPLICATES,
        inputs=inputs,
        reporter=reporter,
    )
    if not config.drop_leaks:
        return report, splits
    left = {name: set(part.ids) for name, part in kept.items()}
    return report, [
        {name: _take(part, left[name]) for name, part in each.items()} for each in splits
    ]


def trial_rows(
    found: Extracted, splits: Sequence[dict[str, StoredRows]], *, raw: bool = False
) -> tuple[list, list]:
    """Pool and test rows for each backbone, and for all side by side; with images if ``raw``."""
    dataset = found.dataset
    pools, tests = [], []
    for each in splits:
        digests = found.digests(each)
        parts = {"pool": ("train", "validation"), "test": ("test",)}
        made = {}
        for name, members in parts.items():
            inputs: list[Any] = []
            if dataset.modality == "text" or (raw and dataset.modality == "image"):
                for split in members:
                    inputs += found.raw(split, each[split])
            texts = inputs if dataset.modality == "text" else None
            images = None
            if raw and dataset.modality == "image":
                images = [image_bytes(item) for item in inputs]
            made[name] = Rows(
                np.concatenate([each[split].features for split in members]).astype(np.float32),
                np.concatenate([each[split].labels for split in members]).astype(np.int64),
                [digest for split in members for digest in digests[split]],
                texts,
                _targets(dataset, each, members),
                images,
            )
        pools.append(made["pool"])
        tests.append(made["test"])
    there = pools[0].labels
    if pools[0].targets is not None:
        there = np.flatnonzero(pools[0].targets.any(axis=0))
    missing = np.setdiff1d(np.arange(len(dataset.classes)), there)
    if len(missing):
        raise InputError(
            f"no usable row of the class '{dataset.classes[missing[0]]}' is left outside test"
        )
    if len(splits) > 1:
        for sets in (pools, tests):
            wide = np.concatenate([rows.features for rows in sets], axis=1)
            sets.append(dataclasses.replace(sets[0], features=wide))
    return pools, tests


def _targets(
    dataset: Dataset, rows: Mapping[str, StoredRows], members: Sequence[str]
) -> np.ndarray | None:
    """The sets of labels (n, C) of the rows of some splits; None with one label a row."""
    if dataset.targets is None:
        return None
    parts = []
    for split in members:
        place = {name: i for i, name in enumerate(dataset.splits[split].ids)}
        parts.append(dataset.targets[split][[place[name] for name in rows[split].ids]])
    return np.concatenate(parts)

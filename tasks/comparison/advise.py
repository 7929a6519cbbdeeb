"""The advice of a finished comparison, from its rows and its ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extractors.store import StoredRows
from tasks.comparison.advice import (
    MOST_SHOWN,
    LabelledRows,
    confusion,
    hardest_labels,
    label_errors,
    label_errors_csv,
)
from tasks.comparison.ledger import Ledger, Trial, cross_fit_name, write_whole
from tasks.comparison.trial import Rows
from tasks.extraction import Extracted
from tasks.methods import METHODS

__all__ = ["advise"]


def advise(
    ledger: Ledger,
    found: Extracted,
    splits: Mapping[str, StoredRows],
    rows: tuple[Rows, Rows],
    table: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    adviser: Trial | None,
) -> dict[str, Any]:
    """What `CompareRecord.advice` says, and the file with every suspected label."""
    pool, test = rows
    names = {"pool": ("train", "validation"), "test": ("test",)}
    labelled = {
        name: LabelledRows(
            [i for split in names[name] for i in splits[split].ids],
            [split for split in names[name] for _ in splits[split].ids],
            part.labels,
            part.features,
            part.digests,
        )
        for name, part in (("pool", pool), ("test", test))
    }
    classes = found.dataset.classes
    here = [row for row in table if row["backbone"] == table[0]["backbone"]]
    most = max(here, key=lambda row: row["n_train"])
    shots, train_rows = most["shots"], most["train_rows"]
    here = [row for row in here if (row["shots"], row["train_rows"]) == (shots, train_rows)]
    done = [row["method"] for row in here]

    def trials(method: str) -> list[Trial]:
        return [Trial(method, most["backbone"], shots, train_rows, seed) for seed in seeds]

    def of_seeds(method: str) -> list[np.ndarray]:
        return [ledger.predictions(trial) for trial in trials(method)]

    method = max(here, key=lambda row: row["test_accuracy"])["method"]
    if adviser is not None and adviser.method in done:
        method = adviser.method
    if test.targets is not None:
        thresholds = [ledger.records[trial]["threshold"] for trial in trials(method)]
        said = [p >= t for p, t in zip(of_seeds(method), thresholds, strict=True)]
        return {"confusion": hardest_labels(said, test.targets, classes, METHODS[method].title)}
    head, own, tested = None, None, None
    if adviser is not None and adviser.method in done:
        path = ledger.folder / cross_fit_name(adviser)
        if path.exists():
            head, own = METHODS[adviser.method].title, np.load(path)
            tested = np.mean(of_seeds(adviser.method), axis=0)
    errors = label_errors(
        labelled["pool"],
        labelled["test"],
        classes,
        head=head,
        pool_probabilities=own,
        test_probabilities=tested,
    )
    write_whole(ledger.folder / "label_errors.csv", label_errors_csv(errors["rows"]))
    errors["rows"] = errors["rows"][:MOST_SHOWN]
    return {
        "label_errors": errors,
        "confusion": confusion(of_seeds(method), test.labels, classes, METHODS[method].title),
    }

"""Test rows that a head gets wrong, kept in its artefact only when a person asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extractors.store import StoredRows
from tasks.artefact import SAMPLES_NAME
from tasks.records import to_json

SAMPLES = 20
_CHARACTERS = 2000


def write_samples(
    folder: Path,
    test: StoredRows,
    inputs: Mapping[str, Any],
    probabilities: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Writes ``samples.jsonl``: the wrong answers the head was surest of, at most 20.

    Args:
        folder: the artefact in the making.
        test: n rows.
        inputs: row id -> raw row; of texts the first 2,000 characters are kept, of the others the
            id alone.
        probabilities: (n, C).
        classes: C names.
    """
    answer, score = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(answer != test.labels)
    lines = []
    for i in wrong[np.argsort(-score[wrong], kind="stable")][:SAMPLES]:
        row = test.ids[int(i)]
        sample: dict[str, Any] = {
            "id": row,
            "label": classes[int(test.labels[i])],
            "predicted": classes[int(answer[i])],
            "score": float(score[i]),
        }
        if isinstance(inputs.get(row), str):
            sample["text"] = inputs[row][:_CHARACTERS]
        lines.append(to_json(sample) + "\n")
    (folder / SAMPLES_NAME).write_text("".join(lines), encoding="utf-8")

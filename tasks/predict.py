"""Label new rows with a saved head, a chunk at a time, and write the answers as they come."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from extractors.base import Modality
from extractors.errors import InputError
from tasks.columns import ColumnChoice
from tasks.config import OnBadRow, OutputFormat, PredictConfig
from tasks.console import Reporter
from tasks.inputs import Items, read_items, text_items
from tasks.records import to_json

CHUNK_ROWS = 256  # rows between two steps of the progress bar; what Ctrl-C can cost


class Classifier(Protocol):
    """What this module needs of a pipeline."""

    @property
    def modality(self) -> Modality:
        """What the head was fitted on."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """C class names, in the order of the probabilities."""
        ...

    def predict_proba(
        self, items: Sequence[Any], *, ids: Sequence[str] | None = None, on_bad_row: OnBadRow
    ) -> np.ndarray:
        """(n, C) probabilities; NaN in the rows that were skipped."""
        ...


@dataclass(frozen=True)
class Prediction:
    """One row's answer: its most probable class, that probability, and all of them by class."""

    id: str
    label: str
    score: float
    probabilities: Mapping[str, float]


def run_predict(config: PredictConfig, *, as_json: bool, reporter: Reporter) -> None:
    """Label what was asked for, and write it to stdout or to a file.

    JSON lines and CSV are written row by row; a table or one JSON object when all are done.
    """
    from tasks.pipeline import ConvexHeadPipeline

    pipeline = ConvexHeadPipeline.from_pretrained(
        config.artefact, device=config.device, trust_remote_code=config.trust_remote_code
    )
    items = find_items(config, pipeline.modality)
    rows = predict_items(pipeline, items, on_bad_row=config.on_bad_row, reporter=reporter)
    with _open_output(config.output) as stream:
        if as_json:
            answer = {"artefact": config.artefact, "predictions": list(rows)}
            stream.write(to_json(answer) + "\n")
            return
        match config.format or _format_of(config.output):
            case "jsonl":
                write_json_lines(rows, stream)
            case "csv":
                write_csv(rows, pipeline.classes, stream)
            case "table":
                write_table(list(rows), pipeline.classes, stream)


def _format_of(output: Path | None) -> OutputFormat:
    by_suffix: dict[str, OutputFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
    return by_suffix.get(output.suffix.lower() if output else "", "table")


@contextmanager
def _open_output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    try:
        stream = path.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write --output {path}: {error.strerror}") from error
    with stream:
        yield stream


def find_items(config: PredictConfig, modality: Modality) -> Items:
    """The rows that a person asked to have labelled.

    Raises InputError when there are none, when texts are given to a head for images, and when both
    --text and --input are given.
    """
    if config.text and config.input is not None:
        raise InputError("give --text or --input, not both")
    if config.text:
        if modality != "text":
            kind = "images" if modality == "image" else "vectors of features"
            raise InputError(f"this head labels {kind}; give them with --input FILE or FOLDER")
        return text_items(config.text)
    if config.input is None:
        raise InputError("say what to label: --text T (repeatable), or --input FILE or FOLDER")
    choice = ColumnChoice(config.text_column, config.image_column, features=config.features_column)
    return read_items(config.input, modality, choice)


def predict_items(
    pipeline: Classifier, items: Items, *, on_bad_row: OnBadRow, reporter: Reporter
) -> Iterator[Prediction]:
    """Label all items; skipped ones are left out and noted."""
    classes = [str(name) for name in pipeline.classes]
    skipped = 0
    with reporter.stage("predict", total=len(items.ids)) as stage:
        for start in range(0, len(items.ids), CHUNK_ROWS):
            ids = items.ids[start : start + CHUNK_ROWS]
            inputs = items.inputs[start : start + CHUNK_ROWS]
            answers = pipeline.predict_proba(inputs, ids=ids, on_bad_row=on_bad_row)
            for row_id, row in zip(ids, answers, strict=True):
                if np.isnan(row).any():
                    skipped += 1
                    continue
                best = int(row.argmax())
                by_class = dict(zip(classes, row.tolist(), strict=True))
                yield Prediction(row_id, classes[best], float(row[best]), by_class)
            stage.advance(len(ids))
    if skipped:
        reporter.note(f"rows left out because they could not be used: {skipped}")


def write_json_lines(predictions: Iterable[Prediction], stream: IO[str]) -> None:
    """One object per line, written as soon as it is known."""
    for prediction in predictions:
        stream.write(to_json(prediction) + "\n")


def write_csv(predictions: Iterable[Prediction], classes: Sequence[str], stream: IO[str]) -> None:
    """A column for id, label and score, and one per class."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", "label", "score", *classes])
    for prediction in predictions:
        numbers = [f"{value:.6g}" for value in prediction.probabilities.values()]
        writer.writerow([prediction.id, prediction.label, f"{prediction.score:.6g}", *numbers])


def write_table(predictions: Sequence[Prediction], classes: Sequence[str], stream: IO[str]) -> None:
    """A table for people; the probabilities of all classes where there are few."""
    from tasks.show import make_table, print_table

    shown = list(classes) if len(classes) <= 6 else []
    table = make_table("input", "label", "score", *shown)
    for prediction in predictions:
        name = " ".join(prediction.id.split())
        name = name if len(name) <= 60 else name[:57] + "..."
        numbers = [f"{prediction.probabilities[label]:.4f}" for label in shown]
        table.add_row(name, prediction.label, f"{prediction.score:.4f}", *numbers)
    print_table(table, stream)

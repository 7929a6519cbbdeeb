"""Label new rows with a saved head, at the backbone's full speed, in their order.

To stdout answers are written as they come. A file appears whole or not at all; what is finished
until then lies in a journal beside it, from which the same command continues.
"""

from __future__ import annotations

import csv
import hashlib
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from extractors.base import Modality
from extractors.errors import InputError
from extractors.storage import TEMPORARY_PREFIX, plain_disk_errors, write_atomically
from tasks.config_saved import OutputFormat, PredictConfig
from tasks.console import Reporter
from tasks.data.columns import ColumnChoice, columns_before
from tasks.data.inputs import STDIN, Items, read_items, text_items
from tasks.data.raw import is_empty
from tasks.records import to_json

if TYPE_CHECKING:
    from tasks.pipeline import ConvexHeadPipeline, Predicted

CHUNK_ROWS = 256  # rows between two steps of the progress bar; what Ctrl-C can cost


@dataclass(frozen=True)
class Prediction:
    """One row's answer: its most probable class, that probability, and all of them by class."""

    id: str
    label: str
    score: float
    probabilities: Mapping[str, float]


class Skipped(dict[str, str]):
    """Reasons by row id, filled while rows are labelled."""


def run_predict(config: PredictConfig, *, as_json: bool, reporter: Reporter) -> None:
    """Label what was asked for, and write it to stdout or to a file.

    To stdout JSON lines and CSV are written row by row; a table or one JSON object when all are
    done.
    """
    from tasks.pipeline import ConvexHeadPipeline

    pipeline = ConvexHeadPipeline.from_pretrained(
        config.artefact,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        backbone=config.backbone,
    )
    items = find_items(config, pipeline.modality, columns_before(pipeline.facts))
    form = _format_of(config, as_json)
    n_empty = sum(map(is_empty, items.inputs))
    if n_empty and config.on_bad_row == "fail":
        reporter.note(
            f"texts that are empty: {n_empty:,}, labelled all the same (--on-bad-row skip leaves "
            "them out)"
        )
    skipped = Skipped()
    if config.output is not None:
        _label_into_file(pipeline, items, config, form, skipped, reporter)
        if as_json:
            answer = {"artefact": config.artefact, "output": str(config.output)}
            rows = len(items.ids) - len(skipped)
            print(to_json({**answer, "rows": rows, "skipped": _told(skipped)}))
    else:
        if form == "parquet":
            raise InputError("--format parquet is written to a file: name it with --output")
        # Closed, or its bar would end, and be drawn again, after what is said of an interruption.
        with closing(
            label(pipeline, items, on_bad_row=config.on_bad_row, reporter=reporter)
        ) as chunks:
            _write(chunks, pipeline.classes, sys.stdout, form, config.artefact, skipped)
    if skipped:
        row, reason = next(iter(skipped.items()))
        reporter.note(
            f"rows left out because they could not be used: {len(skipped)}; "
            f"the first: {row} ({reason})"
        )


def _label_into_file(
    pipeline: ConvexHeadPipeline,
    items: Items,
    config: PredictConfig,
    form: OutputFormat,
    skipped: Skipped,
    reporter: Reporter,
) -> None:
    from tasks.journal import Journal

    output = config.output
    assert output is not None
    if not output.absolute().parent.is_dir():
        raise InputError(f"cannot write --output {output}: there is no such folder")
    if output.is_dir():
        raise InputError(f"cannot write --output {output}: it is a folder")
    if config.input not in (None, STDIN) and output.exists() and output.samefile(config.input):
        raise InputError(f"--output {output} is the file to label: name another one")
    try:
        journal = Journal(
            output.with_name(f".{output.name}.partial"),
            job_key(pipeline, items, config.on_bad_row),
            items.ids,
            len(pipeline.classes),
        )
    except OSError as error:
        raise InputError(f"cannot write --output {output}: {error.strerror}") from error
    done = False
    try:
        if journal.rows:
            reporter.note(f"rows labelled before: {journal.rows:,}")
        with closing(
            label(
                pipeline, items, on_bad_row=config.on_bad_row, reporter=reporter, start=journal.rows
            )
        ) as chunks:
            for chunk in chunks:
                journal.add(chunk)
        replaced = output.exists()
        temporary = output.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{output.name}")
        with plain_disk_errors(output.parent, "--output"):
            try:
                if form == "parquet":
                    write_parquet(journal.chunks(), pipeline.classes, temporary, skipped)
                else:
                    with temporary.open("w", encoding="utf-8", newline="") as stream:
                        _write(
                            journal.chunks(),
                            pipeline.classes,
                            stream,
                            form,
                            config.artefact,
                            skipped,
                        )
                temporary.replace(output)
            finally:
                temporary.unlink(missing_ok=True)
        told = output.with_name(f"{output.name}.skipped.jsonl")
        if skipped:
            lines = [to_json(row) + "\n" for row in _told(skipped)]
            write_atomically(told, "".join(lines).encode(), "--output")
        else:
            told.unlink(missing_ok=True)  # of an earlier run
        done = True
        if replaced:
            reporter.note(f"--output {output} was there before: it is replaced")
    finally:
        journal.close(remove=done)


def _write(
    chunks: Iterable[Predicted],
    classes: Sequence[str],
    stream: IO[str],
    form: OutputFormat,
    artefact: str,
    skipped: Skipped,
) -> None:
    rows = predictions(chunks, classes, skipped)
    if form == "json":
        answer: dict[str, Any] = {"artefact": artefact, "predictions": list(rows)}
        if skipped:
            answer["skipped"] = _told(skipped)
        stream.write(to_json(answer) + "\n")
    elif form == "jsonl":
        write_json_lines(rows, stream)
    elif form == "csv":
        write_csv(rows, classes, stream)
    else:
        write_table(list(rows), classes, stream)


def _told(skipped: Skipped) -> list[dict[str, str]]:
    return [{"id": row, "reason": why} for row, why in skipped.items()]


_FORMATS: dict[str, OutputFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "table",
    ".md": "table",
    "": "table",
}


def _format_of(config: PredictConfig, as_json: bool) -> OutputFormat:
    """Of the file, by its name where --format says nothing; without a file, of stdout."""
    output = config.output
    if as_json and output is None:
        if config.format not in (None, "json"):
            raise InputError(
                f"--json is one JSON object on stdout: leave out --format {config.format}"
            )
        return "json"
    if config.format is not None:
        return config.format
    suffix = output.suffix.lower() if output else ""
    if suffix not in _FORMATS:
        raise InputError(
            f"--output {output}: files called *{suffix} are not written; name it .csv, .json, "
            ".jsonl or .parquet, or say --format"
        )
    return _FORMATS[suffix]


def find_items(
    config: PredictConfig, modality: Modality, before: ColumnChoice | None = None
) -> Items:
    """The rows that a person asked to have labelled.

    before: columns of the rows that the head was fitted on.

    Raises InputError when there are none, when texts are given to a head for images, and when both
    --text and --input are given.
    """
    if config.text and config.input is not None:
        raise InputError("give --text or --input, not both")
    if config.text and config.id_column is not None:
        raise InputError("--id-column is a column of a table: give one with --input FILE")
    if config.text:
        if modality != "text":
            kind = "images" if modality == "image" else "vectors of features"
            raise InputError(f"this head labels {kind}; give them with --input FILE or FOLDER")
        return text_items(config.text)
    if config.input is None:
        raise InputError("say what to label: --text T (repeatable), or --input FILE or FOLDER")
    choice = ColumnChoice(
        config.text_column, config.image_column, features=config.features_column, before=before
    )
    return read_items(config.input, modality, choice, config.id_column)


def job_key(pipeline: ConvexHeadPipeline, items: Items, on_bad_row: str) -> str:
    """Changes with the head, with any row (of an image file its size and time), and their order."""
    digest = hashlib.sha256(to_json([pipeline.identity, on_bad_row, len(items.ids)]).encode())
    for row, item in zip(items.ids, items.inputs, strict=True):
        if isinstance(item, str):
            content = item.encode("utf-8", "surrogatepass")
        elif isinstance(item, Path):
            found = item.stat() if item.exists() else None
            content = repr(found and (found.st_size, found.st_mtime_ns)).encode()
        elif isinstance(item, np.ndarray):
            content = np.ascontiguousarray(item).tobytes()
        else:
            content = item if isinstance(item, bytes) else repr(item).encode()
        digest.update(f"{row}\0{len(content)}\0".encode("utf-8", "surrogatepass"))
        digest.update(content)
    return digest.hexdigest()


def label(
    pipeline: ConvexHeadPipeline,
    items: Items,
    *,
    on_bad_row: Any,
    reporter: Reporter,
    start: int = 0,
) -> Generator[Predicted, None, None]:
    """Labels all items from row `start` on, chunk by chunk."""

    def chunks() -> Iterator[tuple[Sequence[str], Sequence[Any]]]:
        for first in range(start, len(items.ids), CHUNK_ROWS):
            rows = slice(first, first + CHUNK_ROWS)
            yield items.ids[rows], items.inputs[rows]

    at = start
    with reporter.stage("predict", total=len(items.ids), done=start) as stage:
        for chunk in pipeline.predict_stream(chunks(), on_bad_row=on_bad_row):
            if on_bad_row == "skip":
                chunk = _without_empty(chunk, items.inputs[at : at + len(chunk.ids)])
            at += len(chunk.ids)
            yield chunk
            stage.advance(len(chunk.ids))


def _without_empty(chunk: Predicted, inputs: Sequence[Any]) -> Predicted:
    """Empty texts can be encoded, and are no texts."""
    empty = [i for i, value in enumerate(inputs) if is_empty(value)]
    if not empty:
        return chunk
    probabilities = chunk.probabilities.copy()
    probabilities[empty] = np.nan
    reasons = {chunk.ids[i]: "the text is empty" for i in empty}
    return replace(chunk, probabilities=probabilities, skipped={**chunk.skipped, **reasons})


def predictions(
    chunks: Iterable[Predicted], classes: Sequence[str], skipped: Skipped
) -> Iterator[Prediction]:
    """One answer a row, without the skipped ones, whose reasons are noted."""
    for chunk in chunks:
        skipped.update(chunk.skipped)
        for row_id, row in zip(chunk.ids, chunk.probabilities, strict=True):
            if np.isnan(row).any():
                skipped.setdefault(row_id, "no probability")
                continue
            best = int(row.argmax())
            by_class = dict(zip(classes, row.tolist(), strict=True))
            yield Prediction(row_id, classes[best], float(row[best]), by_class)


def write_json_lines(predictions: Iterable[Prediction], stream: IO[str]) -> None:
    """One object per line, written as soon as it is known."""
    for prediction in predictions:
        stream.write(to_json(prediction) + "\n")


def write_csv(predictions: Iterable[Prediction], classes: Sequence[str], stream: IO[str]) -> None:
    """A column for id, label and score, and one per class."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", "label", "score", *_columns(classes)])
    for prediction in predictions:
        numbers = [f"{value:.6g}" for value in prediction.probabilities.values()]
        writer.writerow([prediction.id, prediction.label, f"{prediction.score:.6g}", *numbers])


def _columns(classes: Sequence[str]) -> list[str]:
    """The classes' names; one that is called like another column gets "class:" before it."""
    return [f"class:{name}" if name in ("id", "label", "score") else name for name in classes]


def write_parquet(
    chunks: Iterable[Predicted], classes: Sequence[str], path: Path, skipped: Skipped
) -> None:
    """The columns of the CSV file."""
    import pyarrow as pa
    from pyarrow import parquet

    names = _columns(classes)
    fields = [pa.field("id", pa.string()), pa.field("label", pa.string())]
    fields += [pa.field(name, pa.float32()) for name in ("score", *names)]
    with parquet.ParquetWriter(path, pa.schema(fields)) as writer:
        for chunk in chunks:
            skipped.update(chunk.skipped)
            kept = np.flatnonzero(~np.isnan(chunk.probabilities).any(axis=1))
            p = chunk.probabilities[kept]
            if not len(kept):
                continue
            best = p.argmax(axis=1)
            columns = [
                pa.array([chunk.ids[int(i)] for i in kept]),
                pa.array([classes[int(c)] for c in best]),
                pa.array(p.max(axis=1)),
                *(pa.array(p[:, c]) for c in range(p.shape[1])),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)))


def write_table(predictions: Sequence[Prediction], classes: Sequence[str], stream: IO[str]) -> None:
    """A table for people; the probabilities of all classes where there are few."""
    from tasks.screen import make_table, print_table

    shown = list(classes) if len(classes) <= 6 else []
    table = make_table("input", "label", "score", *shown)
    for prediction in predictions:
        name = " ".join(prediction.id.split())
        name = name if len(name) <= 60 else name[:57] + "..."
        numbers = [f"{prediction.probabilities[label]:.4f}" for label in shown]
        table.add_row(name, prediction.label, f"{prediction.score:.4f}", *numbers)
    print_table(table, stream)

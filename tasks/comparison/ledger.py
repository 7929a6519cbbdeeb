"""What is finished of a comparison: ``records.jsonl``, a line for each, and its predictions.

A line is written when its predictions are on disk, and is flushed to the disk itself before the
next trial begins. A process that is killed loses the trial it was at and no other; half a line at
the end is dropped by the next run. One process at a time holds a comparison: see `Ledger.open`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from extractors.errors import InputError
from extractors.storage import exclusive_lock
from tasks.records import to_json

RECORDS, SKIPPED, ABOUT, LOCK = "records.jsonl", "skipped.jsonl", "comparison.json", ".lock"
# Fields of a record that another run of the same seed need not repeat.
MEASURED = (
    "seconds",
    "seconds_warm",
    "seconds_predict",
    "peak_rss_mb",
    "cold",
    "convergence",
)


class Trial(NamedTuple):
    """One method, fitted once.

    Attributes:
        method: name.
        backbone: whose features; several joined by " + ".
        shots: training rows of every class, or None.
        train_rows: of a point of the learning curve, or None for all.
        seed: of the draw of rows and of the method.
    """

    method: str
    backbone: str
    shots: int | None
    train_rows: int | None
    seed: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Trial:
        """The trial that a record tells of."""
        return cls(*(record[name] for name in cls._fields))


def check_folder(folder: Path) -> None:
    """Raises InputError unless a comparison may be in this folder. Cheap: ask before the work."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file: name a folder")
    found = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if ABOUT not in found and found - {LOCK}:
        raise InputError(f"{folder} is not empty and holds no comparison: choose another --out")


class Ledger:
    """The records in a folder.

    Example:
        >>> import tempfile
        >>> with Ledger.open(Path(tempfile.mkdtemp()) / "out", {"data": "x"}) as ledger:
        ...     ledger.append({"method": "knn", "backbone": "b", "shots": None,
        ...                    "train_rows": None, "seed": 0, "test_accuracy": 0.5})
        >>> [trial.method for trial in ledger.records]
        ['knn']
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.folder = folder
        self.records: dict[Trial, dict[str, Any]] = {}
        self.outdated: set[Trial] = set()
        self._settings = settings

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path,
        about: Mapping[str, Any],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Iterator[Ledger]:
        """Open or begin a comparison, and hold it for the length of a ``with`` block.

        Args:
            folder: made if it is not there.
            about: what the records depend on besides the trial (data, features, options).
            settings: what each method tries now, JSON-able. Trials that tried something else are
                `outdated`: not among the records, until they are done again. None: all count.

        Raises:
            InputError: the folder holds another comparison, or something else.
            MachineError: another process holds it.
        """
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / LOCK, what=f"the comparison {folder}"):
            ledger = cls(folder, settings)
            ledger._check(json.loads(to_json(about)))
            ledger._read()
            yield ledger

    def _check(self, about: dict[str, Any]) -> None:
        """Compare with what the records depend on, or note it in a new folder."""
        path = self.folder / ABOUT
        if not path.exists():
            write_whole(path, json.dumps(about, indent=1) + "\n")
            return
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): choose another --out") from None
        for name in sorted({*found, *about}):
            if found.get(name) != about.get(name):
                raise InputError(
                    f"{self.folder} holds a comparison with another {name}: choose another --out,"
                    " or remove the folder to begin anew"
                )

    def _read(self) -> None:
        path = self.folder / RECORDS
        if not path.exists():
            return
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # a line that was being written when the process died
            with path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.decode("utf-8").splitlines(), start=1):
            try:
                record = json.loads(line)
                self._take(Trial.of(record), record)
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{path}, line {number} is no record: remove that line, and its trial is"
                    " done again"
                ) from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a finished trial, and see that it is on the disk."""
        line = to_json(record)
        with (self.folder / RECORDS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        kept = json.loads(line)
        self._take(Trial.of(kept), kept)

    def _take(self, trial: Trial, record: dict[str, Any]) -> None:
        """The last line of a trial counts, where its method tries now what it tried then."""
        now = (self._settings or {}).get(trial.method)
        if now is not None and now != record.get("settings"):
            self.records.pop(trial, None)
            self.outdated.add(trial)
        else:
            self.outdated.discard(trial)
            self.records[trial] = record

    def skip(self, skipped: Mapping[str, str]) -> None:
        """Write which methods could not run, and why; those of an earlier run are forgotten."""
        lines = "".join(to_json({"method": m, "reason": r}) + "\n" for m, r in skipped.items())
        write_whole(self.folder / SKIPPED, lines)

    def predictions(self, trial: Trial) -> NDArray[np.float32]:
        """The trial's test probabilities (n_test, C)."""
        return np.load(self.folder / self.records[trial]["predictions"])


def prediction_name(trial: Trial) -> str:
    """Where in the folder a trial's test probabilities lie.

    >>> prediction_name(Trial("knn", "minilm", 4, None, 0))
    'predictions/knn_minilm_4-shots_seed-0.npy'
    """
    parts = [trial.method, "".join(c if c.isalnum() or c in "-." else "-" for c in trial.backbone)]
    if trial.shots is not None:
        parts.append(f"{trial.shots}-shots")
    if trial.train_rows is not None:
        parts.append(f"{trial.train_rows}-rows")
    return f"predictions/{'_'.join(parts)}_seed-{trial.seed}.npy"


def cross_fit_name(trial: Trial) -> str:
    """Where in the folder a trial's probabilities of rows it was not fitted on lie.

    >>> cross_fit_name(Trial("convex", "minilm", None, None, 0))
    'advice/convex_minilm_seed-0.npy'
    """
    return prediction_name(trial).replace("predictions/", "advice/")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def groups(records: Mapping[Trial, Any]) -> Iterator[tuple[str, int | None, int | None]]:
    """The (backbone, shots, train_rows) that occur, in order: within one, methods are compared."""
    yield from dict.fromkeys((t.backbone, t.shots, t.train_rows) for t in records)

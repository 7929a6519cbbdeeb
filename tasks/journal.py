"""What a long labelling has finished, kept beside its output until all of it is there.

One line of JSON for each finished chunk of rows, after a first line that names the job. A line that
a crash has cut off is dropped; another job's journal is not continued.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from extractors.errors import MachineError
from extractors.storage import plain_disk_errors
from tasks.pipeline import Predicted


class Journal:
    """Finished chunks of one job.

    Args:
        path: where; a journal of the same job that is there already is continued.
        key: names the job: rows and head.
        ids: of all rows, in their order.
        n_classes: columns of the probabilities.

    Attributes:
        rows: how many rows are finished.

    Raises:
        OSError: it cannot be opened.
        MachineError: another process holds it, or the disk refuses.
    """

    def __init__(self, path: Path, key: str, ids: Any, n_classes: int) -> None:
        self.path, self._ids, self._n_classes = path, ids, n_classes
        self.rows = 0
        self._file: IO[bytes] = path.open("a+b")
        self._lock()
        whole = self._finished(key)
        with plain_disk_errors(path.parent, "--output"):
            self._file.truncate(whole)
            if not whole:
                self._file.write(json.dumps({"key": key}).encode() + b"\n")
                self._file.flush()

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise MachineError(
                f"another process is writing this --output ({self.path.name} is its journal): wait "
                "for it, or name another"
            ) from error

    def _finished(self, key: str) -> int:
        """Counts the rows that are finished, and returns the bytes that are whole."""
        self._file.seek(0)
        first = _line(self._file.readline())
        if first is None or first.get("key") != key:
            return 0
        whole = self._file.tell()
        for line in self._file:
            entry = _line(line)
            if entry is None or not 0 < entry["n"] <= len(self._ids) - self.rows:
                break
            self.rows += entry["n"]
            whole += len(line)
        return whole

    def add(self, chunk: Predicted) -> None:
        """Keeps a chunk; the file system has it when this returns."""
        entry = {
            "n": len(chunk.ids),
            "p": base64.b64encode(chunk.probabilities.astype("<f4").tobytes()).decode(),
            "skipped": chunk.skipped,
        }
        with plain_disk_errors(self.path.parent, "--output"):
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.rows += len(chunk.ids)

    def chunks(self) -> Iterator[Predicted]:
        """All finished chunks, in the order of the rows."""
        start = 0
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                entry = json.loads(line)
                ids = self._ids[start : start + entry["n"]]
                start += entry["n"]
                p = np.frombuffer(base64.b64decode(entry["p"]), "<f4")
                yield Predicted(ids, p.reshape(-1, self._n_classes), entry["skipped"])

    def close(self, *, remove: bool) -> None:
        """Ends the work; removed when the output is there."""
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)


def _line(text: bytes) -> dict[str, Any] | None:
    """A whole line, or None."""
    if not text.endswith(b"\n"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

"""All trials of a comparison, one process a method; what is finished is not run again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from extractors.errors import MachineError, worded
from tasks.comparison.ledger import Ledger, Trial
from tasks.comparison.trial import FAILED, UNAVAILABLE, Rows
from tasks.console import Reporter, Stage
from tasks.methods import METHODS
from tasks.records import to_json


def run_trials(
    ledger: Ledger,
    wanted: Mapping[str, Sequence[Trial]],
    rows: Mapping[str, tuple[Rows, Rows]],
    job: Mapping[str, Any],
    reporter: Reporter,
) -> dict[str, str]:
    """Runs what is not finished, and returns why methods could not run."""
    skipped: dict[str, str] = {}
    total = sum(map(len, wanted.values()))
    left = {name: [t for t in trials if t not in ledger.records] for name, trials in wanted.items()}
    done = total - sum(map(len, left.values()))
    if done == total:
        return skipped
    work = ledger.folder / "work"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        with reporter.stage("compare", total, done=done, even=False) as stage:
            for number, (backbone, trials) in enumerate(left.items()):
                folder = work / str(number)
                folder.mkdir(parents=True)
                if trials:
                    for part, name in zip(rows[backbone], ("pool", "test"), strict=True):
                        part.write(folder, name)
                for method in dict.fromkeys(trial.method for trial in trials):
                    mine = [trial for trial in trials if trial.method == method]
                    reason = _run_method(ledger, folder, mine, job, stage)
                    if reason is not None:
                        skipped.setdefault(method, reason)
                        reporter.note(f"{METHODS[method].title} is left out: {reason}")
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return skipped


def _run_method(
    ledger: Ledger, folder: Path, trials: Sequence[Trial], job: Mapping[str, Any], stage: Stage
) -> str | None:
    """One method's process; None, or why it did not finish all trials."""
    own = {**job, "out": str(ledger.folder.resolve()), "trials": [list(t) for t in trials]}
    (folder / "job.json").write_text(to_json(own), "utf-8")
    title = METHODS[trials[0].method].title
    stage.detail(title)
    command = [sys.executable, "-P", "-m", "tasks.comparison.trial", str(folder.resolve())]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # it ends when this end is closed, however that comes about
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            encoding="utf-8",
        )
        reason, finished = None, 0
        try:
            assert process.stdout is not None
            for answer in _answers(process.stdout):
                if "record" in answer:
                    notes = [worded(note) for note in answer["record"]["notes"]]
                    ledger.append({**answer["record"], "notes": notes})
                    finished += 1
                    stage.advance(1)
                    stage.detail(f"{title}, {finished} of {len(trials)}")
                else:
                    reason = worded(answer.get(UNAVAILABLE) or answer[FAILED])
            process.wait()
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if reason is None and finished < len(trials):
            reason = _death(process.returncode, said)
    if reason is not None and "No space left" in reason:
        raise MachineError(f"no space left on the disk of {ledger.folder}")
    return reason


def _answers(stream: IO[str]) -> Iterator[dict[str, Any]]:
    for line in stream:
        if line.endswith("\n"):  # or half a line of a process that was killed
            yield json.loads(line)


def _death(code: int, said: IO[str]) -> str:
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()]
    last = f": {lines[-1]}" if lines and code >= 0 else ""
    if code == -9:
        return "its process was killed, as a system does that has run out of memory"
    return f"its process ended with code {code}{last}"

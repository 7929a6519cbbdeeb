"""Finished trials of a comparison are kept, each once, by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extractors.errors import InputError, MachineError
from tasks.comparison.ledger import RECORDS, Ledger, Trial, write_array


def record(seed: int, **more: object) -> dict:
    return {**Trial("knn", "b", None, None, seed)._asdict(), "predictions": "p.npy", **more}


def test_half_a_line_is_dropped_and_whole_ones_are_kept(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "out", {"data": 1}) as ledger:
        ledger.append(record(0))
        ledger.append(record(1))
    file = tmp_path / "out" / RECORDS
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"method": "knn", "see')
    with Ledger.open(tmp_path / "out", {"data": 1}) as again:
        assert [trial.seed for trial in again.records] == [0, 1]
        again.append(record(2))
    assert file.read_bytes().startswith(whole)
    with Ledger.open(tmp_path / "out", {"data": 1}) as ledger:
        assert len(ledger.records) == 3


def test_trials_of_other_settings_are_not_done(tmp_path: Path) -> None:
    now = {"knn": {"neighbours": [1, 3]}}
    out = tmp_path / "out"
    with Ledger.open(out, {}) as ledger:
        ledger.append(record(0))  # says nothing
        ledger.append(record(1, settings={"neighbours": [1, 5]}))
        ledger.append(record(2, settings=now["knn"]))
        ledger.append(record(3) | {"method": "unheard-of"})
    with Ledger.open(out, {}, now) as ledger:
        assert [trial.seed for trial in ledger.records] == [2, 3]
        assert sorted(trial.seed for trial in ledger.outdated) == [0, 1]
        ledger.append(record(1, settings=now["knn"]))
        assert [trial.seed for trial in ledger.outdated] == [0]
    with Ledger.open(out, {}, now) as ledger:  # the later line counts
        assert sorted(trial.seed for trial in ledger.records) == [1, 2, 3]


def test_another_comparison_in_the_folder_is_refused(tmp_path: Path) -> None:
    def opened(folder: Path, about: dict) -> None:
        with Ledger.open(folder, about):
            pass

    opened(tmp_path / "out", {"data": 1, "head": {}})
    with pytest.raises(InputError, match="another head: choose another out"):
        opened(tmp_path / "out", {"data": 1, "head": {"beta": 0.1}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match="not empty and holds no comparison"):
        opened(tmp_path / "mine", {})
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    p = np.random.default_rng(0).random((5, 3), np.float32)
    with Ledger.open(tmp_path / "out", {}) as ledger:
        write_array(tmp_path / "out" / "p.npy", p)
        ledger.append(record(0))
        assert np.array_equal(ledger.predictions(next(iter(ledger.records))), p)
    assert not list((tmp_path / "out").glob("*.part"))


HOLDER = """
import sys, time
from pathlib import Path
from tasks.comparison.ledger import Ledger
with Ledger.open(Path(sys.argv[1]), {"data": 1}):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        # What another process is writing is not a line cut short, and nothing is cut from it.
        (out / RECORDS).write_bytes(b'{"method": "knn", "see')
        told = f"pid {holder.pid}.* is writing to the comparison"
        with pytest.raises(MachineError, match=told), Ledger.open(out, {"data": 1}):
            pass
        assert (out / RECORDS).read_bytes() == b'{"method": "knn", "see'
    finally:
        holder.kill()
        holder.communicate()
    with Ledger.open(out, {"data": 1}) as ledger:
        ledger.append(record(0))
    assert (out / RECORDS).read_bytes().count(b"\n") == 1

"""The crash benchmark, shortened: real processes, real kill -9, real damage on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def crash(tmp_path: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    record = tmp_path / "crash.json"
    command = [sys.executable, "tests/benchmarks/crash.py", "--json", str(record), *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False
    )
    assert record.exists(), done.stderr
    assert done.returncode == 0, done.stdout
    return json.loads(record.read_text("utf-8"))


def check(found: dict[str, list[dict[str, object]]], kills: int) -> None:
    assert [(row["killed"], row["equal"]) for row in found["killed"]] == [(kills, "yes")] * 2
    assert [row["equal"] for row in found["damaged"]] == ["yes"] * 5


def test_a_few_kills_and_every_damage_end_in_an_equal_store(tmp_path: Path) -> None:
    check(crash(tmp_path, "--kills", "2", "--rows", "320", "--dtypes", "float32"), 2)


@pytest.mark.slow
def test_many_kills_reach_every_moment_of_a_write(tmp_path: Path) -> None:
    found = crash(tmp_path, "--kills", "6", "--rows", "1200", "--dtypes", "int8")
    check(found, 6)
    assert int(str(found["killed"][0]["kept"])) > 0
    assert any(row["half a file left"] or row["unlisted shard left"] for row in found["killed"])

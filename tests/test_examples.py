"""The examples run as they stand, and stay short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(script: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_is_short(script):
    assert len((EXAMPLES / script).read_text().splitlines()) < 60


def test_path(tmp_path):
    out = run("path.py", tmp_path)
    accuracy = float(out.split("test accuracy ")[1].split()[0])
    assert accuracy > 0.95
    assert "relative gap" in out


@pytest.mark.slow
def test_imdb_sentiment(tmp_path, shared_data):
    out = run("imdb_sentiment.py", tmp_path, str(shared_data), "200", "100")
    assert "truncated at 256 tokens" in out
    assert out.count("'label'") == 2


@pytest.mark.slow
def test_alternate(tmp_path):
    rows = [f"a {w} film, number {i},{w}" for i in range(60) for w in ("fine", "dull")]
    text = "text,label\n" + "\n".join(row.replace(", number", " number") for row in rows)
    (tmp_path / "reviews.csv").write_text(text + "\n")
    out = run("alternate.py", tmp_path, "reviews.csv", "minilm", "1", "1")
    assert "the head is optimal for these blocks" in out and "'label'" in out
    assert (tmp_path / "alternated" / "rounds.svg").read_text().startswith("<svg")

"""The examples run as they stand, and stay short."""

from __future__ import annotations

import ast
import importlib
import json
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
        env={
            **os.environ,
            "PYTHONPATH": str(EXAMPLES.parent),
            "CONVEX_HEADS_CACHE": str(folder / "cache"),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_is_short(script):
    assert len((EXAMPLES / script).read_text().splitlines()) < 60


@pytest.mark.slow
def test_path(tmp_path):
    out = run("path.py", tmp_path)
    accuracy = float(out.split("test accuracy ")[1].split()[0])
    assert accuracy > 0.95
    assert "relative gap" in out


@pytest.mark.slow
def test_own_data_then_serve_and_call(tmp_path):
    pytest.importorskip("fastapi")
    out = run("own_data.py", tmp_path)
    assert "rows left out    1\n" in out
    assert "'label': 'billing'" in out
    text = "the app crashes on screen 7"
    out = run("serve_and_call.py", tmp_path, "out/own-data", text)
    assert out.startswith("support ") and text in out


@pytest.mark.slow
def test_compare_probes(tmp_path):
    out = run("compare_probes.py", tmp_path, "digits", "toy:image-8", "1", "150", "60")
    assert out.count("convex head") >= 1 and "kNN" in out
    assert (tmp_path / "out" / "probes" / "report.html").is_file()


@pytest.mark.slow
def test_imagenet_features(tmp_path):
    out = run("imagenet_features.py", tmp_path, "digits", "toy:image-32", "200", "100")
    assert "rows, 32 features" in out
    assert float(out.split("test accuracy ")[1].split()[0]) > 0.7


@pytest.mark.parametrize("notebook", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_the_code_of_a_notebook_compiles_and_its_imports_are_there(notebook):
    cells = json.loads((EXAMPLES / notebook).read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code[0].startswith("%pip install")
    assert not any(cell.get("outputs") for cell in cells)
    for node in ast.walk(ast.parse("\n".join(code[1:]))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module != "IPython.display":
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


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

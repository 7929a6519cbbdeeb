"""What an optional package is for, said in one sentence before any work where it is missing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
HEAD = str(TESTS / "artefacts" / "schema-1-gated")
TUNE = ["finetune", "digits", "--backbone", "toy:image", "--out", "out"]
CASES = {
    "onnx": {
        package: ["export", HEAD, "--format", "onnx", "--out", "out"]
        for package in ("onnx", "onnxruntime", "onnxscript")
    },
    "serve": {package: ["serve", HEAD, "--port", "0"] for package in ("fastapi", "uvicorn")},
    "finetune": {
        "peft": [*TUNE, "--lora", "2"],
        "schedulefree": [*TUNE, "--optimizer", "schedule-free"],
        "prodigyopt": [*TUNE, "--optimizer", "prodigy"],
    },
}
# An import system without a package, as where the extra is not installed.
HIDE = """
import sys
from tasks.cli import main

class Without:
    hidden = None
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != Without.hidden:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for package, command in {cases!r}.items():
    sys.modules.pop(package, None)
    Without.hidden = package
    assert main(command) == 2
"""


@pytest.mark.parametrize("extra", CASES)
def test_a_missing_package_is_named_with_its_extra_before_any_work(extra, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HIDE.replace("{cases!r}", repr(CASES[extra]))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(CASES[extra])  # one sentence each, and no progress before it
    for line, package in zip(lines, CASES[extra], strict=True):
        assert f"needs {package}: run pip install 'convex-heads[{extra}]'" in line
    assert not list(tmp_path.iterdir())


def test_the_packages_are_those_that_the_extra_installs():
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text("utf-8"))["project"]
    for extra, packages in CASES.items():
        declared = " ".join(project["optional-dependencies"][extra])
        assert all(package in declared for package in packages)

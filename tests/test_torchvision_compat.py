"""The cure for a torchvision whose compiled part does not fit torch, each time in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# torchvision's way of importing, reduced: the shared library fails quietly, then a kernel is
# registered for an operator that only that library declares.
BROKEN_TORCHVISION = """
import torch, importlib.machinery, os
path = os.path.join(os.path.dirname(__file__), "_C" + importlib.machinery.EXTENSION_SUFFIXES[-1])
try:
    torch.ops.load_library(path)
except OSError:
    pass

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)

@torch.library.register_fake("torchvision::qnms")
def meta_qnms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
"""
CURE = "from extractors.torchvision_compat import ensure_torchvision_imports as cure; print(cure())"


def python(script: str, *, first_on_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = [str(folder) for folder in (first_on_path, REPOSITORY) if folder]
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        timeout=600,
    )


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with a torchvision whose shared library cannot be loaded."""
    from importlib.machinery import EXTENSION_SUFFIXES

    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN_TORCHVISION)
    (package / f"_C{EXTENSION_SUFFIXES[-1]}").write_bytes(b"\x7fELF built against another torch")
    return tmp_path


def test_the_trap_is_real(broken: Path) -> None:
    done = python("import torchvision", first_on_path=broken)
    assert done.returncode != 0
    assert "operator torchvision::nms does not exist" in done.stderr


def test_the_cure_declares_the_operators(broken: Path) -> None:
    script = f"""
{CURE}
import gc; gc.collect()
import torch, torchvision
print(torch.ops.torchvision.nms.default._schema)
print(cure())
"""
    done = python(script, first_on_path=broken)
    assert done.stdout.splitlines() == [
        "declared",
        "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "declared",
    ], done.stderr


def test_calling_the_operator_still_fails_with_a_reason(broken: Path) -> None:
    script = f"""
{CURE}
import torch, torchvision
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError as error:
    print("torchvision::nms" in str(error))
"""
    assert python(script, first_on_path=broken).stdout.splitlines()[1:] == ["True"]


def test_a_second_cure_does_not_collide(broken: Path) -> None:
    script = f"""
import torch
mine = torch.library.Library("torchvision", "FRAGMENT")
mine.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
{CURE}
import torchvision
"""
    done = python(script, first_on_path=broken)
    assert done.returncode == 0, done.stderr


def test_here_torchvision_and_all_that_stands_on_it_can_be_imported() -> None:
    script = f"""
{CURE}
import torchvision, timm, transformers
from torchvision import transforms
print(transforms.CenterCrop(2))
"""
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] in {"compiled", "declared"}
    assert done.stdout.splitlines()[1] == "CenterCrop(size=(2, 2))"


def test_without_torchvision_or_after_it_nothing_is_done(tmp_path: Path) -> None:
    bare = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
    done = python(f"{bare}{CURE}\nimport sys; print('torch' in sys.modules)")
    assert done.stdout.splitlines() == ["absent", "False"], done.stderr
    (tmp_path / "torchvision.py").write_text("")
    done = python(f"import torchvision\n{CURE}", first_on_path=tmp_path)
    assert done.stdout.splitlines() == ["imported"], done.stderr

"""The task imagenet-1k from an image folder: float16 features, top-1 and top-5."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.cli import main

CLASSES = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/imagenet-1k/{train,val}/CLASS/*.png, a grey level for each of seven classes."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("root")
    for split, n in (("train", 12), ("val", 4)):
        for k in range(CLASSES):
            place = folder / "imagenet-1k" / split / f"n{k:08d}"
            place.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(35 * k + rng.normal(0, 12, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return folder


def command(verb: str, root: Path, cache: Path, *more: str) -> list[str]:
    where = ("--data-root", str(root), "--cache-dir", str(cache))
    return [verb, "imagenet-1k", "--backbone", "toy:image-16", *where, "--json", "--quiet", *more]


@pytest.mark.parametrize(("more", "dtype"), [((), "float16"), (("float32",), "float32")])
def test_features_are_halves_unless_told_otherwise(root, tmp_path, capsys, more, dtype):
    options = ("--store-dtype", *more) if more else ()
    assert main(command("extract", root, tmp_path, *options)) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["task"], record["store_dtype"]) == ("imagenet-1k", dtype)
    assert record["rows"] == 16 * CLASSES
    assert any("'val' is used as test" in note for note in record["notes"])


@pytest.mark.slow
def test_a_fit_tells_top_1_and_top_5(root, tmp_path, capsys):
    options = ("--n-gates", "1", "--beta", "0.1", "--penalty", "group", "--no-leak-check")
    options = (*options, "--out", str(tmp_path / "out"))
    assert main(command("fit", root, tmp_path, *options)) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n_classes"], record["n_test"]) == (CLASSES, 4 * CLASSES)
    assert 0.4 < record["test_accuracy"] <= record["test_top5_accuracy"] <= 1
    assert record["linear_probe_test_top5_accuracy"] >= record["linear_probe_test_accuracy"]
    assert "top-5 accuracy" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_without_the_folder_the_sentence_says_where_images_go(tmp_path, capsys):
    assert main(command("extract", tmp_path, tmp_path / "cache")) == 1
    said = capsys.readouterr().err
    assert "train/CLASS/*.jpg and val/CLASS/*.jpg" in said and said.count("\n") == 1

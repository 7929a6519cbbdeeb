"""The toy backbones: deterministic, fast, numpy only, and true to the extractor protocol."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from extractors.base import Extractor
from extractors.errors import BadRow
from extractors.load import load_extractor
from extractors.toy import ToyImage, ToyText


@pytest.mark.parametrize("name", ["toy:text", "toy:text-7", "toy:image", "toy:image-100"])
def test_toys_follow_the_protocol(name: str) -> None:
    toy = load_extractor(name)
    assert isinstance(toy, Extractor)
    items = ["a", "b b"] if toy.modality == "text" else [np.zeros((5, 9), np.uint8)] * 2
    prepared = [toy.prepare(item) for item in items]
    features = toy.encode(prepared)
    assert features.shape == (2, toy.dim)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    counts = toy.token_counts(prepared)
    assert (counts is None) == (toy.modality == "image")


@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=8), data=st.data())
def test_a_text_has_one_vector_to_the_last_bit(texts: list[str], data: st.DataObject) -> None:
    toy = ToyText(16)
    together = toy.encode(texts)
    order = data.draw(st.permutations(range(len(texts))))
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(toy.encode([texts[i] for i in order]), together[list(order)])
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(ToyText(16).encode([text])[0], vector)


def test_images_have_one_vector_whatever_their_company_and_container(tmp_path: Path) -> None:
    toy = ToyImage(16)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    together = toy.encode([toy.prepare(image) for image in pixels])
    for image, vector in zip(pixels, together, strict=True):
        np.testing.assert_array_equal(toy.encode([toy.prepare(image)])[0], vector)
    path = tmp_path / "a.png"
    Image.fromarray(pixels[0]).save(path)
    for same in (path, path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(toy.encode([toy.prepare(same)])[0], together[0])


def test_the_random_weights_are_the_same_in_every_process() -> None:
    script = """
import sys
from extractors import load_extractor
toy = load_extractor("toy:text-8")
print(toy.encode(["a fine film", "ein schöner Film"]).tobytes().hex())
print("torch" in sys.modules)
"""
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    here = ToyText(8).encode(["a fine film", "ein schöner Film"]).tobytes().hex()
    assert runs == {f"{here}\nFalse\n"}


def test_the_weights_never_change() -> None:
    """Stores are filed under "toy/1": other numbers need another adapter number."""
    text, image = ToyText(4), ToyImage(4)
    weights = text._projection[:8].tobytes() + image._kernels[0].tobytes()
    assert hashlib.sha256(weights).hexdigest()[:16] == "27ecefc56f6baed1"


def test_different_content_has_different_vectors() -> None:
    text = ToyText(32).encode(["a fine film", "a fine firm", "film fine a", ""])
    assert len(np.unique(text.round(4), axis=0)) == 4
    assert len({str(ToyText(d).fingerprint()) for d in (8, 16)}) == 2


def test_text_is_cut_at_the_length_that_is_counted() -> None:
    toy = ToyText(8)
    long = " ".join(["word"] * 200)
    assert toy.token_counts([long, "two words"]).tolist() == [200, 2]
    cut = " ".join(["word"] * toy.max_length)
    np.testing.assert_array_equal(toy.encode([long])[0], toy.encode([cut])[0])


@pytest.mark.parametrize("item", [7, None, float("nan"), b"bytes", ["a"]])
def test_what_is_no_text_is_refused_with_its_type(item: object) -> None:
    with pytest.raises(BadRow, match=type(item).__name__):
        ToyText().prepare(item)


def test_half_a_character_is_refused_as_every_real_backbone_does() -> None:
    with pytest.raises(BadRow, match="not valid Unicode"):
        ToyText().prepare("a \ud800")


def test_a_thousand_rows_take_less_than_two_seconds() -> None:
    text, image = ToyText(), ToyImage()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    began = time.process_time()
    text.encode(["a rather short review of a film"] * 500)
    image.encode([image.prepare(pixels)] * 500)
    assert time.process_time() - began < 2

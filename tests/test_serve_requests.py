"""What a request to the server may hold: images, and of how many pixels."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tasks.config_saved import ServeConfig
from tasks.serving.requests import Refused, parse_request

_HEAD: Any = SimpleNamespace(modality="image")


def test_images_are_read_from_the_request_alone(tmp_path):
    config = ServeConfig(artefact="x")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
    sent = base64.b64encode(buffer.getvalue()).decode()
    body = json.dumps({"inputs": [sent]}).encode()
    assert parse_request(body, _HEAD, config).items == [buffer.getvalue()]
    as_url = json.dumps({"inputs": [f"data:image/png;base64,{sent}"]}).encode()
    assert parse_request(as_url, _HEAD, config).items == [buffer.getvalue()]
    for path in ("/etc/passwd", "http://127.0.0.1/a.png", str(tmp_path)):
        with pytest.raises(Refused, match="base64") as caught:
            parse_request(json.dumps({"inputs": [path]}).encode(), _HEAD, config)
        assert caught.value.status == 422


@pytest.mark.parametrize("modality", ["text", "image", "features"])
def test_an_example_of_a_body_is_one_for_this_head(modality):
    example = {"text": '["a text"]', "image": '["base64 of an image', "features": "[[0.1, ...]]"}
    head: Any = SimpleNamespace(modality=modality)
    for body in (b"{", b'{"inputs": 1}'):
        with pytest.raises(Refused) as caught:
            parse_request(body, head, ServeConfig(artefact="x"))
        assert example[modality] in str(caught.value)


def test_texts_that_others_would_wait_for_are_refused():
    head: Any = SimpleNamespace(modality="text")
    config = ServeConfig(artefact="x")
    body = json.dumps({"inputs": ["a" * 1_000_000, "b" * 1_000_001]}).encode()
    with pytest.raises(Refused, match=r"the texts have 2,000,001 characters") as caught:
        parse_request(body, head, config)
    assert caught.value.status == 413


def _empty_png(side: int) -> bytes:
    """A PNG of so many pixels a side, all black, in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    packer = zlib.compressobj(9)
    lines = b"".join(packer.compress(bytes(1 + (side + 7) // 8)) for _ in range(side))
    header = chunk(b"IHDR", struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0))
    end = chunk(b"IDAT", lines + packer.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + end


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    def parse(content: bytes, most: float = 64.0) -> Sequence[Any]:
        body = json.dumps({"inputs": [base64.b64encode(content).decode()]}).encode()
        return parse_request(body, _HEAD, ServeConfig(artefact="x", max_megapixels=most)).items

    # Decoding would fill the memory: 100 and 400 million pixels; Pillow refuses the second itself.
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    for side in (10_000, 20_000):
        bomb = _empty_png(side)
        assert len(bomb) < 100_000
        with pytest.raises(Refused, match="input 0 is an image of more than 64 megapixels") as told:
            parse(bomb)
        assert told.value.status == 413
    few = _empty_png(1000)
    assert parse(few, most=1) == [few]
    with pytest.raises(Refused, match=r"more than 0\.5 megapixels"):
        parse(few, most=0.5)
    assert parse(b"no image") == [b"no image"]  # which is told where it is decoded

"""Raw images of every accepted kind become upright RGB, and everything else a plain reason."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from extractors.errors import BadRow, MachineError
from extractors.raw_image import open_rgb


def encoded(image: Image.Image, form: str = "PNG", exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"exif": exif} if exif else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert open_rgb(Image.new(mode, (3, 2))).mode == "RGB"
    assert open_rgb(Image.new(mode, (3, 2))).size == (3, 2)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    image = open_rgb(encoded(Image.fromarray(ramp)))
    np.testing.assert_array_equal(np.asarray(image)[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize(
    ("dtype", "mode", "top"), [("uint16", "I;16", 65535), ("int32", "I", 65535), ("f4", "F", 255)]
)
def test_the_mode_says_what_white_is_and_no_image_does(dtype: str, mode: str, top: int) -> None:
    for largest in (top, top // 2, 256 * top // 65535, 255 * top // 65535, 2):
        if mode == "F" and largest < 2:
            continue  # refused, see below
        ramp = np.array([[0, largest]], dtype=dtype)
        image = Image.fromarray(ramp)
        assert image.mode == mode
        expected = [0, round(largest * 255 / top)]
        assert np.asarray(open_rgb(image))[0, :, 1].tolist() == expected


@pytest.mark.parametrize("values", [[0.0, 255.5], [-1.0, 3.0], [np.nan, 3.0], [np.inf, 1.0]])
def test_grey_outside_its_range_is_a_bad_row(values: list[float]) -> None:
    with pytest.raises(BadRow, match="mode F must lie between 0 and 255"):
        open_rgb(Image.fromarray(np.array([values], np.float32)))
    with pytest.raises(BadRow, match="mode I must lie between 0 and 65535"):
        open_rgb(Image.fromarray(np.array([[0, 65536]], np.int32)))


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_gives_its_colours_and_no_warning() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    image = Image.fromarray(colours).quantize(16)
    image.info["transparency"] = bytes(range(0, 160, 10))
    expected = np.asarray(Image.fromarray(np.asarray(image)).convert("L"))  # indices
    palette = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(np.asarray(open_rgb(encoded(image))), palette[expected])


def test_floats_between_0_and_1_are_not_taken_for_black() -> None:
    with pytest.raises(BadRow, match="multiply them by 255"):
        open_rgb(Image.fromarray(np.linspace(0, 1, 12, dtype="f4").reshape(3, 4)))


def test_a_machine_that_fails_is_no_bad_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("L", (2, 2))))

    def fail(error: Exception) -> None:
        def read(self: Path) -> bytes:
            raise error

        monkeypatch.setattr(Path, "read_bytes", read)

    for number in (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE):
        fail(OSError(number, os.strerror(number)))
        with pytest.raises(MachineError, match=f"a.png: cannot be read: {os.strerror(number)}"):
            open_rgb(path)
    fail(MemoryError())
    with pytest.raises(MachineError, match="not enough memory"):
        open_rgb(path)
    for number in (errno.EACCES, errno.ENAMETOOLONG):
        fail(OSError(number, os.strerror(number)))
        with pytest.raises(BadRow, match=os.strerror(number)):
            open_rgb(path)


def test_arrays_files_and_images_agree(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(pixels)))
    for item in (pixels, path, path.read_bytes(), Image.open(path), memoryview(path.read_bytes())):
        np.testing.assert_array_equal(np.asarray(open_rgb(item)), pixels)
    grey = pixels[:, :, 0]
    np.testing.assert_array_equal(np.asarray(open_rgb(grey)), np.repeat(grey[:, :, None], 3, 2))


def test_exif_orientation_is_obeyed() -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise
    upright = np.asarray(open_rgb(encoded(Image.fromarray(pixels), exif=exif)))
    assert upright.shape == (6, 4, 3)
    assert upright[0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (b"", "does not decode"),
        (b"GIF89a", "does not decode"),
        (b"<html>not found</html>", "does not decode"),
        ("cat.jpg", "got str"),
        (None, "got NoneType"),
        (np.zeros((2, 2), np.float32), "float32"),
        (np.zeros((2, 2, 4), np.uint8), "(2, 2, 4)"),
        (np.zeros((0, 2), np.uint8), "(0, 2)"),
    ],
)
def test_what_is_no_image_has_a_reason(item: object, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        open_rgb(item)
    assert reason in str(caught.value)


def test_a_path_is_named_in_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    for path in (broken, tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(BadRow) as caught:
            open_rgb(path)
        assert str(path) in str(caught.value)


@given(cut=st.floats(0, 0.95), form=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "WEBP"]))
def test_a_truncated_file_is_a_bad_row_and_never_a_half_image(cut: float, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(pixels), form)
    with pytest.raises(BadRow):
        open_rgb(whole[: int(len(whole) * cut)])


@given(junk=st.binary(max_size=200))
def test_junk_is_a_bad_row(junk: bytes) -> None:
    with pytest.raises(BadRow):
        open_rgb(junk)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadRow, match="more than 0 million pixels"):
        open_rgb(encoded(Image.new("L", (64, 64))))

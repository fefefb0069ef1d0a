"""Pictures read, resized, normalised and sent."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.errors import CodecError, DataError, UnknownNameError
from convoy.split.manifest import Preprocessing
from convoy.split.pictures import fitted_pixels, normalised, picture_codec, read_picture

COLOUR = Preprocessing(height=6, width=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
GREY = Preprocessing(height=6, width=4, mean=(0.1,), std=(0.5,))


def smooth(count: int, by: Preprocessing) -> np.ndarray:
    """Pictures without sharp edges, which JPEG keeps well."""
    rows = np.linspace(0, 200, by.height)[:, None] + np.linspace(0, 50, by.width)
    one = np.repeat(rows[:, :, None], by.channels, 2)
    return np.stack([one * (n + 1) / count for n in range(count)]).astype(np.uint8)


@pytest.mark.parametrize("by", [COLOUR, GREY])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_bytes_come_back_as_they_were_and_jpegs_nearly(by: Preprocessing, count: int) -> None:
    sent = smooth(count, by)
    for name, tolerance in (("uint8", 0), ("jpeg", 12), ("mosaic", 40)):
        codec = picture_codec(name, by)
        back = codec.pixels(codec.encode(sent), count)
        assert back.shape == sent.shape
        assert np.abs(back.astype(int) - sent).max() <= tolerance, name
        assert np.abs(back.astype(int) - sent).mean() <= tolerance / 4, name


def test_a_mosaic_has_each_picture_in_its_place() -> None:
    by = Preprocessing(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    values = np.array([10, 60, 110, 160, 210, 250, 30], np.uint8)
    sent = np.broadcast_to(values[:, None, None, None], (7, 16, 16, 3)).copy()
    codec = picture_codec("mosaic", by)
    back = codec.pixels(codec.encode(sent), 7)
    assert np.abs(back.astype(int) - sent).max() <= 4


def test_a_mosaic_is_smaller_than_pictures_one_by_one() -> None:
    by = Preprocessing(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    sent = smooth(100, by)
    sizes = {name: len(picture_codec(name, by).encode(sent)) for name in ("jpeg", "mosaic")}
    assert sizes["mosaic"] < sizes["jpeg"] / 2


def test_normalised_is_what_training_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
    expected = (pixels.astype(np.float64) / 255 - COLOUR.mean) / COLOUR.std
    found = normalised(pixels, COLOUR)
    assert found.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("name", ["uint8", "jpeg", "mosaic"])
def test_payloads_that_are_not_what_was_said(name: str) -> None:
    codec = picture_codec(name, COLOUR)
    payload = codec.encode(smooth(4, COLOUR))
    for wrong in (b"", payload[:-9], payload + b"x" if name != "mosaic" else b"x", b"\xff" * 50):
        with pytest.raises(CodecError):
            codec.pixels(wrong, 4)
    with pytest.raises(CodecError):
        codec.pixels(payload, 9)


def test_a_jpeg_of_another_size_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(buffer, "JPEG")
    file = buffer.getvalue()
    payload = struct.pack("<I", len(file)) + file
    with pytest.raises(CodecError, match=r"a JPEG of 5000x5000 pixels; expected 4x6"):
        picture_codec("jpeg", COLOUR).pixels(payload, 1)


def test_pictures_are_read_in_the_wanted_size_and_colours(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 30), (200, 10, 10, 255)).save(tmp_path / "a.png")
    pixels = read_picture(tmp_path / "a.png", COLOUR)
    assert pixels.shape == (6, 4, 3)
    assert pixels[0, 0].tolist() == [200, 10, 10]
    assert read_picture((tmp_path / "a.png").read_bytes(), GREY).shape == (6, 4, 1)


def test_sixteen_bits_are_brought_down_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 4), 128 << 8, np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png", GREY)[0, 0, 0] == 128
    assert read_picture(tmp_path / "deep.png", COLOUR)[0, 0].tolist() == [128] * 3


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"a\.png is not a picture"):
        read_picture(tmp_path / "a.png", COLOUR)
    with pytest.raises(DataError, match="cannot be read as a picture"):
        read_picture(tmp_path / "none.png", COLOUR)
    Image.new("L", (20000, 1)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match="20000x1 pixels are too many"):
        read_picture(tmp_path / "wide.png", COLOUR)


def test_arrays_of_pixels() -> None:
    exact = np.zeros((6, 4, 3), np.uint8)
    assert fitted_pixels(exact, COLOUR) is exact
    assert fitted_pixels(np.zeros((60, 40), np.uint8), COLOUR).shape == (6, 4, 3)
    assert fitted_pixels(np.zeros((60, 40, 1), np.uint8), GREY).shape == (6, 4, 1)
    for wrong in (np.zeros((6, 4, 3)), np.zeros((6, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(DataError, match="expected"):
            fitted_pixels(wrong, COLOUR)


def test_a_codec_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="unknown codec of pictures 'webp'"):
        picture_codec("webp", COLOUR)

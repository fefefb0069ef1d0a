"""Pictures: read, resized, as a network takes them, and as they travel.

A picture is pixels uint8 [height, width, channels]; a batch of them has a dimension more.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from convoy.errors import CodecError, DataError, UnknownNameError
from convoy.split.codecs import FloatArray
from convoy.split.manifest import Preprocessing

Pixels = NDArray[np.uint8]
PICTURE_CODECS = ("float32", "uint8", "jpeg", "mosaic")
QUALITY = 90
"""Of JPEG. At 75 a network that was trained on clean pictures loses more than a point."""
LARGEST_SIDE = 16384
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
"""What is read; others have decoders that run programs, or that are hardly ever used."""


def read_picture(source: Path | bytes, wanted: Preprocessing, name: str = "") -> Pixels:
    """A picture file's pixels, in the size and colours that the network takes.

    The whole picture is stretched to that size, as training on `folder:` does.

    Raises:
        DataError: it is no picture, or a damaged or vast one.
    """
    name = name or (str(source) if isinstance(source, Path) else "the picture")
    try:
        file = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(file, formats=FORMATS) as opened:
            if max(opened.size) > LARGEST_SIDE:
                raise DataError(f"{name}: {opened.size[0]}x{opened.size[1]} pixels are too many")
            return fitted(opened, wanted)
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(f"{name} is not a picture; expected one of {known}") from None
    except DataError:
        raise
    except Exception as error:  # Pillow promises no list of them
        raise DataError(f"{name} cannot be read as a picture: {error}") from None


def fitted(image: Image.Image, wanted: Preprocessing) -> Pixels:
    """A picture's pixels in the size and colours that the network takes."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
    image = image.convert("L" if wanted.channels == 1 else "RGB")
    if image.size != (wanted.width, wanted.height):
        image = image.resize((wanted.width, wanted.height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(wanted.height, wanted.width, wanted.channels)


def fitted_pixels(picture: Any, wanted: Preprocessing, name: str = "the picture") -> Pixels:
    """An array [height, width] or [height, width, channels] of bytes, in the wanted size.

    Raises:
        DataError: it is no such array.
    """
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise DataError(
            f"{name} is {pixels.dtype} {list(pixels.shape)}; expected uint8 [height, width] or "
            "[height, width, channels]"
        )
    if pixels.shape == (wanted.height, wanted.width, wanted.channels):
        return pixels
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise DataError(f"{name} has {pixels.shape[2]} channels; expected 1, 3 or 4")
    return fitted(Image.fromarray(pixels), wanted)


def normalised(pixels: Pixels, by: Preprocessing) -> FloatArray:
    """float32 [n, channels, height, width] of pixels uint8 [n, height, width, channels]."""
    scale = np.float32(255) * np.asarray(by.std, np.float32)
    shift = np.float32(255) * np.asarray(by.mean, np.float32)
    values = (pixels.astype(np.float32) - shift) / scale
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


@dataclass(frozen=True, kw_only=True)
class PictureCodec:
    """Pictures as bytes, as a JPEG each, or all as one JPEG."""

    name: str
    preprocessing: Preprocessing

    def encode(self, batch: Pixels) -> bytes:
        """uint8 [n, height, width, channels]."""
        if self.name == "uint8":
            return batch.tobytes()
        if self.name == "jpeg":
            files = [_jpeg(picture) for picture in batch]
            return b"".join(struct.pack("<I", len(file)) + file for file in files)
        return _jpeg(_tiled(batch))

    def decode(self, payload: bytes, count: int) -> FloatArray:
        """float32 [count, channels, height, width], normalised. Raises CodecError."""
        return normalised(self.pixels(payload, count), self.preprocessing)

    def pixels(self, payload: bytes, count: int) -> Pixels:
        """uint8 [count, height, width, channels]. Raises CodecError."""
        by = self.preprocessing
        shape = (by.height, by.width, by.channels)
        if self.name == "uint8":
            if len(payload) != count * math.prod(shape):
                expected = count * math.prod(shape)
                raise CodecError(f"uint8: {len(payload)} bytes; expected {expected}")
            return np.frombuffer(payload, np.uint8).reshape(count, *shape)
        if self.name == "jpeg":
            return np.stack([_decoded(file, shape) for file in _files(payload, count)])
        columns, rows = _grid(count)
        whole = _decoded(payload, (rows * by.height, columns * by.width, by.channels))
        cells = whole.reshape(rows, by.height, columns, by.width, by.channels)
        return cells.transpose(0, 2, 1, 3, 4).reshape(rows * columns, *shape)[:count]


def picture_codec(name: str, preprocessing: Preprocessing) -> PictureCodec:
    """The codec of that name; `float32` is one of tensors, and not here.

    Raises:
        UnknownNameError: no codec of pictures is called so.
    """
    if name not in PICTURE_CODECS[1:]:
        raise UnknownNameError("codec of pictures", name, PICTURE_CODECS)
    return PictureCodec(name=name, preprocessing=preprocessing)


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    grey = pixels.shape[2] == 1
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _decoded(file: bytes, shape: tuple[int, int, int]) -> Pixels:
    """The pixels of a JPEG, whose header is looked at before room is made for them."""
    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as opened:
            if opened.size != (shape[1], shape[0]):
                raise CodecError(
                    f"a JPEG of {opened.size[0]}x{opened.size[1]} pixels; expected "
                    f"{shape[1]}x{shape[0]}"
                )
            pixels = np.asarray(opened.convert("L" if shape[2] == 1 else "RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise CodecError("not a JPEG, or a damaged one") from None
    return pixels.reshape(shape)


def _files(payload: bytes, count: int) -> list[bytes]:
    files: list[bytes] = []
    at = 0
    for _ in range(count):
        if len(payload) < at + 4:
            raise CodecError(f"jpeg: {len(files)} pictures; expected {count}")
        (length,) = struct.unpack_from("<I", payload, at)
        files.append(payload[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(payload):
        raise CodecError(f"jpeg: {len(payload)} bytes; expected {at}")
    return files


def _grid(count: int) -> tuple[int, int]:
    """Columns and rows of a mosaic of `count` pictures."""
    columns = math.ceil(math.sqrt(count))
    return columns, math.ceil(count / columns)


def _tiled(batch: Pixels) -> Pixels:
    count, height, width, channels = batch.shape
    columns, rows = _grid(count)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = batch
    grid = cells.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)

"""Pictures, arrays and tensors, however a file or a data set holds them, as float tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convoy.datasets.base import Shape, shape_text
from convoy.errors import DataError, UsageError

_MODES = {1: "L", 3: "RGB"}
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")


def check_picture_shape(shape: Shape) -> None:
    """Raise UsageError unless a picture can be converted and resized to `shape`."""
    if shape[0] not in _MODES or min(shape) < 1:
        raise UsageError(
            f"pictures cannot be read as {shape_text(shape)}: an image shape is CxHxW with one "
            "channel (grey) or three (RGB), such as 3x64x64"
        )


def picture_shape(picture: Image.Image) -> Shape:
    """What `picture` is by itself: one channel if it is grey or black and white, else three."""
    grey = picture.mode in _GREY_MODES or picture.mode.startswith("I;")
    return (1 if grey else 3, picture.height, picture.width)


def picture_tensor(picture: Image.Image, shape: Shape) -> Tensor:
    """`picture` converted and resized (bilinear, antialiased) to `shape`, float32 in 0..1.

    Raises ValueError for pixels of an unknown range, and whatever decoding raises.
    """
    channels, height, width = shape
    picture = _eight_bits(picture).convert(_MODES[channels])
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.array(picture, dtype=np.float32)
    pixels /= 255.0
    return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1).contiguous()


def item_shape(image: Any, where: str) -> Shape:
    """The shape of one image of a torch data set; see `item_tensor`."""
    if isinstance(image, Image.Image):
        return picture_shape(image)
    channels, height, width = item_tensor(image, None, where).shape
    return channels, height, width


def item_tensor(image: Any, shape: Shape | None, where: str) -> Tensor:
    """One image of a torch data set as float32 [C, H, W].

    Takes a PIL picture (converted and resized to `shape`), a numpy array [H, W]
    or [H, W, C], or a tensor [H, W] or [C, H, W]. Unsigned bytes are scaled to
    0..1; floats are taken as they are. Raises DataError, naming `where`, for
    anything else and for arrays and tensors that are not of `shape`.
    """
    if isinstance(image, Image.Image):
        try:
            return picture_tensor(image, shape or picture_shape(image))
        except Exception as error:  # decoders fail in every way there is
            raise DataError(
                f"{where}: cannot convert the picture: {type(error).__name__}: {error}"
            ) from error
    pixels = _channels_first(image, where)
    if pixels.ndim != 3 or (shape is not None and tuple(pixels.shape) != shape):
        wanted = shape_text(shape) if shape else "CxHxW"
        raise DataError(
            f"{where}: the image has shape {shape_text(tuple(pixels.shape))}, expected {wanted}; "
            "give every image one shape"
        )
    if pixels.dtype == torch.uint8:
        return pixels.to(torch.float32).div_(255.0)
    return pixels.to(torch.float32)


def _channels_first(image: Any, where: str) -> Tensor:
    """An array or tensor as a tensor on the CPU, channels first, of bytes or floats."""
    if isinstance(image, np.ndarray):
        right = image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)
        image = image[..., None] if image.ndim == 2 else image
        image = np.moveaxis(image, -1, 0) if image.ndim == 3 else image
        kind = np.uint8 if image.dtype == np.uint8 else np.float32
        pixels = torch.from_numpy(image.astype(kind)) if right else torch.empty(0)
    elif isinstance(image, Tensor):
        right = image.dtype == torch.uint8 or image.is_floating_point()
        pixels = (image[None] if image.ndim == 2 else image).detach().cpu()
    else:
        raise DataError(
            f"{where}: the image is of type {type(image).__name__}; expected a PIL picture, a "
            "numpy array [H, W, C] or a tensor [C, H, W]"
        )
    if not right:
        raise DataError(
            f"{where}: the image's numbers are {image.dtype}; expected uint8 in 0..255 or floats "
            "in 0..1"
        )
    return pixels


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey to 255 when it converts, which leaves white; scale it instead."""
    if picture.mode == "I" or picture.mode.startswith("I;"):
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("its pixels are 32-bit floats, whose range is unknown; save it as 8 bits")
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture

"""Images of a data set, as a network takes them and as the pixels that they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from convoy.datasets import DataSet, ImageData
from convoy.errors import DataError
from convoy.split.codecs import FloatArray
from convoy.split.manifest import Preprocessing
from convoy.split.pictures import Pixels

HALF_A_STEP = 0.5 / 255 + 1e-4
"""How far an image may be from the pixels that it is taken for, on a scale of 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some images and what they show."""

    images: FloatArray
    """float32 [n, channels, height, width]."""
    labels: NDArray[np.int64]


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` positions (or all, if there are fewer), evenly spread from the first."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def batches(data: ImageData, positions: Sequence[int], size: int) -> Iterator[Batch]:
    """The images at `positions`, `size` at a time."""
    for first in range(0, len(positions), size):
        at = torch.tensor(list(positions[first : first + size]))
        images, labels = data.batch(at)
        yield Batch(images=images.numpy(), labels=labels.numpy())


def preprocessing_of(data: DataSet) -> Preprocessing | None:
    """How pictures become images of this data set; None where its images are no pictures."""
    channels, height, width = data.test.image_shape
    if channels not in (1, 3):
        return None
    found = Preprocessing(height=height, width=width, mean=data.mean, std=data.std)
    images, _ = data.test.batch(torch.arange(min(16, len(data.test))))
    try:
        pixels_of(images.numpy(), found)
    except DataError:
        return None
    return found


def pixels_of(images: FloatArray, by: Preprocessing) -> Pixels:
    """uint8 [n, height, width, channels] of what a network takes: normalisation undone.

    Raises:
        DataError: they are not of 0 to 255 before normalisation, to within half of one.
    """
    column = (1, -1, 1, 1)
    std = np.asarray(by.std, np.float64).reshape(column)
    values = images * std + np.asarray(by.mean, np.float64).reshape(column)
    pixels = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    worst = float(np.abs(pixels / 255 - values).max(initial=0))
    if worst > HALF_A_STEP:
        raise DataError(
            f"images that are no pixels of 0 to 255: less mean and over std they lie {worst:.3g} "
            "from the nearest, on a scale of 0 to 1"
        )
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))

"""Images back to the pixels that they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convoy.datasets import open_dataset
from convoy.errors import DataError
from convoy.split.making.images import pixels_of, preprocessing_of, spread
from convoy.split.manifest import Preprocessing
from convoy.split.pictures import normalised


def test_pixels_come_back_exactly() -> None:
    data = open_dataset("synthetic:3x6x5:4:32")
    by = preprocessing_of(data)
    assert by == Preprocessing(height=6, width=5, mean=data.mean, std=data.std)
    images, _ = data.test.batch(torch.arange(8))
    pixels = pixels_of(images.numpy(), by)
    assert (pixels.transpose(0, 3, 1, 2) == data.test.pixels[:8].numpy()).all()  # type: ignore[attr-defined]
    assert normalised(pixels, by) == pytest.approx(images.numpy(), abs=1e-5)


def test_digits_of_sixteen_steps_are_near_enough() -> None:
    data = open_dataset("digits")
    by = preprocessing_of(data)
    assert by is not None
    images, _ = data.test.batch(torch.arange(20))
    worst = np.abs(normalised(pixels_of(images.numpy(), by), by) - images.numpy()).max()
    assert worst <= 0.51 / 255 / min(by.std)


def test_what_is_no_picture() -> None:
    by = Preprocessing(height=1, width=2, mean=(0.5,), std=(0.25,))
    with pytest.raises(DataError, match="no pixels of 0 to 255"):
        pixels_of(np.array([[[[9.0, 0.0]]]], np.float32), by)
    assert preprocessing_of(open_dataset("synthetic:2x4x4:3:16")) is None


def test_images_are_evenly_spread() -> None:
    assert list(spread(3, 10)) == [0, 3, 6]
    assert list(spread(20, 4)) == [0, 1, 2, 3]

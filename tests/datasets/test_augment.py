from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convoy.datasets.augment import draw, flip_crop


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _one_by_one(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    height, width = images.shape[2:]
    changed = []
    for image, (flip, dy, dx) in zip(images, draws.tolist(), strict=True):
        padded = F.pad(image, (padding,) * 4)
        crop = padded[:, dy : dy + height, dx : dx + width]
        changed.append(crop.flip(2) if flip else crop)
    return torch.stack(changed)


@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (33, 1, 28, 20), (5, 2, 1, 1)])
@pytest.mark.parametrize("padding", [4, 1, 0])
def test_flip_crop_is_what_a_loop_over_the_images_does(
    shape: tuple[int, ...], padding: int
) -> None:
    images = torch.randn(shape, generator=_generator())
    draws = draw(len(images), _generator(1), padding)
    before = images.clone()
    assert torch.equal(flip_crop(images, draws, padding), _one_by_one(images, draws, padding))
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_flip_crop_keeps_the_type(dtype: torch.dtype) -> None:
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).to(dtype)
    draws = torch.tensor([[1, 0, 8], [0, 4, 4]])
    changed = flip_crop(images, draws)
    assert changed.dtype == dtype
    assert torch.equal(changed, _one_by_one(images, draws, 4))
    assert torch.equal(changed[1], images[1])  # the middle of the padded image is the image


def test_slicing_the_batch_changes_no_sample() -> None:
    images = torch.randn(50, 3, 16, 16, generator=_generator())
    draws = draw(50, _generator(7))
    whole = flip_crop(images, draws)
    for cuts in ([50], [25, 25], [10, 1, 0, 39]):
        parts = zip(images.split(cuts), draws.split(cuts), strict=True)
        assert torch.equal(torch.cat([flip_crop(*part) for part in parts]), whole)


@pytest.mark.parametrize("count", [1, 7, 16, 99])
def test_the_first_rows_do_not_depend_on_how_many_follow(count: int) -> None:
    assert torch.equal(draw(count, _generator(3)), draw(100, _generator(3))[:count])


def test_draws_are_in_range_even_and_given_by_the_generator() -> None:
    draws = draw(20_000, _generator())
    assert draws.shape == (20_000, 3)
    assert draws.dtype == torch.int64
    for column, places in ((0, 2), (1, 9), (2, 9)):
        counts = draws[:, column].bincount(minlength=places)
        assert len(counts) == places
        assert counts.double().div(20_000 / places).sub(1).abs().max() < 0.1
    assert not torch.equal(draws, draw(20_000, _generator(1)))


def test_nothing_to_draw() -> None:
    draws = draw(0, _generator())
    assert flip_crop(torch.empty(0, 3, 4, 4), draws).shape == (0, 3, 4, 4)

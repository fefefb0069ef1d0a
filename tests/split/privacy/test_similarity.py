"""PSNR and SSIM, against closed forms and a slow reading of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from convoy.split.privacy.similarity import psnr, ssim


def images(count: int = 3, channels: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, side, side, generator=draw, dtype=torch.float64)


def test_a_picture_is_like_itself() -> None:
    one = images()
    assert ssim(one, one).tolist() == pytest.approx([1.0] * 3)
    assert psnr(one, one).tolist() == [math.inf] * 3


def test_an_even_error_has_the_psnr_of_its_square() -> None:
    one = images() / 2
    assert psnr(one, one + 0.1).tolist() == pytest.approx([20.0] * 3)


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.7), (0.0, 1.0), (0.5, 0.5)])
def test_pictures_of_one_grey_have_the_similarity_of_their_means(a: float, b: float) -> None:
    one, other = (torch.full((1, 1, 20, 20), value, dtype=torch.float64) for value in (a, b))
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(one, other).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("side", "window"), [(16, 11), (11, 11), (8, 7)])
def test_it_is_the_papers_mean_over_windows(side: int, window: int) -> None:
    one, other = images(1, 2, side, 1), images(1, 2, side, 2)
    at = np.arange(window) - (window - 1) / 2
    weights = np.outer(*(np.exp(-(at**2) / (2 * 1.5**2)),) * 2)
    weights /= weights.sum()
    values = []
    for x, y in zip(one[0].numpy(), other[0].numpy(), strict=True):
        for top in range(side - window + 1):
            for left in range(side - window + 1):
                part = np.s_[top : top + window, left : left + window]
                mx, my = (weights * x[part]).sum(), (weights * y[part]).sum()
                vx = (weights * (x[part] - mx) ** 2).sum()
                vy = (weights * (y[part] - my) ** 2).sum()
                both = (weights * (x[part] - mx) * (y[part] - my)).sum()
                top_ = (2 * mx * my + 1e-4) * (2 * both + 9e-4)
                values.append(top_ / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert ssim(one, other).item() == pytest.approx(np.mean(values), abs=1e-9)


def test_noise_has_little_in_common_with_noise() -> None:
    assert ssim(images(seed=1), images(seed=2)).abs().max() < 0.2

"""How alike two pictures are: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Decibels, float [n], of images [n, C, H, W] on a scale of 0 to 1; infinite where alike.

    10 log10(1 / mean squared error).
    """
    error = (one - other).square().flatten(1).mean(1)
    return -10 * torch.log10(error)


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity, float [n], of images [n, C, H, W] on a scale of 0 to 1.

    1 where they are alike, near 0 where they have nothing in common. Channels count alike; windows
    are those that lie within the image, smaller ones where it is smaller than a window.

    Source: Z. Wang, A. C. Bovik, H. R. Sheikh and E. P. Simoncelli, "Image quality assessment: from
    error visibility to structural similarity" (2004), equation 13 with a Gaussian window of
    11x11 and a standard deviation of 1.5.
    """
    channels = one.shape[1]
    sides = [min(WINDOW, side - (side + 1) % 2) for side in one.shape[2:]]
    window = torch.outer(*(_gaussian(side).to(one) for side in sides))
    kernel = window.expand(channels, 1, *sides)

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=channels)

    a, b = mean(one), mean(other)
    var_a, var_b = mean(one * one) - a * a, mean(other * other) - b * b
    both = mean(one * other) - a * b
    c1, c2 = K1**2, K2**2
    map_ = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (var_a + var_b + c2))
    return map_.flatten(1).mean(1)


def _gaussian(size: int) -> Tensor:
    """float64 [size], which adds up to 1."""
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    return weights / weights.sum()

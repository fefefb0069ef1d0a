"""Mean and standard deviation of each channel, by which images are normalised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE_SIZE = 1000
"""How many images, at most, the statistics of a set that is read lazily are estimated from."""

_IMAGES_PER_READ = 500
_IMAGES_PER_ESTIMATE_READ = 50


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """One value per channel, on a pixel scale of 0..1."""

    mean: tuple[float, ...]
    """Mean."""
    std: tuple[float, ...]
    """Population standard deviation; 1 for a channel that is constant, so that it can divide."""


def exact(pixels: Tensor, full_scale: int) -> ChannelStatistics:
    """The statistics of all of `pixels`, uint8 [N, C, H, W] in 0..full_scale.

    Counts how often each of the 256 values occurs and sums in integers: exact,
    and no copy of the set in floating point.
    """
    num_channels = pixels.shape[1]
    counts = torch.zeros(num_channels, 256, dtype=torch.int64)
    for part in torch.split(pixels, _IMAGES_PER_READ):
        for channel in range(num_channels):
            counts[channel] += torch.bincount(part[:, channel].reshape(-1), minlength=256)
    means, stds = [], []
    for row in counts.tolist():
        count = sum(row)
        total = sum(value * times for value, times in enumerate(row))
        squares = sum(value * value * times for value, times in enumerate(row))
        means.append(total / count / full_scale)
        stds.append(math.sqrt(count * squares - total * total) / count / full_scale or 1.0)
    return ChannelStatistics(mean=tuple(means), std=tuple(stds))


def estimate(read: Callable[[int], Tensor], count: int) -> ChannelStatistics:
    """The statistics of an evenly spaced sample of at most SAMPLE_SIZE of `count` images.

    `read` gives image i as float [C, H, W] in 0..1. Reading all of a large
    folder would cost minutes, and 1,000 images settle the mean of a channel to
    well under a hundredth.
    """
    size = min(count, SAMPLE_SIZE)
    chosen = [place * count // size for place in range(size)]
    pixels, total, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, size, _IMAGES_PER_ESTIMATE_READ):
        part = torch.stack([read(i) for i in chosen[start : start + _IMAGES_PER_ESTIMATE_READ]])
        part = part.to(torch.float64)
        total = total + part.sum(dim=(0, 2, 3))
        squares = squares + part.square().sum(dim=(0, 2, 3))
        pixels += part.numel() // part.shape[1]
    mean = total / pixels
    variance = (squares / pixels - mean.square()).clamp_min(0.0)
    # What is left of a constant channel after cancellation is rounding, not contrast.
    std = torch.where(variance > 1e-12, variance.sqrt(), torch.ones_like(variance))
    return ChannelStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def columns(statistics: ChannelStatistics, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and std times `scale`, float32 [C, 1, 1] each: they broadcast over a batch."""
    mean = torch.tensor(statistics.mean, dtype=torch.float64) * scale
    std = torch.tensor(statistics.std, dtype=torch.float64) * scale
    return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)

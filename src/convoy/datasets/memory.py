"""A split that lies in memory as bytes and becomes floats one batch at a time."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from convoy.datasets.base import DataSet, ImageData
from convoy.datasets.channels import ChannelStatistics, columns, exact


@final
class MemoryImages(ImageData):
    """`pixels`, uint8 [N, C, H, W] in 0..full_scale, and `targets`, int64 [N].

    A quarter of the memory of floats, and the time of a batch is that of
    copying it: no Python per image.
    """

    def __init__(
        self,
        pixels: Tensor,
        targets: Tensor,
        *,
        class_names: tuple[str, ...],
        statistics: ChannelStatistics,
        full_scale: int = 255,
    ) -> None:
        self.pixels, self.targets = pixels, targets
        self.class_names, self.num_classes = class_names, len(class_names)
        self.image_shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        # (x/s - mean)/std = (x - s*mean)/(s*std): the bytes need no pass to be scaled first.
        self._mean, self._std = columns(statistics, full_scale)

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See ImageData."""
        images = self.pixels.index_select(0, indices).to(torch.float32)
        images.sub_(self._mean).div_(self._std)
        return images, self.targets.index_select(0, indices)


def in_memory(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    class_names: tuple[str, ...],
    full_scale: int = 255,
) -> DataSet:
    """A DataSet of two (pixels, targets) pairs, normalised by all of the first."""
    statistics = exact(train[0], full_scale)
    splits = [
        MemoryImages(
            pixels,
            targets,
            class_names=class_names,
            statistics=statistics,
            full_scale=full_scale,
        )
        for pixels, targets in (train, test)
    ]
    return DataSet(
        name=name, train=splits[0], test=splits[1], mean=statistics.mean, std=statistics.std
    )

"""A split whose images are read, one by one, when a batch asks for them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import final

import torch
from torch import Tensor

from convoy.datasets.base import DataSet, ImageData, Shape
from convoy.datasets.channels import ChannelStatistics, columns, estimate

_MAX_THREADS = 4
_MIN_IMAGES_PER_THREAD = 4


class Reader(ABC):
    """Where a LazyImages gets its samples."""

    image_shape: Shape
    """C, H, W of what `read` gives."""
    threads: bool
    """Whether `read` may be called by several threads at a time."""

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def read(self, index: int) -> tuple[Tensor, int]:
        """Sample `index`: image, float32 [C, H, W] in 0..1, and label. Raises DataError."""


@final
class LazyImages(ImageData):
    """The samples of `reader`, normalised."""

    def __init__(
        self, reader: Reader, *, class_names: tuple[str, ...], statistics: ChannelStatistics
    ) -> None:
        self._reader = reader
        self.image_shape = reader.image_shape
        self.class_names, self.num_classes = class_names, len(class_names)
        self._mean, self._std = columns(statistics)

    def __len__(self) -> int:
        return len(self._reader)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See ImageData."""
        samples = self._read_all(indices.tolist())
        if not samples:
            return torch.empty(0, *self.image_shape), torch.empty(0, dtype=torch.int64)
        images = torch.stack([image for image, _ in samples])
        images.sub_(self._mean).div_(self._std)
        return images, torch.tensor([label for _, label in samples], dtype=torch.int64)

    def _read_all(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        count = min(_MAX_THREADS, _usable_cpus(), len(indices) // _MIN_IMAGES_PER_THREAD)
        if not self._reader.threads or count < 2:
            return [self._reader.read(index) for index in indices]
        # One pool per batch: starting it costs a fraction of decoding one image, and a
        # pool that outlived the batch could be neither pickled nor forked.
        with ThreadPoolExecutor(count, thread_name_prefix="convoy-decode") as pool:
            return list(pool.map(self._reader.read, indices))


def read_lazily(name: str, train: Reader, test: Reader, *, class_names: tuple[str, ...]) -> DataSet:
    """A DataSet of two readers, normalised by a sample of the first (channels.estimate)."""
    statistics = estimate(lambda index: train.read(index)[0], len(train))
    splits = [
        LazyImages(reader, class_names=class_names, statistics=statistics)
        for reader in (train, test)
    ]
    return DataSet(
        name=name, train=splits[0], test=splits[1], mean=statistics.mean, std=statistics.std
    )


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

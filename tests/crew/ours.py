"""Data sets and networks as a user may bring them: slow, poisoned or broken ones.

Imported by the tests, and by name in the processes that train. Until a file called `hurry` is
there, a slow data set takes its time, so that something can happen in the middle of a run.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from convoy.datasets import DataSet, ImageData, open_dataset
from convoy.runtime.sampler import GlobalOrder

PAUSE_S = 0.05
POISONED_STEP, POISONED_POSITION = 7, 40
"""Of a batch of 64 in two halves, position 40 is the second rank's."""


class Paced(ImageData):
    """`inner`, `PAUSE_S` per batch slower until `hurry` is there.

    A process leaves its id in `pids`, under the size of the first batches that it takes: ranks
    with unequal shares can be told apart by it.
    """

    def __init__(self, inner: ImageData, hurry: Path, pids: Path | None = None) -> None:
        self.inner, self.hurry, self.pids = inner, hurry, pids
        self.image_shape, self.num_classes = inner.image_shape, inner.num_classes
        self.class_names = inner.class_names

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See ImageData."""
        if self.pids is not None and len(indices) > 2:
            place = self.pids / str(len(indices))
            if not place.exists():
                place.write_text(str(os.getpid()))
        if not self.hurry.exists():
            time.sleep(PAUSE_S)
        return self.inner.batch(indices)


class Poisoned(ImageData):
    """`inner`, but what the sample at `index` holds is not a number."""

    def __init__(self, inner: ImageData, index: int) -> None:
        self.inner, self.index = inner, index
        self.image_shape, self.num_classes = inner.image_shape, inner.num_classes
        self.class_names = inner.class_names

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See ImageData."""
        images, labels = self.inner.batch(indices)
        images[indices == self.index] = torch.nan
        return images, labels


def paced(hurry: Path, pids: Path | None = None) -> DataSet:
    """The digits, slowly; see `Paced`."""
    digits = open_dataset("digits")
    return replace(digits, train=Paced(digits.train, hurry, pids))


def slow() -> DataSet:
    """The digits, slowly where the environment variable HURRY names a file."""
    hurry = os.environ.get("HURRY")
    return paced(Path(hurry)) if hurry else open_dataset("digits")


def poisoned() -> DataSet:
    """The digits; the loss is not a number in `POISONED_STEP` of batches of 64."""
    digits = open_dataset("digits")
    order = GlobalOrder(num_samples=len(digits.train), batch_size=64, seed=0)
    index = int(order.slice(POISONED_STEP, [1], 0).indices[POISONED_POSITION])
    return replace(digits, train=Poisoned(digits.train, index))


def normed() -> nn.Module:
    """A small network with batch normalisation, for the digits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 10),
    )

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
import torch.distributed as dist
from torch import Tensor, nn

from convoy.datasets import DataSet, ImageData, open_dataset
from convoy.runtime.sampler import GlobalOrder

PAUSE_S, CRAWL_S = 0.05, 0.5
DRAG_S = 0.002
"""Per sample."""
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
        self.sign(len(indices))
        return self.paced(indices, PAUSE_S)

    def sign(self, samples: int) -> None:
        """Leave this process's id, if nobody else had as many samples."""
        if self.pids is not None and samples > 2:
            place = self.pids / str(samples)
            if not place.exists():
                place.write_text(str(os.getpid()))

    def paced(self, indices: Tensor, pause_s: float) -> tuple[Tensor, Tensor]:
        """The batch, so much later."""
        if not self.hurry.exists():
            time.sleep(pause_s)
        return self.inner.batch(indices)


class Dragging(Paced):
    """As `Paced`, but slower by the sample, and much slower where rank 1 was at first.

    That begins after a few steps, and ends with `hurry`.
    """

    drags: bool | None = None
    """Whether this process is the one; a process that comes later is not."""
    batches = 0

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See ImageData."""
        if self.drags is None and dist.is_initialized():
            self.drags = dist.get_rank() == 1 and not (self.hurry.parent / "drags").exists()
            if self.drags:
                (self.hurry.parent / "drags").touch()
        self.sign(len(indices))
        self.batches += 1
        slower = 3 if self.drags and self.batches > 8 else 1
        return self.paced(indices, len(indices) * DRAG_S * slower)


class Crawling(Paced):
    """As `Paced`, and ten times slower after so many batches: who is late finds it running."""

    after = 24
    batches = 0

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See ImageData."""
        self.batches += 1
        return self.paced(indices, CRAWL_S if self.batches > self.after else PAUSE_S)


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


def dragging(hurry: Path, pids: Path) -> DataSet:
    """The digits, slowly, and slowest on one rank; see `Dragging`."""
    digits = open_dataset("digits")
    return replace(digits, train=Dragging(digits.train, hurry, pids))


def crawling(hurry: Path) -> DataSet:
    """The digits, slowly, then more so; see `Crawling`."""
    digits = open_dataset("digits")
    return replace(digits, train=Crawling(digits.train, hurry))


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


class TwoLayers(nn.Module):
    """For the digits; a pipeline can cut it once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of images [N, 1, 8, 8]."""
        maps: Tensor = self.second(self.first(x.flatten(1)))
        return maps


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

"""Networks for 1x6x6 images of 3 classes: a step takes a millisecond.

Imported by the tests and, by name, by the processes that train. `on_pass` lets such a process
stop in the middle of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

DATA = "synthetic:1x6x6:3:18"
"""With batches of 8 an epoch has steps of 8, 8 and 2 samples."""

on_pass: Callable[[str], None] | None = None
"""Called with "forward" or "backward" when a pass comes through a `Tripwire` in training."""


def plain() -> nn.Module:
    """Convolution, pooling, two dense layers: 4 * 9 + 4 + 36 * 5 + 5 + 5 * 3 + 3 = 243."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        Tripwire(),
        nn.Linear(36, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


def three_dense() -> nn.Module:
    """Dense layers of which `hybrid` splits two among three ranks and one among two."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, 12),
        nn.Tanh(),
        nn.Linear(12, 10),
        nn.Tanh(),
        nn.Linear(10, 3),
    )


def normalised() -> nn.Module:
    """Batch normalisation after convolutions and between dense layers, with a cumulative one.

    No bias stands before any: its gradient would be rounding errors, which Adam blows up.
    """
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Tripwire(),
        nn.Conv2d(4, 3, 3, bias=False),
        nn.BatchNorm2d(3, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 6, bias=False),
        nn.BatchNorm1d(6, affine=False),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


def image_normalised() -> nn.Module:
    """Batch normalisation over images alone, which even a single sample has a variance in.

    36 + 8 + 108 + 6 + 39 = 197 parameters; running means and variances are 14.
    """
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Tripwire(),
        nn.Conv2d(4, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def dense() -> nn.Module:
    """Nothing but dense layers, the first of them for every row of an image."""
    rows = (nn.Flatten(1, 2), Tripwire(), nn.Linear(6, 4), nn.Tanh())
    return nn.Sequential(*rows, nn.Flatten(), nn.Linear(24, 3))


class twice_named(nn.Module):  # noqa: N801 - a network's name, as the functions are
    """A dense layer and a convolution that the network's state has under two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classify = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)
        self.all = nn.Sequential(self.conv, nn.ReLU(), nn.Flatten(), self.classify)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.all(x)
        return logits


def wide() -> nn.Module:
    """4 MB in double precision: more than goes into one of DistributedDataParallel's buckets."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 500),
        nn.Tanh(),
        nn.Linear(500, 500),
        nn.Tanh(),
        nn.Linear(500, 3),
    )


def part_frozen() -> nn.Module:
    """A convolution that is not trained, and a dense layer that is."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    network[0].requires_grad_(False)
    return network


def overwriting() -> nn.Module:
    """Layers that overwrite what they are given, where it would be cut."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3)
    )


def tied() -> nn.Module:
    """Two layers of one weight; a dense layer before and one after."""
    network = nn.Sequential(
        *(nn.Flatten(), nn.Linear(36, 8), nn.Tanh()),
        *(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)),
    )
    network[5].weight = network[3].weight
    return network


class severed(nn.Module):  # noqa: N801 - a network's name, as the functions are
    """No gradient comes back to its first convolution, trainable as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.classify = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(self.stem(x).detach()))
        logits: Tensor = self.classify(x.mean((2, 3)))
        return logits


class branched(nn.Module):  # noqa: N801 - a network's name, as the functions are
    """Two branches, one of grouped convolutions; a filter used twice; a layer never used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.pointwise = nn.Conv2d(4, 2, 1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.classify = nn.Linear(6, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([self.grouped(x), self.pointwise(x)], dim=1)
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        logits: Tensor = self.classify(x.mean((2, 3)))
        return logits


class Tripwire(nn.Module):
    """Passes its input on, and tells `on_pass`."""

    def forward(self, x: Tensor) -> Tensor:
        return _Trip.apply(x) if self.training else x


class _Trip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        if on_pass is not None:
            on_pass("forward")
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        if on_pass is not None:
            on_pass("backward")
        return grads[0]

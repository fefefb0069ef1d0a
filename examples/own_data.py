"""Data of your own: a pair of torch data sets, for training and for testing.

    .venv/bin/python examples/own_data.py

Any map-style data set will do whose items are (image, label); an image is a tensor, an array or a
PIL picture, and Convoy normalises it. Here the images show a bar, upright or lying, in noise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

import convoy


class Bars(Dataset[tuple[Tensor, int]]):
    """Images of 1x16x16 with an upright (class 0) or a lying bar (class 1)."""

    classes = ("upright", "lying")

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(2, (count,), generator=generator)
        self.images = torch.rand(count, 1, 16, 16, generator=generator)
        places = torch.randint(1, 14, (count,), generator=generator)
        for image, label, place in zip(self.images, self.labels, places, strict=True):
            bar = image[:, :, place : place + 2] if label == 0 else image[:, place : place + 2]
            bar += 0.5

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def main() -> None:
    """Train on 2,000 images, two ranks, the first with two thirds of each batch."""
    result = convoy.train(
        network="chavan:5-8-32-2",
        dataset=(Bars(2000, seed=1), Bars(500, seed=2)),
        workers=2,
        shares=(2, 1),
        epochs=5,
        lr=0.05,
    )
    assert result is not None, "only ranks that torchrun starts return nothing"
    for machine in result.machines:
        print(f"{machine['name']}: {machine['samples']} samples of each batch")
    print(f"{result.test_accuracy:.1%} right")


if __name__ == "__main__":
    main()

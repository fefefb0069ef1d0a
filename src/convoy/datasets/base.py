"""What a data set is to the rest of Convoy: two splits that answer `batch(indices)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.errors import DataError, UsageError

Shape = tuple[int, int, int]
"""Channels, height, width."""

_LABELS_PER_READ = 1024


class ImageData(ABC):
    """One split, for training or for testing.

    Implementations pickle, because they are shipped to worker processes, and
    hold no open files, threads or random state.
    """

    image_shape: Shape
    """C, H, W of every image."""
    num_classes: int
    """Labels lie in 0..num_classes-1."""
    class_names: tuple[str, ...]
    """The name of each label, in the labels' order."""

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at `indices` (int64 [n], any order, repeats allowed).

        Returns images, float32 [n, C, H, W], on a pixel scale of 0..1 less the
        training split's channel mean over its standard deviation, and labels,
        int64 [n]. Raises DataError where a sample cannot be read.
        """

    def labels(self) -> Tensor:
        """Every label, int64 [len(self)]. Reads the images too: seconds for a large folder."""
        order = torch.arange(len(self))
        return torch.cat([self.batch(part)[1] for part in torch.split(order, _LABELS_PER_READ)])


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Two splits and how both were normalised. Raises UsageError where they do not fit."""

    name: str
    """As it was asked for: "digits", "folder:pets", ..."""
    train: ImageData
    """What is learnt from."""
    test: ImageData
    """What is held back."""
    mean: tuple[float, ...]
    """The training split's mean per channel, on a pixel scale of 0..1."""
    std: tuple[float, ...]
    """Its standard deviation per channel, on the same scale."""

    def __post_init__(self) -> None:
        train, test = self.train, self.test
        for what, one, other in (
            ("image shape", train.image_shape, test.image_shape),
            ("number of classes", train.num_classes, test.num_classes),
        ):
            if one != other:
                raise UsageError(
                    f"data set {self.name!r}: the {what} is {one} in training and {other} in "
                    "testing; both splits must be of one kind"
                )
        channels = train.image_shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise UsageError(
                f"data set {self.name!r}: mean and std have {len(self.mean)} and "
                f"{len(self.std)} values for images of {channels} channel(s); give one of each "
                "per channel"
            )


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise DataError, naming `where` and the index, unless all labels are in range.

    `labels` is of any integer type, [n].
    """
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"{where}: the label at index {index} is {int(labels[index])}, outside "
            f"0..{num_classes - 1}; the file is damaged or of another data set"
        )


def number_names(count: int) -> tuple[str, ...]:
    """Class names for classes that have none: "0", "1", ..."""
    return tuple(str(label) for label in range(count))


def shape_text(shape: tuple[int, ...]) -> str:
    """1x28x28, as specifications and messages write a shape."""
    return "x".join(str(size) for size in shape)

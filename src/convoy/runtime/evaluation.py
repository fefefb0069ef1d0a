"""Judging a network on test samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.datasets import DataSet
from convoy.runtime.layout import laid_out

EVALUATION_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What an evaluation adds up."""

    samples: int
    correct: int
    loss_sum: float
    confusion: Tensor
    """int64 [classes, classes]: true class by predicted class."""

    @property
    def reported(self) -> dict[str, float]:
        """What others add up in their turn."""
        return {"correct": self.correct, "loss_sum": self.loss_sum, "samples": self.samples}


@contextlib.contextmanager
def judging(model: nn.Module) -> Iterator[None]:
    """Within it `model` is in evaluation mode; afterwards each module is in the one it was in.

    They may differ: fine-tuning often keeps batch normalisations in evaluation mode.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate(
    model: nn.Module,
    data: DataSet,
    positions: range,
    *,
    device: torch.device,
    dtype: torch.dtype,
    layout: str = "contiguous",
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Sums:
    """Judge `model` on the test samples at `positions`."""
    correct, loss_sum = 0, 0.0
    classes = data.test.num_classes
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    with judging(model), torch.inference_mode():
        for first in range(positions.start, positions.stop, EVALUATION_BATCH):
            indices = torch.arange(first, min(first + EVALUATION_BATCH, positions.stop))
            images, labels = data.test.batch(indices)
            inputs = laid_out(images.to(device, dtype), layout)
            labels = labels.to(device)
            with autocast():
                logits = model(inputs).to(dtype)
            loss_sum += float(F.cross_entropy(logits, labels, reduction="sum"))
            predicted = logits.argmax(1)
            correct += int((predicted == labels).sum())
            confusion += torch.bincount(
                (labels * classes + predicted).cpu(), minlength=classes * classes
            )
    return Sums(
        samples=len(positions),
        correct=correct,
        loss_sum=loss_sum,
        confusion=confusion.view(classes, classes),
    )

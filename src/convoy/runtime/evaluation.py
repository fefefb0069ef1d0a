"""Judging a network on test samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
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
    was_training = model.training
    model.eval()
    correct, loss_sum = 0, 0.0
    classes = data.test.num_classes
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    with torch.inference_mode():
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
    model.train(was_training)
    return Sums(
        samples=len(positions),
        correct=correct,
        loss_sum=loss_sum,
        confusion=confusion.view(classes, classes),
    )

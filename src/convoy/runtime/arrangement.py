"""How a rank's network lies in memory, and by which algorithms it is convolved there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from convoy.runtime.conv_choice import ConvChoice
from convoy.runtime.layout import fastest_layout, set_layout
from convoy.runtime.settings import TrainSettings


class Arrangement:
    """Of one network, which is changed in place."""

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        *,
        samples: Callable[[int], tuple[Tensor, Tensor]],
        autocast: Callable[[], AbstractContextManager[Any]],
        num_threads: int,
    ) -> None:
        """Find the fastest algorithms, if that was asked for.

        Args:
            model: on its device.
            settings: of the run.
            samples: so many images and labels on the device, or as many as there are.
            autocast: within it the network computes in the precision that was asked for.
            num_threads: of this rank.

        Raises:
            UsageError: an algorithm of ours on a GPU.
        """
        self._model, self._asked = model, settings.memory_format
        self._samples, self._autocast = samples, autocast
        self._convolutions = ConvChoice(
            model,
            settings.conv_algorithm,
            is_mixed=settings.precision == "bf16",
            layout=settings.memory_format,
            images=-(-settings.batch_size // (settings.workers or 1)),
            samples=lambda count: samples(count)[0],
            loss=self._loss,
            num_threads=num_threads,
        )

    def choose_layout(self, count: int, agree: Callable[[list[float]], list[float]] = list) -> str:
        """The memory format that was asked for, or the faster one for `count` samples.

        Args:
            count: of samples.
            agree: what all those say of a list of times who are to take the same.
        """
        if self._asked != "auto":
            return self._asked
        inputs, targets = self._samples(count)
        return fastest_layout(
            self._model,
            inputs,
            targets,
            lay_out=self.lay_out,
            autocast=self._autocast,
            agree=agree,
        )

    def lay_out(self, layout: str) -> None:
        """Set the network's memory layout, and the algorithms that go with it."""
        set_layout(self._model, layout)
        self._convolutions.apply(layout)

    def algorithms(self, layout: str) -> dict[str, str]:
        """By layer, those that are not torch's own in this layout."""
        return self._convolutions.used(layout)

    def proposed(self, layout: str) -> dict[str, str]:
        """Those that were fastest for layers by themselves, whether or not they are used."""
        return dict(self._convolutions.proposed[layout])

    def _loss(self, inputs: Tensor) -> Tensor:
        targets = self._samples(len(inputs))[1]
        with self._autocast():
            return F.cross_entropy(self._model(inputs), targets)

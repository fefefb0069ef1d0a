"""Which algorithms a rank's convolutions are computed by: what was asked for, or the fastest.

`auto` is timed twice: every layer by itself (`kernels.tuner`, kept), and then forward and backward
passes of the whole network as torch does it and with what was chosen, in turns, of which the faster
is taken: what is fastest alone may not be among others, whose caches and memory it shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from torch import Tensor, nn

from convoy.errors import UsageError
from convoy.kernels.compiled import cpu
from convoy.kernels.layers import convolutions, geometries, use_algorithm
from convoy.kernels.passes import AUTO, TORCH
from convoy.kernels.timing import in_turns
from convoy.kernels.tuner import CANDIDATES, MARGIN, Kept, tuned
from convoy.runtime.device_facts import processor_name

ENOUGH_S = 0.5


class ConvChoice:
    """The algorithms of one rank's network, by memory layout."""

    def __init__(
        self,
        model: nn.Module,
        asked: str,
        *,
        is_mixed: bool,
        layout: str,
        inputs: Callable[[], Tensor],
        loss: Callable[[], Tensor],
        num_threads: int,
    ) -> None:
        """Find what is fastest, if that was asked for.

        Args:
            model: on its device.
            asked: as --conv-algorithm says.
            is_mixed: whether the network computes in bfloat16, which ours do not.
            layout: as --memory-format says.
            inputs: images as a step has them.
            loss: of `model` for them.
            num_threads: of this rank.

        Raises:
            UsageError: an algorithm of ours on a GPU.
        """
        self.asked, self._model = asked, model
        self.chosen: Mapping[str, str] = {}
        """By layer, where it is not torch's own."""
        if asked == TORCH or not convolutions(model):
            return
        parameter = next(model.parameters())
        if parameter.device.type != "cpu":
            if asked != AUTO:
                raise UsageError(
                    f"--conv-algorithm {asked} runs on a CPU, and this rank is on "
                    f"{parameter.device}: expected torch or auto"
                )
            return
        if parameter.dtype not in (torch.float32, torch.float64):
            return
        dtype = np.dtype(str(parameter.dtype).removeprefix("torch."))
        if asked != AUTO:
            cpu().compile_all(dtype, [asked])  # no step is to wait for that
            self.chosen = dict.fromkeys(convolutions(model), asked)
        elif not is_mixed and layout != "channels-last":
            cpu().compile_all(dtype, CANDIDATES[1:])
            self.chosen = self._fastest(inputs(), loss, num_threads, parameter.dtype)
            cpu().forget()

    def used(self, layout: str) -> dict[str, str]:
        """By layer, what is not torch's own in this layout."""
        return dict(self.chosen) if layout == "contiguous" or self.asked != AUTO else {}

    def apply(self, layout: str) -> None:
        """Have the model use them, once it has this layout.

        What was timed is the contiguous layout; in the other torch's own algorithms are at home.
        """
        if self.chosen:
            use_algorithm(self._model, TORCH)
            use_algorithm(self._model, self.used(layout))

    def _fastest(
        self, inputs: Tensor, loss: Callable[[], Tensor], num_threads: int, dtype: torch.dtype
    ) -> dict[str, str]:
        kept = Kept(Path(pooch.os_cache("convoy")) / "convolutions.json", processor_name())
        found = tuned(geometries(self._model, inputs), num_threads, dtype, kept)
        chosen = {name: str(of) for name, of in found.items() if set(of) != {TORCH}}
        if not chosen:
            return {}

        def passes(algorithms: str | Mapping[str, str]) -> Callable[[], Any]:
            def work() -> None:
                use_algorithm(self._model, TORCH)
                use_algorithm(self._model, algorithms)
                loss().backward()
                self._model.zero_grad(set_to_none=True)

            return work

        kept_buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            seconds = in_turns({TORCH: passes(TORCH), AUTO: passes(chosen)}, ENOUGH_S)
        use_algorithm(self._model, TORCH)
        with torch.no_grad():
            for name, buffer in self._model.named_buffers():
                buffer.copy_(kept_buffers[name])
        return chosen if seconds[AUTO] * MARGIN < seconds[TORCH] else {}

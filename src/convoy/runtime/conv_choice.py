"""Which algorithms a rank's convolutions are computed by: what was asked for, or the fastest.

`auto` is timed twice, in each memory layout that the network may have: every layer by itself
(`kernels.tuner`), and then forward and backward passes of the whole network as torch does it and
with what was chosen, in turns, of which the faster is taken: what is fastest alone may not be among
others, whose caches and memory it shares. Both are kept, so that a network whose run is resumed, or
was measured before, is computed in the same way.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convoy.errors import UsageError
from convoy.kernels.compiled import cpu
from convoy.kernels.geometry import Geometry
from convoy.kernels.layers import (
    convolutions,
    first_layers,
    geometries,
    rng_restored,
    use_algorithm,
)
from convoy.kernels.passes import ALGORITHMS, AUTO, TORCH
from convoy.kernels.timing import turns_of
from convoy.kernels.tuner import MOST_IMAGES, OURS, Kept, Where, hardware_of, kept_here, tuned
from convoy.runtime.layout import FORMATS, laid_out, set_layout, synchronise

BUDGET_S = 40.0
"""For layers by themselves, in all layouts: others wait for this rank."""
ENOUGH_S, MOST_S = 0.5, 8.0
"""Of turns of the network as a whole, as `turns_of` has them."""
MARGIN, MOST_TURNS = 1.01, 0.75
"""What was chosen is taken if torch's took so many times as long in the median pair of turns, and
longer in such a share of them."""
MOST_FLOPS = 1e10
"""Of the convolutions in a forward pass of it, if that leaves an image for each thread."""


class ConvChoice:
    """The algorithms of one rank's network, by memory layout."""

    def __init__(
        self,
        model: nn.Module,
        asked: str,
        *,
        is_mixed: bool,
        layout: str,
        images: int,
        samples: Callable[[int], Tensor],
        loss: Callable[[Tensor], Tensor],
        num_threads: int,
    ) -> None:
        """Find what is fastest, if that was asked for.

        Args:
            model: on its device; in the end in torch's contiguous layout.
            asked: as --conv-algorithm says.
            is_mixed: whether the network computes in bfloat16, which ours do not.
            layout: as --memory-format says.
            images: of a step, on this rank.
            samples: so many images as a step has them.
            loss: of `model` for them.
            num_threads: of this rank.

        Raises:
            UsageError: an algorithm of ours on a GPU.
        """
        self._model = model
        self.chosen: dict[str, Mapping[str, str]] = {name: {} for name in FORMATS}
        """By layout and layer, where it is not torch's own."""
        self.proposed: dict[str, Mapping[str, str]] = {name: {} for name in FORMATS}
        """What was fastest for layers by themselves, whether or not the network then was faster."""
        if asked == TORCH or not convolutions(model):
            return
        parameter = next(model.parameters())
        device, dtype = parameter.device, parameter.dtype
        if device.type != "cpu" and asked in ALGORITHMS:
            raise UsageError(
                f"--conv-algorithm {asked} runs on a CPU, and this rank is on {device}: "
                "expected torch or auto"
            )
        if dtype not in (torch.float32, torch.float64) or (asked == AUTO and is_mixed):
            return
        ours = OURS if asked == AUTO else [name for name in (asked,) if name in ALGORITHMS]
        if ours and device.type == "cpu":  # no step is to wait for that
            cpu().compile_all(np.dtype(str(dtype).removeprefix("torch.")), ours)
        if asked != AUTO:
            self.chosen = {name: dict.fromkeys(convolutions(model), asked) for name in FORMATS}
            return
        self._samples, self._loss = samples, loss
        kept = kept_here()
        shapes = geometries(model, samples(min(images, MOST_IMAGES)))
        first = first_layers(model, samples(1))
        layouts = [name for name in FORMATS if layout in ("auto", name)]
        for name in layouts:
            where = Where(
                hardware=hardware_of(device),
                num_threads=num_threads,
                dtype=dtype,
                last=name == "channels-last",
                device=str(device),
            )
            found = tuned(shapes, where, kept, first=first, budget_s=BUDGET_S / len(layouts))
            chosen = {layer: str(of) for layer, of in found.items() if set(of) != {TORCH}}
            self.proposed[name] = chosen
            if chosen and self._is_faster(chosen, shapes, name, where, kept):
                self.chosen[name] = chosen
        set_layout(model, "contiguous")
        if device.type == "cpu":
            cpu().forget()

    def used(self, layout: str) -> dict[str, str]:
        """By layer, what is not torch's own in this layout."""
        return dict(self.chosen[layout])

    def apply(self, layout: str) -> None:
        """Have the model use them, once it has this layout."""
        if any(self.chosen.values()):
            use_algorithm(self._model, TORCH)
            use_algorithm(self._model, self.used(layout))

    def _is_faster(
        self,
        chosen: Mapping[str, str],
        shapes: Mapping[str, Geometry],
        layout: str,
        where: Where,
        kept: Kept,
    ) -> bool:
        """Whether the whole network is, with what was chosen for its layers."""
        images = _few(shapes, where.num_threads)
        described = repr((self._model, [*shapes.values()], images, sorted(chosen.items())))
        described = re.sub(r" at 0x[0-9a-f]+", "", described)  # the same in every process
        key = where.key(f"network {hashlib.sha256(described.encode()).hexdigest()[:16]}")
        if kept.get(key) not in (TORCH, AUTO):
            turns = self._as_a_whole(chosen, layout, images)
            ratios = [torchs / ours for torchs, ours in zip(turns[TORCH], turns[AUTO], strict=True)]
            often = sum(ratio > 1 for ratio in ratios) >= MOST_TURNS * len(ratios)
            is_faster = often and statistics.median(ratios) > MARGIN
            kept.put(key, AUTO if is_faster else TORCH, lambda of: of in (TORCH, AUTO))
        return bool(kept.get(key) == AUTO)

    def _as_a_whole(
        self, chosen: Mapping[str, str], layout: str, images: int
    ) -> dict[str, list[float]]:
        """Seconds of forward and backward, turn by turn: torch's own, and what was chosen."""
        set_layout(self._model, layout)
        inputs = laid_out(self._samples(images), layout)

        def passes(algorithms: str | Mapping[str, str]) -> Callable[[], Any]:
            def work() -> None:
                use_algorithm(self._model, TORCH)
                use_algorithm(self._model, algorithms)
                self._loss(inputs).backward()
                synchronise(inputs.device)
                self._model.zero_grad(set_to_none=True)

            return work

        kept_buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        try:
            with rng_restored(inputs.device):
                works = {TORCH: passes(TORCH), AUTO: passes(chosen)}
                return turns_of(works, ENOUGH_S, most_s=MOST_S)
        finally:
            use_algorithm(self._model, TORCH)
            self._model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in self._model.named_buffers():
                    buffer.copy_(kept_buffers[name])


def _few(shapes: Mapping[str, Geometry], num_threads: int) -> int:
    """Images with which a pass of the network takes little time, but for each thread one."""
    images = min(MOST_IMAGES, max(of.images for of in shapes.values()))
    while images // 2 >= num_threads and _flops(shapes, images) > MOST_FLOPS:
        images //= 2
    return images


def _flops(shapes: Mapping[str, Geometry], images: int) -> int:
    return sum(of.of_images(images).flops for of in shapes.values())

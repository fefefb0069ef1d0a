"""Seconds of each layer within a forward and backward pass, by marks as the pass goes by.

    forward    │ conv1      │ relu1 │ pool1 │ ...        a mark as each leaf begins
    backward   │ ... │ pool1 │ relu1 │ conv1      │      a mark as each one's gradient arrives

What stands between two leaves (a sum, a concatenation) counts for the one before it, so the
layers' times sum to the pass's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convoy.cost.layers import leaves


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Seconds by layer, in order of execution; a layer that is called again counts in all."""

    forward_s: Mapping[str, float]
    backward_s: Mapping[str, float]


class Marks:
    """Moments with names; on a GPU those at which the work queued before them is done."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._taken: list[tuple[str, Any]] = []

    def take(self, name: str) -> None:
        """It is now that `name` begins."""
        moment: Any
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._taken.append((name, moment))

    def seconds(self) -> dict[str, float]:
        """Time from each mark to the next, summed by name; the last mark is an end."""
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._taken, self._taken[1:], strict=False):
            passed = start.elapsed_time(end) / 1e3 if self._cuda else end - start
            found[name] = found.get(name, 0.0) + passed
        return found


def time_layers(
    model: nn.Module, device: torch.device, loss: Callable[[nn.Module], Tensor]
) -> LayerTimes:
    """Run `loss(model)` forward and backward once and time its leaves."""
    forward, backward = Marks(device), Marks(device)
    handles = []
    watched: set[tuple[Any, int]] = set()  # the gradients that have a mark

    def begins(name: str) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            forward.take(name)

        return mark

    def ends(name: str) -> Callable[..., None]:
        def watch(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                gradient = (output.grad_fn, output.output_nr)
                if gradient not in watched:  # a layer that hands its input on has no work
                    watched.add(gradient)
                    output.register_hook(lambda _: backward.take(name))

        return watch

    for leaf, name in dict(leaves(model)).items():  # one name for a layer that stands twice
        handles.append(leaf.register_forward_pre_hook(begins(name)))
        handles.append(leaf.register_forward_hook(ends(name)))
    try:
        value = loss(model)
        forward.take("")
        backward.take("")
        value.backward()
        backward.take("")
    finally:
        for handle in handles:
            handle.remove()
    return LayerTimes(forward_s=forward.seconds(), backward_s=backward.seconds())

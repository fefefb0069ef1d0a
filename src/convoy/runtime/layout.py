"""Which memory layout of images and filters is faster here: measured, not assumed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
_REPEATS = 3
_ENOUGH_S = 3.0


def set_layout(model: nn.Module, layout: str) -> None:
    """Lay `model`'s four-dimensional parameters out as `layout` says, in place."""
    model.to(memory_format=FORMATS[layout])  # type: ignore[call-overload]


def laid_out(inputs: Tensor, layout: str) -> Tensor:
    """`inputs` in `layout`, where they are images."""
    return inputs.contiguous(memory_format=FORMATS[layout]) if inputs.dim() == 4 else inputs


def fastest_layout(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    lay_out: Callable[[str], None],
    autocast: Callable[[], AbstractContextManager[Any]],
    agree: Callable[[list[float]], list[float]],
) -> str:
    """The layout in which a forward and backward pass over `inputs` takes the least time.

    The ranks must choose alike, since buckets of gradients are summed in memory order: `agree`
    turns this rank's times into those of the slowest rank. Alternates the layouts, so that a
    machine that slows down does so for both; leaves `model` as it was but for its layout, which
    `lay_out` sets.
    """
    if inputs.dim() != 4:
        return "contiguous"
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    times: dict[str, list[float]] = {name: [] for name in FORMATS}
    begun = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        for repeat in range(1 + _REPEATS):
            for name in FORMATS:
                lay_out(name)
                placed = laid_out(inputs, name)
                synchronise(inputs.device)
                started = time.perf_counter()
                with autocast():
                    F.cross_entropy(model(placed), targets).backward()
                synchronise(inputs.device)
                if repeat:  # the first warms up
                    times[name].append(time.perf_counter() - started)
                model.zero_grad(set_to_none=True)
            if repeat and time.perf_counter() - begun > _ENOUGH_S:
                break
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    slowest = agree([statistics.median(times[name]) for name in FORMATS])
    return min(zip(slowest, FORMATS, strict=True))[1]


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What parts of a convolution's filters take, relative to all: hardly ever their share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from convoy.cost.layers import leaves

FRACTIONS = (0.25, 0.5, 0.75)


def time_filters(
    model: nn.Module,
    inputs: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]],
    seconds: float,
) -> dict[str, dict[str, float]]:
    """By convolution and fraction of its filters ("0.5"): forward and backward, relative to all.

    Convolutions with the most work come first, and none is begun once `seconds` have passed.
    Grouped and transposed ones are left out: their filters cannot simply be divided.
    """
    shapes = _input_shapes(model, inputs)
    names = {layer: name for layer, name in leaves(model) if name in shapes}
    order = sorted(names, key=lambda layer: -_work(layer, shapes[names[layer]]))
    begun = time.perf_counter()
    found: dict[str, dict[str, float]] = {}
    for layer in order:
        if time.perf_counter() - begun > seconds:
            break
        received = torch.randn(shapes[names[layer]], device=inputs.device, dtype=inputs.dtype)
        if received.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            received = received.contiguous(memory_format=torch.channels_last)
        assert isinstance(layer, _ConvNd)
        whole = _seconds(layer, layer.out_channels, received, autocast)
        parts = {f: max(1, round(f * layer.out_channels)) for f in FRACTIONS}
        found[names[layer]] = {
            str(f): _seconds(layer, count, received, autocast) / whole for f, count in parts.items()
        }
    return found


def _input_shapes(model: nn.Module, inputs: Tensor) -> dict[str, torch.Size]:
    """Shapes of what each convolution whose filters can be divided receives."""
    shapes: dict[str, torch.Size] = {}
    handles = []
    for layer, name in leaves(model):
        if not isinstance(layer, _ConvNd) or isinstance(layer, _ConvTransposeNd):
            continue
        if layer.groups == 1 and layer.out_channels > 1:

            def note(_: nn.Module, args: Any, name: str = name) -> None:
                shapes[name] = args[0].shape

            handles.append(layer.register_forward_pre_hook(note))
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        for module, training in modes.items():
            module.training = training
        for handle in handles:
            handle.remove()
    return shapes


def _work(layer: nn.Module, shape: torch.Size) -> int:
    assert isinstance(layer, _ConvNd)
    return shape.numel() * layer.weight.numel()


def _seconds(
    layer: _ConvNd,
    filters: int,
    received: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> float:
    """Forward and backward of the first `filters` filters."""
    weight = layer.weight[:filters].detach().clone().requires_grad_()
    bias = None if layer.bias is None else layer.bias[:filters].detach().clone().requires_grad_()
    images = received.detach().requires_grad_()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begun < 0.05 and len(times) < 50):
        started = time.perf_counter()
        with autocast():
            output = layer._conv_forward(images, weight, bias)
        output.backward(torch.ones_like(output))
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        times.append(time.perf_counter() - started)
        if sum(times) > 1.0 and len(times) > 1:
            break
    return statistics.fmean(times[1:])  # the first warms up

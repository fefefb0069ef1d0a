"""Sizes of feature maps by arithmetic, before anything is computed.

A dense layer has to know how many features reach it, and an image that is too small is
better refused by name than by an error from deep inside a convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from math import prod

from torch import nn

from convoy.errors import UsageError
from convoy.networks.spec import Shape, Spec

_Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


def flat_size(spec: Spec, layers: Iterable[nn.Module]) -> int:
    """Features per image after `layers`, flattened; raises as `map_shape` does."""
    return prod(map_shape(spec, layers))


def map_shape(spec: Spec, layers: Iterable[nn.Module]) -> Shape:
    """Channels, height and width of the maps that `layers`, in a row, make of one image.

    Convolutions and poolings count; whatever else there is keeps its input's shape.

    Raises:
        UsageError: a layer has nothing left to look at; says the smallest image that works.
    """
    windows = [layer for layer in layers if isinstance(layer, _Window)]
    height, width = (_side_after(windows, side, axis) for axis, side in enumerate(spec.sides))
    if min(height, width) < 1:
        raise too_small(spec, _smallest_side(windows))
    convolutions = [layer for layer in windows if isinstance(layer, nn.Conv2d)]
    channels = convolutions[-1].out_channels if convolutions else spec.channels
    return channels, height, width


def too_small(spec: Spec, smallest: int) -> UsageError:
    """What to raise for an image that is smaller than `smallest` on a side."""
    got = "x".join(map(str, spec.input_shape))
    least = "x".join(map(str, (spec.channels, smallest, smallest)))
    return UsageError(
        f"network {spec.name!r}: an input of {got} is too small; the smallest it takes is {least}"
    )


def _side_after(windows: Iterable[_Window], side: int, axis: int) -> int:
    """Height (`axis` 0) or width (1) after `windows`; below 1 if one of them does not fit."""
    for layer in windows:
        side = _slide(layer, side, axis)
        if side < 1:
            break
    return side


def _slide(layer: _Window, side: int, axis: int) -> int:
    """How many positions `layer`'s window takes along a side.

    floor or ceil((side + 2 padding - kernel) / stride) + 1, as Caffe's and torch's pooling
    have it. torch leaves out a last window that starts past the image; with a stride of at
    most the kernel, and no padding beside ceil, there is none.
    """
    assert not isinstance(layer.padding, str)
    kernel, stride = _along(layer.kernel_size, axis), _along(layer.stride, axis)
    room = side + 2 * _along(layer.padding, axis) - kernel
    if isinstance(layer, nn.Conv2d):
        assert layer.dilation == (1, 1)
    elif layer.ceil_mode:
        assert stride <= kernel
        assert layer.padding == 0
        return -(-room // stride) + 1
    return room // stride + 1


def _smallest_side(windows: list[_Window]) -> int:
    fits = (
        side
        for side in itertools.count(1)
        if min(_side_after(windows, side, axis) for axis in (0, 1)) >= 1
    )
    return next(fits)


def _along(size: int | tuple[int, ...], axis: int) -> int:
    return size if isinstance(size, int) else size[axis]

"""The loop nest itself: nothing is written but the result.

Rows of the output are the innermost loop, so that it runs over memory that lies together.
"""

from __future__ import annotations

import numpy as np

from convoy.kernels.cpu.compiling import Array, compiled
from convoy.kernels.cpu.pieces import span
from convoy.kernels.geometry import Window

_u = np.uint64  # indices without a sign: see pieces.py


@compiled
def forward(
    inputs: Array,
    weight: Array,
    bias: Array,
    outputs: Array,
    window: Window,
    groups: int,
    first: int,
    last: int,
) -> None:
    """The maps from `first` to `last`, counted through images and their filters.

    Args:
        inputs: [images, channels, height, width].
        weight: [filters, channels of a group, kernel height, kernel width].
        bias: [filters].
        outputs: [images, filters, out height, out width], to be written.
        window: of a group.
        groups: that channels and filters are divided among.
        first, last: maps, images times filters of them in all.
    """
    filters = weight.shape[0]
    for number in range(first, last):
        image, row = divmod(number, filters)
        above = row // (filters // groups) * window.channels
        made = outputs[image, row]
        made[:] = bias[row]
        for channel in range(window.channels):
            plane = inputs[image, above + channel]
            for ky in range(window.kernel_y):
                for kx in range(window.kernel_x):
                    factor = weight[row, channel, ky, kx]
                    low, high = span(window, kx)
                    run, step = _u(high - low), _u(window.stride_x)
                    offset = kx * window.dilation_x - window.padding_x
                    for oy in range(window.out_y):
                        y = oy * window.stride_y - window.padding_y + ky * window.dilation_y
                        if 0 <= y < window.height:
                            line, into = plane[y], made[oy]
                            s, d = _u(low * window.stride_x + offset), _u(low)
                            if window.stride_x == 1:
                                for x in range(run):
                                    into[d + x] += factor * line[s + x]
                            else:
                                for x in range(run):
                                    into[d + x] += factor * line[s + x * step]


@compiled
def input_gradient(
    gradient: Array,
    weight: Array,
    into: Array,
    window: Window,
    groups: int,
    first: int,
    last: int,
) -> None:
    """The gradient of the input's maps from `first` to `last`, counted through images and channels.

    Args:
        gradient: of the output, [images, filters, out height, out width].
        weight: [filters, channels of a group, kernel height, kernel width].
        into: [images, channels, height, width], zeros, to be added to.
        window, groups: see `forward`.
        first, last: maps, images times channels of them in all.
    """
    channels, filters = window.channels * groups, weight.shape[0] // groups
    for number in range(first, last):
        image, channel = divmod(number, channels)
        group, inside = divmod(channel, window.channels)
        plane = into[image, channel]
        for row in range(group * filters, (group + 1) * filters):
            made = gradient[image, row]
            for ky in range(window.kernel_y):
                for kx in range(window.kernel_x):
                    factor = weight[row, inside, ky, kx]
                    low, high = span(window, kx)
                    run, step = _u(high - low), _u(window.stride_x)
                    offset = kx * window.dilation_x - window.padding_x
                    for oy in range(window.out_y):
                        y = oy * window.stride_y - window.padding_y + ky * window.dilation_y
                        if 0 <= y < window.height:
                            line, out_of = plane[y], made[oy]
                            s, d = _u(low * window.stride_x + offset), _u(low)
                            if window.stride_x == 1:
                                for x in range(run):
                                    line[s + x] += factor * out_of[d + x]
                            else:
                                for x in range(run):
                                    line[s + x * step] += factor * out_of[d + x]


@compiled
def weight_gradient(
    inputs: Array,
    gradient: Array,
    into: Array,
    window: Window,
    groups: int,
    first: int,
    last: int,
) -> None:
    """The gradient of filters from `first` to `last`, over all images.

    Args:
        inputs: [images, channels, height, width].
        gradient: of the output, [images, filters, out height, out width].
        into: [filters, channels of a group, kernel height, kernel width], zeros, to be added to.
        window, groups: see `forward`.
        first, last: filters.
    """
    of_group = into.shape[0] // groups
    for row in range(first, last):
        above = row // of_group * window.channels
        for image in range(inputs.shape[0]):
            made = gradient[image, row]
            for channel in range(window.channels):
                plane = inputs[image, above + channel]
                for ky in range(window.kernel_y):
                    for kx in range(window.kernel_x):
                        low, high = span(window, kx)
                        run, step = _u(high - low), _u(window.stride_x)
                        offset = kx * window.dilation_x - window.padding_x
                        total = into[row, channel, ky, kx]
                        for oy in range(window.out_y):
                            y = oy * window.stride_y - window.padding_y + ky * window.dilation_y
                            if 0 <= y < window.height:
                                line, out_of = plane[y], made[oy]
                                s, d = _u(low * window.stride_x + offset), _u(low)
                                for x in range(run):
                                    total += out_of[d + x] * line[s + x * step]
                        into[row, channel, ky, kx] = total

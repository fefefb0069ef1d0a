"""Lowering, a piece at a time: what of the input is under a filter at each place of the output.

A piece is a number of the output's rows that follow one another, through images too: all that a
thread has (`lowering.py`). Lowered it is a matrix whose columns are positions and whose rows are a
window's elements, so that filters times piece is the output there:

                 count positions                    count positions
               ┌────────────────┐                 ┌────────────────┐
    depth rows │     piece      │   weight  ×     │     piece      │  =  output, [filters, count]
               └────────────────┘  [filters, depth]───────────────┘

Innermost loops run over memory that lies together, by indices without a sign: with one, Numba asks
of each whether it counts from the end, and the loop is not made of vectors.

Source: K. Chellapilla, S. Puri and P. Simard, "High performance convolutional neural networks for
document processing" (2006), section 3: unfolding a convolution.
"""

from __future__ import annotations

import numpy as np

from convoy.kernels.cpu.compiling import Array, compiled
from convoy.kernels.geometry import Window

_u = np.uint64


@compiled
def span(window: Window, kernel_x: int) -> tuple[int, int]:
    """Which of the output's columns have their input inside the image, at a kernel's column."""
    offset = kernel_x * window.dilation_x - window.padding_x
    low = max(0, -(offset // window.stride_x))
    high = min(window.out_x, (window.width - 1 - offset) // window.stride_x + 1)
    low = min(low, window.out_x)
    return low, max(low, high)


@compiled
def lower(
    inputs: Array, first_channel: int, window: Window, start: int, rows: int, piece: Array
) -> None:
    """Fill a piece.

    Args:
        inputs: [images, channels, height, width].
        first_channel: of the group.
        window: the group's.
        start: the first of the output's rows, counted through all images.
        rows: how many of them.
        piece: [depth x count], to be filled: one-dimensional.
    """
    channels, columns = inputs.shape[1], window.out_x
    flat = inputs.reshape(inputs.size)
    at = 0
    for channel in range(first_channel, first_channel + window.channels):
        for ky in range(window.kernel_y):
            for kx in range(window.kernel_x):
                low, high = span(window, kx)
                left, run, right = _u(low), _u(high - low), _u(columns - high)
                offset = kx * window.dilation_x - window.padding_x + low * window.stride_x
                step = _u(window.stride_x)
                image, oy = divmod(start, window.out_y)
                for _ in range(rows):
                    y = oy * window.stride_y - window.padding_y + ky * window.dilation_y
                    d = _u(at)
                    if y < 0 or y >= window.height:
                        for x in range(_u(columns)):
                            piece[d + x] = 0
                    else:
                        line = (image * channels + channel) * window.height + y
                        s = _u(line * window.width + offset)
                        for x in range(left):
                            piece[d + x] = 0
                        d += left
                        if window.stride_x == 1:
                            for x in range(run):
                                piece[d + x] = flat[s + x]
                        else:
                            for x in range(run):
                                piece[d + x] = flat[s + x * step]
                        d += run
                        for x in range(right):
                            piece[d + x] = 0
                    at += columns
                    oy += 1
                    if oy == window.out_y:
                        oy = 0
                        image += 1


@compiled
def spread(
    piece: Array, first_channel: int, window: Window, start: int, rows: int, inputs: Array
) -> None:
    """Add a piece to the inputs that it would be lowered from: the transpose of `lower`.

    Args:
        piece: [depth x count], one-dimensional.
        first_channel, window, start, rows: see `lower`.
        inputs: [images, channels, height, width], to be added to.
    """
    channels, columns = inputs.shape[1], window.out_x
    flat = inputs.reshape(inputs.size)
    at = 0
    for channel in range(first_channel, first_channel + window.channels):
        for ky in range(window.kernel_y):
            for kx in range(window.kernel_x):
                low, high = span(window, kx)
                run = _u(high - low)
                offset = kx * window.dilation_x - window.padding_x + low * window.stride_x
                step = _u(window.stride_x)
                image, oy = divmod(start, window.out_y)
                for _ in range(rows):
                    y = oy * window.stride_y - window.padding_y + ky * window.dilation_y
                    if 0 <= y < window.height:
                        line = (image * channels + channel) * window.height + y
                        s, d = _u(line * window.width + offset), _u(at + low)
                        if window.stride_x == 1:
                            for x in range(run):
                                flat[s + x] += piece[d + x]
                        else:
                            for x in range(run):
                                flat[s + x * step] += piece[d + x]
                    at += columns
                    oy += 1
                    if oy == window.out_y:
                        oy = 0
                        image += 1


@compiled
def scatter(
    product: Array, bias: Array, first_filter: int, start: int, count: int, outputs: Array
) -> None:
    """Write what filters made of a piece to where it belongs, with their bias.

    Args:
        product: [filters of the group, count].
        bias: [filters], zeros where there is none.
        first_filter: of the group.
        start, count: the piece's positions.
        outputs: [images, filters, positions], to be written.
    """
    filters, of_image = outputs.shape[1], outputs.shape[2]
    flat, out_of = outputs.reshape(outputs.size), product.reshape(product.size)
    for row in range(product.shape[0]):
        number = first_filter + row
        added = bias[number]
        done = 0
        image, at = divmod(start, of_image)
        while done < count:
            run = min(of_image - at, count - done)
            s, d = _u(row * count + done), _u((image * filters + number) * of_image + at)
            for x in range(_u(run)):
                flat[d + x] = out_of[s + x] + added
            done += run
            image += 1
            at = 0


@compiled
def gather(outputs: Array, first_filter: int, start: int, count: int, into: Array) -> None:
    """The reverse of `scatter`, without bias: [filters of the group, count] of all positions."""
    filters, of_image = outputs.shape[1], outputs.shape[2]
    flat, target = outputs.reshape(outputs.size), into.reshape(into.size)
    for row in range(into.shape[0]):
        number = first_filter + row
        done = 0
        image, at = divmod(start, of_image)
        while done < count:
            run = min(of_image - at, count - done)
            d, s = _u(row * count + done), _u((image * filters + number) * of_image + at)
            for x in range(_u(run)):
                target[d + x] = flat[s + x]
            done += run
            image += 1
            at = 0

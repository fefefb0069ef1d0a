"""The padded input, in which what is beneath a filter is `padded[off[position] + tap[element]]`.

Where the image's edges are is then no matter of the loops. Columns whose remainder by the stride is
the same lie together, so that positions that follow one another in a row read elements that do,
whatever the stride:

    stride 2, a row of 7:   0 1 2 3 4 5 6 .   ─▶   0 2 4 6 │ 1 3 5 .
"""

from __future__ import annotations

import numpy as np

from convoy.kernels.cpu.compiling import Array, compiled
from convoy.kernels.geometry import Window

_u = np.uint64  # indices without a sign: see pieces.py


@compiled
def taps(window: Window, wide: int, plane: int) -> Array:
    """Where the elements beneath a filter lie, from the first one's place: [depth].

    Args:
        window: of a group.
        wide: elements in a row of the padded input.
        plane: in a channel.
    """
    found = np.empty(window.channels * window.kernel_y * window.kernel_x, np.int64)
    phase = wide // window.stride_x
    at = 0
    for channel in range(window.channels):
        for ky in range(window.kernel_y):
            for kx in range(window.kernel_x):
                further, which = divmod(kx * window.dilation_x, window.stride_x)
                line = channel * plane + ky * window.dilation_y * wide
                found[at] = line + which * phase + further
                at += 1
    return found


@compiled
def offsets(window: Window, first: int, count: int, wide: int, image: int, into: Array) -> None:
    """Where the first element beneath a filter lies, for positions from `first` on.

    Args:
        window: of a group.
        first: position, counted through all images.
        count: of positions.
        wide: elements in a row of the padded input.
        image: in an image.
        into: at least [count].
    """
    of_image = window.out_y * window.out_x
    number, inside = divmod(first, of_image)
    oy, ox = divmod(inside, window.out_x)
    for at in range(count):
        into[at] = number * image + oy * window.stride_y * wide + ox
        ox += 1
        if ox == window.out_x:
            ox = 0
            oy += 1
            if oy == window.out_y:
                oy = 0
                number += 1


@compiled
def runs_of(off: Array, first: int, count: int, begins: Array) -> int:
    """How many runs of places that follow one another there are, and where each begins.

    Args:
        off: places.
        first, count: which of them to look at.
        begins: to be written, from `first` counted; after the last one stands `count`.
    """
    number = 0
    for at in range(count):
        if at == 0 or off[first + at] != off[first + at - 1] + 1:
            begins[number] = at
            number += 1
    begins[number] = count
    return number


@compiled
def pad(inputs: Array, window: Window, into: Array, first: int, last: int) -> None:
    """Copy planes from `first` to `last`, counted through images and channels, and zeros around.

    Columns whose remainder by the stride is the same lie together, so that what is beneath an
    element of filters at following positions does, whatever the stride.

    Args:
        inputs: [planes, height, width].
        window: of a group.
        into: [planes, height + 2 padding, padded width rounded up to the stride], to be written.
        first, last: planes.
    """
    phase = into.shape[2] // window.stride_x
    for plane in range(first, last):
        into[plane] = 0
        for y in range(window.height):
            line, there = inputs[plane, y], into[plane, y + window.padding_y]
            if window.stride_x == 1:
                for x in range(_u(window.width)):
                    there[_u(window.padding_x) + x] = line[x]
            else:
                for x in range(window.width):
                    further, which = divmod(x + window.padding_x, window.stride_x)
                    there[which * phase + further] = line[x]


@compiled
def crop(padded: Array, window: Window, into: Array, first: int, last: int) -> None:
    """The reverse of `pad`."""
    phase = padded.shape[2] // window.stride_x
    for plane in range(first, last):
        for y in range(window.height):
            line, there = padded[plane, y + window.padding_y], into[plane, y]
            if window.stride_x == 1:
                for x in range(_u(window.width)):
                    there[x] = line[_u(window.padding_x) + x]
            else:
                for x in range(window.width):
                    further, which = divmod(x + window.padding_x, window.stride_x)
                    there[x] = line[which * phase + further]

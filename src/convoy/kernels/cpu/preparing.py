"""What the pieces of `pipelined` read, made by all threads before: padded input, packed filters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from convoy.kernels.cpu import padding, panels, threads
from convoy.kernels.cpu.compiling import Array
from convoy.kernels.cpu.cutting import up
from convoy.kernels.cpu.tile import ROWS, columns_of
from convoy.kernels.geometry import Geometry

Job = tuple[int, Callable[[int, int], None]]
"""How many there are of something, and what does some of it: from, to."""


def padding_of(g: Geometry, inputs: Array) -> tuple[Array, Job]:
    """The input with zeros around it, as `padding.pad` lays it out, and what is to be done for it.

    Beyond its end is a tile's row of zeros: runs are copied in whole rows of tiles.
    """
    planes, columns = g.images * g.channels, columns_of(inputs.itemsize)
    shape = (g.images, g.channels, *padded_shape(g))
    size = math.prod(shape)
    room = threads.aligned(size + columns, inputs.dtype)
    room[size:] = 0
    padded = room[:size].reshape(shape)
    small, large = inputs.reshape(planes, g.height, g.width), padded.reshape(planes, *shape[2:])
    return padded, (
        planes,
        lambda first, last: padding.pad(small, g.window, large, first, last),
    )


def packing_of(g: Geometry, weight: Array, *, is_turned: bool = False) -> tuple[Array, Job]:
    """Each group's filters as the left side of tiles, and what is to be done for it.

    [groups, panels, depth, ROWS]; turned, panels are of the depth, and what is summed over are
    filters.
    """
    of_group = weight.reshape(g.groups, g.filters // g.groups, g.depth)
    rows, depth = of_group.shape[1:]
    if is_turned:
        rows, depth = depth, rows
    count = -(-rows // ROWS)
    packed = threads.aligned(g.groups * count * depth * ROWS, weight.dtype)
    packed = packed.reshape(g.groups, count, depth, ROWS)

    def some(first: int, last: int) -> None:
        for group in range(first // count, -(-last // count)):
            from_, to = max(0, first - group * count), min(count, last - group * count)
            panels.pack(of_group[group], is_turned, packed[group], from_, to)

    return packed, (g.groups * count, some)


def do_all(jobs: Sequence[Job], num_threads: int) -> None:
    """Jobs that do not need one another, each divided among the threads: all start once only."""
    parts = [threads.shares(total, num_threads) for total, _ in jobs]

    def own(number: int) -> None:
        for ranges, (_, work) in zip(parts, jobs, strict=True):
            if number < len(ranges):
                work(*ranges[number])

    threads.by_all(own, max(map(len, parts)))


def padded_shape(g: Geometry) -> tuple[int, int]:
    return g.padded[0], up(g.padded[1], g.stride[1])

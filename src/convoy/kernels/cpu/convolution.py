"""The three algorithms on NumPy arrays: forward, and both gradients.

direct      a map, a channel or a filter is one thread's
lowering    a thread's part of the batch is lowered whole
pipelined   it is in pieces that fit the L2 cache
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convoy.kernels.cpu import direct, lowering, padding, panels, pipelined, threads
from convoy.kernels.cpu.caches import l2_bytes
from convoy.kernels.cpu.compiling import Array
from convoy.kernels.cpu.tile import LEFT_ROWS, RIGHT_ROWS, ROWS, columns_of
from convoy.kernels.geometry import Geometry
from convoy.kernels.passes import DIRECT, PIPELINED

OF_CACHE = 0.5
"""The part of the L2 cache that a piece may fill; the rest is for weights and results."""
DEEP = 256
"""Elements of the depth in a piece: as many rows of a tile fit the L1 cache."""
MOST_SPAN, LEAST_SPAN = 2048, 512
"""Positions. Of the weights' gradient a piece adds to all of it: where many filters leave room for
few positions, it has twice the least, whether they fit or not. Measured."""


def span_of(rows: int, itemsize: int) -> int:
    """How many positions a piece of so many rows has, to fit the cache; a multiple of a tile's."""
    columns = columns_of(itemsize)
    fit = int(l2_bytes() * OF_CACHE / itemsize) // rows // columns * columns
    return max(columns, min(MOST_SPAN, fit))


def forward(
    geometry: Geometry,
    inputs: Array,
    weight: Array,
    bias: Array | None,
    algorithm: str,
    num_threads: int,
    *,
    span: int | None = None,
    deep: int = DEEP,
) -> Array:
    """The output, [images, filters, out height, out width].

    Args:
        geometry: of the convolution.
        inputs: [images, channels, height, width], contiguous, float32 or float64.
        weight: [filters, channels / groups, kernel height, kernel width], likewise.
        bias: [filters].
        algorithm: one of passes.ALGORITHMS.
        num_threads: that share the work.
        span, deep: of a piece, see `pipelined`; by the cache without them.
    """
    g = geometry
    dtype = inputs.dtype
    outputs = np.empty((g.images, g.filters, *g.out), dtype)
    added = np.zeros(g.filters, dtype) if bias is None else bias
    if not outputs.size:
        return outputs
    window = g.window
    if algorithm == DIRECT:
        ranges = threads.shares(g.images * g.filters, num_threads)

        def maps(_number: int, first: int, last: int) -> None:
            direct.forward(inputs, weight, added, outputs, window, g.groups, first, last)

        threads.in_parallel(maps, ranges)
        return outputs
    flat = outputs.reshape(g.images, g.filters, g.positions)
    if algorithm == PIPELINED:
        padded, packed = _padded(g, inputs, num_threads), _packed(g, weight, num_threads)
        deep = min(deep, g.depth)
        span = span or span_of(deep, dtype.itemsize)
        tile = ROWS * columns_of(dtype.itemsize)
        room = deep * _up(span, columns_of(dtype.itemsize)) + tile

        ranges = threads.shares(g.images * g.positions, num_threads)
        memory = threads.rooms(len(ranges), room, dtype)

        def pieces(number: int, first: int, last: int) -> None:
            own = memory[number]
            pipelined.forward(padded, packed, added, flat, window, first, last, span, deep, own)

        threads.in_parallel(pieces, ranges)
        return outputs
    of_group = weight.reshape(g.groups, g.filters // g.groups, g.depth)

    ranges = threads.shares(g.images * g.out[0], num_threads)
    memory = _room_for_all(g, ranges, g.out[1], dtype)

    def whole(number: int, first: int, last: int) -> None:
        own = memory[number]
        lowering.forward(inputs, of_group, added, flat, window, first, last, own)

    with threads.one_blas_thread_each():
        threads.in_parallel(whole, ranges)
    return outputs


def input_gradient(
    geometry: Geometry,
    gradient: Array,
    weight: Array,
    algorithm: str,
    num_threads: int,
    *,
    span: int | None = None,
) -> Array:
    """The gradient of the input, [images, channels, height, width].

    Args:
        geometry, weight, algorithm, num_threads, span: see `forward`.
        gradient: of the output, [images, filters, out height, out width], contiguous.
    """
    g = geometry
    dtype = gradient.dtype
    if not gradient.size:
        return np.zeros((g.images, g.channels, g.height, g.width), dtype)
    window = g.window
    flat = gradient.reshape(g.images, g.filters, g.positions)
    if algorithm == PIPELINED:
        return _pipelined_input_gradient(g, flat, weight, num_threads, span)
    into = np.zeros((g.images, g.channels, g.height, g.width), dtype)
    if algorithm == DIRECT:
        ranges = threads.shares(g.images * g.channels, num_threads)

        def maps(_number: int, first: int, last: int) -> None:
            direct.input_gradient(gradient, weight, into, window, g.groups, first, last)

        threads.in_parallel(maps, ranges)
        return into
    of_group = weight.reshape(g.groups, g.filters // g.groups, g.depth)

    ranges = threads.shares(g.images * g.out[0], num_threads, unit=g.out[0])
    memory = _room_for_all(g, ranges, g.out[1], dtype)

    def whole(number: int, first: int, last: int) -> None:
        lowering.input_gradient(flat, of_group, into, window, first, last, memory[number])

    with threads.one_blas_thread_each():
        threads.in_parallel(whole, ranges)
    return into


def _pipelined_input_gradient(
    g: Geometry, flat: Array, weight: Array, num_threads: int, span: int | None
) -> Array:
    dtype, window, filters = flat.dtype, g.window, g.filters // g.groups
    packed = _packed(g, weight, num_threads, is_turned=True)
    padded = np.zeros((g.images, g.channels, *_padded_shape(g)), dtype)
    span = span or span_of(filters, dtype.itemsize)
    room = (filters + ROWS) * _up(span, columns_of(dtype.itemsize))
    planes, each = g.images * g.channels, g.channels
    into = padded
    if padded.shape[2:] != (g.height, g.width) or g.stride[1] != 1:
        into = np.empty((g.images, g.channels, g.height, g.width), dtype)
    large, small = (
        padded.reshape(planes, *padded.shape[2:]),
        into.reshape(planes, g.height, g.width),
    )

    ranges = threads.shares(g.images, num_threads)
    memory = threads.rooms(len(ranges), room, dtype)

    def pieces(number: int, first: int, last: int) -> None:
        own, of_image = memory[number], g.positions
        pipelined.input_gradient(
            flat, packed, padded, window, first * of_image, last * of_image, span, own
        )
        if into is not padded:
            padding.crop(large, window, small, first * each, last * each)

    threads.in_parallel(pieces, ranges)
    return into


def weight_gradient(
    geometry: Geometry,
    inputs: Array,
    gradient: Array,
    algorithm: str,
    num_threads: int,
    *,
    span: int | None = None,
) -> Array:
    """The gradient of the weight, [filters, channels / groups, kernel height, kernel width].

    Threads' parts are added in their order: the same number of threads gives the same bits.

    Args:
        geometry, inputs, algorithm, num_threads, span: see `forward`.
        gradient: of the output, [images, filters, out height, out width], contiguous.
    """
    g = geometry
    dtype = gradient.dtype
    if algorithm == DIRECT or not gradient.size:
        made = np.zeros((g.filters, g.channels // g.groups, *g.kernel), dtype)
        if gradient.size:
            ranges = threads.shares(g.filters, num_threads)

            def of_filters(_number: int, first: int, last: int) -> None:
                direct.weight_gradient(inputs, gradient, made, g.window, g.groups, first, last)

            threads.in_parallel(of_filters, ranges)
        return made
    filters, window = g.filters // g.groups, g.window
    flat = gradient.reshape(g.images, g.filters, g.positions)
    unit = 1 if algorithm == PIPELINED else g.out[1]
    ranges = threads.shares(g.images * g.positions, num_threads, unit)
    parts = np.zeros((len(ranges), g.groups, filters, g.depth), dtype)
    if algorithm == PIPELINED:
        padded = _padded(g, inputs, num_threads)
        fit = span_of(filters + RIGHT_ROWS, dtype.itemsize)
        fit = fit if fit >= LEAST_SPAN else 2 * LEAST_SPAN
        span = _up(span or fit, columns_of(dtype.itemsize))
        room = (_up(filters, LEFT_ROWS) + RIGHT_ROWS + 1) * span
        memory = threads.rooms(len(ranges), room, dtype)

        def pieces(number: int, first: int, last: int) -> None:
            into, own = parts[number], memory[number]
            pipelined.weight_gradient(padded, flat, into, window, first, last, span, own)

        threads.in_parallel(pieces, ranges)
    else:
        memory = _room_for_all(g, ranges, 1, dtype)

        def whole(number: int, first: int, last: int) -> None:
            first, last = first // unit, last // unit
            into, own = parts[number], memory[number]
            lowering.weight_gradient(inputs, flat, into, window, first, last, own)

        with threads.one_blas_thread_each():
            threads.in_parallel(whole, ranges)
    total = parts[0] if len(ranges) == 1 else _total(parts.reshape(len(ranges), -1), num_threads)
    return total.reshape(g.filters, g.channels // g.groups, *g.kernel)


def _total(parts: Array, num_threads: int) -> Array:
    """The sum of the parts, [parts, elements], one after another whoever adds them."""
    total = np.empty(parts.shape[1], parts.dtype)

    def add(_number: int, first: int, last: int) -> None:
        np.add(parts[0, first:last], parts[1, first:last], out=total[first:last])
        for part in parts[2:]:
            total[first:last] += part[first:last]

    threads.in_parallel(add, threads.shares(total.size, num_threads))
    return total


def forget() -> None:
    """Give memory back that this thread's calls have kept for the next."""
    threads.forget_rooms()


def compile_all(dtype: np.dtype[Any], algorithms: Sequence[str]) -> None:
    """Have all that these algorithms need compiled, or taken from Numba's cache, by small ones."""
    tiny = Geometry(images=1, channels=1, height=3, width=3, filters=1, kernel=(2, 2))
    x, weight = np.ones((1, 1, 3, 3), dtype), np.ones((1, 1, 2, 2), dtype)
    for algorithm in algorithms:
        made = forward(tiny, x, weight, None, algorithm, 1)
        input_gradient(tiny, made, weight, algorithm, 1)
        weight_gradient(tiny, x, made, algorithm, 1)


def _padded(g: Geometry, inputs: Array, num_threads: int) -> Array:
    """The input with zeros around it, as `padding.pad` lays it out."""
    planes = g.images * g.channels
    padded = _room_for_padded(g, inputs.dtype)
    small, large = (
        inputs.reshape(planes, g.height, g.width),
        padded.reshape(planes, *_padded_shape(g)),
    )
    threads.in_parallel(
        lambda _number, first, last: padding.pad(small, g.window, large, first, last),
        threads.shares(planes, num_threads),
    )
    return padded


def _room_for_all(
    g: Geometry, ranges: list[tuple[int, int]], unit: int, dtype: np.dtype[Any]
) -> list[Array]:
    """Memory for a piece that is all of a range, and for what is made of it."""
    most = max(last - first for first, last in ranges) * unit
    return threads.rooms(len(ranges), (g.depth + g.filters // g.groups) * most, dtype)


def _padded_shape(g: Geometry) -> tuple[int, int]:
    return g.padded[0], _up(g.padded[1], g.stride[1])


def _room_for_padded(g: Geometry, dtype: np.dtype[Any]) -> Array:
    """[images, channels, padded height, padded width], and beyond its end a tile's row of zeros.

    Runs are copied in whole rows of tiles, and so what lies beyond them is read.
    """
    shape = (g.images, g.channels, *_padded_shape(g))
    size = math.prod(shape)
    room = np.empty(size + columns_of(dtype.itemsize), dtype)
    room[size:] = 0
    return room[:size].reshape(shape)


def _packed(g: Geometry, weight: Array, num_threads: int, *, is_turned: bool = False) -> Array:
    """Each group's filters as the left side of tiles: [groups, panels, depth, ROWS].

    Turned, panels are of the depth, and what is summed over are filters.
    """
    of_group = weight.reshape(g.groups, g.filters // g.groups, g.depth)
    rows, depth = of_group.shape[1:]
    if is_turned:
        rows, depth = depth, rows
    packed = np.empty((g.groups, -(-rows // ROWS), depth, ROWS), weight.dtype)
    count = packed.shape[1]

    def some(_number: int, first: int, last: int) -> None:
        for group in range(first // count, -(-last // count)):
            from_, to = max(0, first - group * count), min(count, last - group * count)
            panels.pack(of_group[group], is_turned, packed[group], from_, to)

    threads.in_parallel(some, threads.shares(g.groups * count, num_threads))
    return packed


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit

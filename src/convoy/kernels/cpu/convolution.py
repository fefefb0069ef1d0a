"""The three algorithms on NumPy arrays: forward, and both gradients.

direct      a map, a channel or a filter is one thread's
lowering    a thread's part of the batch is lowered whole
pipelined   it is in pieces that fit the L2 cache
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from convoy.kernels.cpu import cutting, direct, lowering, pipelined, threads
from convoy.kernels.cpu.compiling import Array
from convoy.kernels.cpu.cutting import up
from convoy.kernels.cpu.preparing import do_all, packing_of, padded_shape, padding_of
from convoy.kernels.cpu.tile import LEFT_ROWS, RIGHT_ROWS, ROWS, columns_of
from convoy.kernels.geometry import Geometry
from convoy.kernels.passes import DIRECT, PIPELINED


def forward(
    geometry: Geometry,
    inputs: Array,
    weight: Array,
    bias: Array | None,
    algorithm: str,
    num_threads: int,
    *,
    span: int | None = None,
    deep: int | None = None,
) -> Array:
    """The output, [images, filters, out height, out width].

    Args:
        geometry: of the convolution.
        inputs: [images, channels, height, width], contiguous, float32 or float64.
        weight: [filters, channels / groups, kernel height, kernel width], likewise.
        bias: [filters].
        algorithm: one of passes.ALGORITHMS.
        num_threads: that share the work.
        span, deep: positions and elements of the depth in a piece of `pipelined`; by the cache
            without them.
    """
    g = _near(geometry)
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
        _pipelined_forward(g, inputs, weight, added, flat, num_threads, span, deep)
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


def _pipelined_forward(
    g: Geometry,
    inputs: Array,
    weight: Array,
    bias: Array,
    outputs: Array,
    num_threads: int,
    span: int | None,
    deep: int | None,
) -> None:
    dtype, window, columns = inputs.dtype, g.window, columns_of(inputs.itemsize)
    deep = min(g.depth, deep or cutting.deep_of(g.depth, dtype.itemsize))
    span = span or cutting.span_of(deep, dtype.itemsize)
    portion = 2 * num_threads if num_threads > 1 else 1
    edges = cutting.edges(g.images * g.positions, span, columns, portion)
    counter, team = np.zeros(1, np.int64), min(num_threads, edges.size - 1)
    padded, to_pad = padding_of(g, inputs)
    packed, to_pack = packing_of(g, weight)
    do_all([to_pad, to_pack], num_threads)
    begin = np.zeros((g.groups, packed.shape[1] * ROWS), dtype)
    begin[:, : g.filters // g.groups] = bias.reshape(g.groups, -1)
    memory = threads.rooms(team, deep * up(span, columns) + ROWS * columns, dtype)
    threads.by_all(
        lambda number: pipelined.forward(
            padded, packed, begin, outputs, window, edges, counter, deep, memory[number]
        ),
        team,
    )


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
    g = _near(geometry)
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
    span = span or cutting.span_of(filters, dtype.itemsize)
    across = up(span, columns_of(dtype.itemsize))
    edges = cutting.edges(g.images, max(1, span // g.positions), 1)
    blocks = cutting.channel_blocks(g, edges.size - 1, num_threads)
    counter = np.zeros(1, np.int64)
    team = min(num_threads, (edges.size - 1) * (blocks.size - 1))
    packed, to_pack = packing_of(g, weight, is_turned=True)
    do_all([to_pack], num_threads)
    padded = np.empty((g.images, g.channels, *padded_shape(g)), dtype)
    is_same = padded.shape[2:] == (g.height, g.width) and g.stride[1] == 1
    into = np.empty((0 if is_same else g.images, g.channels, g.height, g.width), dtype)
    memory = threads.rooms(team, (filters + ROWS) * across, dtype)
    threads.by_all(
        lambda number: pipelined.input_gradient(
            flat, packed, padded, into, window, edges, blocks, counter, span, memory[number]
        ),
        team,
    )
    return padded if is_same else into


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

    Parts are added in their order: the same number of threads gives the same bits, and with
    `pipelined` any number does.

    Args:
        geometry, inputs, algorithm, num_threads, span: see `forward`.
        gradient: of the output, [images, filters, out height, out width], contiguous.
    """
    g = _near(geometry)
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
    if algorithm == PIPELINED:
        parts = _pipelined_weight_parts(g, inputs, flat, num_threads, span)
    else:
        ranges = threads.shares(g.images * g.out[0], num_threads)
        parts = np.zeros((len(ranges), g.groups, filters, g.depth), dtype)
        memory = _room_for_all(g, ranges, g.out[1], dtype)

        def whole(number: int, first: int, last: int) -> None:
            into, own = parts[number], memory[number]
            lowering.weight_gradient(inputs, flat, into, window, first, last, own)

        with threads.one_blas_thread_each():
            threads.in_parallel(whole, ranges)
    total = parts[0] if len(parts) == 1 else _total(parts.reshape(len(parts), -1), num_threads)
    return total.reshape(g.filters, g.channels // g.groups, *g.kernel)


def _pipelined_weight_parts(
    g: Geometry, inputs: Array, flat: Array, num_threads: int, span: int | None
) -> Array:
    dtype, window, filters = flat.dtype, g.window, g.filters // g.groups
    columns = columns_of(dtype.itemsize)
    edges, blocks = cutting.weight_pieces(g, dtype.itemsize, num_threads)
    span = up(span or cutting.weight_span(g, dtype.itemsize, int(edges[1])), columns)
    counter = np.zeros(1, np.int64)
    team = min(num_threads, (edges.size - 1) * (blocks.size - 1))
    parts = np.zeros((edges.size - 1, g.groups, filters, g.depth), dtype)
    padded, to_pad = padding_of(g, inputs)
    do_all([to_pad], num_threads)
    rows = up(filters, LEFT_ROWS) + RIGHT_ROWS
    memory = threads.rooms(team, rows * pipelined.row_of(span, columns) + columns, dtype)
    threads.by_all(
        lambda number: pipelined.weight_gradient(
            padded, flat, parts, window, edges, blocks, counter, span, memory[number]
        ),
        team,
    )
    return parts


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


def _room_for_all(
    g: Geometry, ranges: list[tuple[int, int]], unit: int, dtype: np.dtype[Any]
) -> list[Array]:
    """Memory for a piece that is all of a range, and for what is made of it."""
    most = max(last - first for first, last in ranges) * unit
    return threads.rooms(len(ranges), (g.depth + g.filters // g.groups) * most, dtype)


def _near(g: Geometry) -> Geometry:
    """The same, without strides beyond the padded input: rows would be as long as they are."""
    stride = min(g.stride[0], g.padded[0]), min(g.stride[1], g.padded[1])
    return g if stride == g.stride else replace(g, stride=stride)

"""Four ways for a GPU's threads to share the work of a convolution, each better than the last.

    naive           a thread makes one output and reads all it needs from memory
    shared-input    a block's threads first bring a tile of the input, a channel at a time, into
                    shared memory, from which each makes its output of one filter
    shared-both     and the same channel of several filters, whose outputs a thread makes one
                    after another of the tile: it is read once for all of them
    blocked         a tile of the product, filters x positions, where each thread holds a small
                    rectangle of results in registers; what is multiplied is lowered on its way
                    into shared memory, and nowhere else

        positions                      one block, blocked:
      ┌───────┬───────┐                 step through depth: ▓ weights [filters, DEPTH]
      │ block │       │ filters                             ▓ lowered [DEPTH, positions]
      ├───────┼───────┤                 each thread: rows x columns sums += ▓ x ▓
      │       │       │
      └───────┴───────┘

Source: U. Chavan and D. Kulkarni, "Parallelization of deep convolutional neural network" (2020),
for the first three; the register tile is V. Volkov and J. Demmel's, "Benchmarking GPUs to tune
dense linear algebra" (SC 2008), section 4.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda, float32, float64

from convoy.kernels.geometry import Window

DTYPES = {"float32": float32, "float64": float64}


class Tile(NamedTuple):
    """The shape of a block of `blocked`."""

    filters: int
    positions: int
    depth: int
    """How much of the depth is in shared memory at once."""
    rows: int
    """Results of one thread: filters."""
    columns: int
    """And positions."""

    @property
    def threads(self) -> int:
        """Of a block."""
        return (self.filters // self.rows) * (self.positions // self.columns)


@cache
def naive() -> Any:
    """A thread makes one output."""

    @cuda.jit
    def kernel(
        inputs: Any, weight: Any, bias: Any, outputs: Any, window: Window, groups: int
    ) -> None:
        images, filters, rows, columns = outputs.shape
        number = cuda.grid(1)
        if number >= images * filters * rows * columns:
            return
        ox = number % columns
        oy = number // columns % rows
        row = number // (columns * rows) % filters
        image = number // (columns * rows * filters)
        above = row // (filters // groups) * window.channels
        total = bias[row]
        for channel in range(window.channels):
            for ky in range(window.kernel_y):
                y = oy * window.stride_y - window.padding_y + ky * window.dilation_y
                if y < 0 or y >= window.height:
                    continue
                for kx in range(window.kernel_x):
                    x = ox * window.stride_x - window.padding_x + kx * window.dilation_x
                    if 0 <= x < window.width:
                        total += weight[row, channel, ky, kx] * inputs[image, above + channel, y, x]
        outputs[image, row, oy, ox] = total

    return kernel


@cache
def shared_input(dtype: str) -> Any:
    """A block makes a tile of one filter's output; it is launched with the tile as its shape."""
    kind = DTYPES[dtype]

    @cuda.jit
    def kernel(
        inputs: Any, weight: Any, bias: Any, outputs: Any, window: Window, groups: int
    ) -> None:
        tile = cuda.shared.array(0, kind)
        filters = outputs.shape[1]
        row = cuda.blockIdx.z % filters
        image = cuda.blockIdx.z // filters
        above = row // (filters // groups) * window.channels
        first_y = cuda.blockIdx.y * cuda.blockDim.y
        first_x = cuda.blockIdx.x * cuda.blockDim.x
        high = (cuda.blockDim.y - 1) * window.stride_y
        high += window.dilation_y * (window.kernel_y - 1) + 1
        wide = (cuda.blockDim.x - 1) * window.stride_x
        wide += window.dilation_x * (window.kernel_x - 1) + 1
        me = cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        everybody = cuda.blockDim.x * cuda.blockDim.y
        oy, ox = first_y + cuda.threadIdx.y, first_x + cuda.threadIdx.x
        total = bias[row]
        for channel in range(window.channels):
            for at in range(me, high * wide, everybody):
                y = first_y * window.stride_y - window.padding_y + at // wide
                x = first_x * window.stride_x - window.padding_x + at % wide
                if 0 <= y < window.height and 0 <= x < window.width:
                    tile[at] = inputs[image, above + channel, y, x]
                else:
                    tile[at] = 0
            cuda.syncthreads()
            for ky in range(window.kernel_y):
                line = (cuda.threadIdx.y * window.stride_y + ky * window.dilation_y) * wide
                line += cuda.threadIdx.x * window.stride_x
                for kx in range(window.kernel_x):
                    total += weight[row, channel, ky, kx] * tile[line + kx * window.dilation_x]
            cuda.syncthreads()
        if oy < outputs.shape[2] and ox < outputs.shape[3]:
            outputs[image, row, oy, ox] = total

    return kernel


@cache
def shared_both(dtype: str, together: int) -> Any:
    """Likewise, of `together` filters at once, whose weights are in shared memory too."""
    kind = DTYPES[dtype]

    @cuda.jit
    def kernel(
        inputs: Any, weight: Any, bias: Any, outputs: Any, window: Window, groups: int
    ) -> None:
        shared = cuda.shared.array(0, kind)
        totals = cuda.local.array(together, kind)
        of_group = outputs.shape[1] // groups
        bunches = (of_group + together - 1) // together
        bunch = cuda.blockIdx.z % bunches
        group = cuda.blockIdx.z // bunches % groups
        image = cuda.blockIdx.z // (bunches * groups)
        first = group * of_group + bunch * together
        count = min(together, of_group - bunch * together)
        above = group * window.channels
        first_y = cuda.blockIdx.y * cuda.blockDim.y
        first_x = cuda.blockIdx.x * cuda.blockDim.x
        high = (cuda.blockDim.y - 1) * window.stride_y
        high += window.dilation_y * (window.kernel_y - 1) + 1
        wide = (cuda.blockDim.x - 1) * window.stride_x
        wide += window.dilation_x * (window.kernel_x - 1) + 1
        size = window.kernel_y * window.kernel_x
        factors = high * wide  # where the weights begin
        me = cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        everybody = cuda.blockDim.x * cuda.blockDim.y
        oy, ox = first_y + cuda.threadIdx.y, first_x + cuda.threadIdx.x
        for number in range(together):
            totals[number] = 0
        for channel in range(window.channels):
            for at in range(me, high * wide, everybody):
                y = first_y * window.stride_y - window.padding_y + at // wide
                x = first_x * window.stride_x - window.padding_x + at % wide
                if 0 <= y < window.height and 0 <= x < window.width:
                    shared[at] = inputs[image, above + channel, y, x]
                else:
                    shared[at] = 0
            for at in range(me, count * size, everybody):
                inside = at % size
                shared[factors + at] = weight[
                    first + at // size,
                    channel,
                    inside // window.kernel_x,
                    inside % window.kernel_x,
                ]
            cuda.syncthreads()
            for ky in range(window.kernel_y):
                line = (cuda.threadIdx.y * window.stride_y + ky * window.dilation_y) * wide
                line += cuda.threadIdx.x * window.stride_x
                for kx in range(window.kernel_x):
                    value = shared[line + kx * window.dilation_x]
                    factor = factors + ky * window.kernel_x + kx
                    for number in range(count):
                        totals[number] += shared[factor + number * size] * value
            cuda.syncthreads()
        if oy < outputs.shape[2] and ox < outputs.shape[3]:
            for number in range(count):
                outputs[image, first + number, oy, ox] = totals[number] + bias[first + number]

    return kernel


@cache
def blocked(dtype: str, tile: Tile) -> Any:
    """A block makes `tile.filters` x `tile.positions` of a group's product."""
    kind = DTYPES[dtype]
    tall, broad, deep, rows, columns = tile
    across = broad // columns
    everybody = tile.threads

    @cuda.jit
    def kernel(
        inputs: Any, weight: Any, bias: Any, outputs: Any, window: Window, groups: int
    ) -> None:
        left = cuda.shared.array((deep, tall), kind)
        right = cuda.shared.array((deep, broad), kind)
        sums = cuda.local.array((rows, columns), kind)
        images, filters, _, out_x = outputs.shape
        of_group = filters // groups
        of_image = outputs.shape[2] * out_x
        positions = images * of_image
        taps = window.kernel_y * window.kernel_x
        depth = window.channels * taps
        group = cuda.blockIdx.z
        first_filter = cuda.blockIdx.y * tall
        first_position = cuda.blockIdx.x * broad
        me = cuda.threadIdx.x
        my_row, my_column = me // across * rows, me % across * columns
        for i in range(rows):
            for j in range(columns):
                sums[i, j] = 0
        for start in range(0, depth, deep):
            for at in range(me, deep * tall, everybody):
                inner, row = at % deep, at // deep
                element, number = start + inner, first_filter + row
                if element < depth and number < of_group:
                    channel, tap = element // taps, element % taps
                    left[inner, row] = weight[
                        group * of_group + number,
                        channel,
                        tap // window.kernel_x,
                        tap % window.kernel_x,
                    ]
                else:
                    left[inner, row] = 0
            for at in range(me, deep * broad, everybody):
                inner, column = at // broad, at % broad
                element, position = start + inner, first_position + column
                value = kind(0)
                if element < depth and position < positions:
                    channel, tap = element // taps, element % taps
                    image, inside = position // of_image, position % of_image
                    y = inside // out_x * window.stride_y - window.padding_y
                    y += tap // window.kernel_x * window.dilation_y
                    x = inside % out_x * window.stride_x - window.padding_x
                    x += tap % window.kernel_x * window.dilation_x
                    if 0 <= y < window.height and 0 <= x < window.width:
                        value = inputs[image, group * window.channels + channel, y, x]
                right[inner, column] = value
            cuda.syncthreads()
            for inner in range(deep):
                for i in range(rows):
                    factor = left[inner, my_row + i]
                    for j in range(columns):
                        sums[i, j] += factor * right[inner, my_column + j]
            cuda.syncthreads()
        for i in range(rows):
            number = first_filter + my_row + i
            if number < of_group:
                for j in range(columns):
                    position = first_position + my_column + j
                    if position < positions:
                        image, inside = position // of_image, position % of_image
                        row = group * of_group + number
                        outputs[image, row, inside // out_x, inside % out_x] = (
                            sums[i, j] + bias[row]
                        )

    return kernel

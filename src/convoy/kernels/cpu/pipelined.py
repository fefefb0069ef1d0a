"""Lowering in pieces that fit the L2 cache, straight into the order in which products read them.

    positions        0 ............ SPAN ............ 2 SPAN
    depth  0         ┌─ piece ─┐    ┌─ piece ─┐          a piece: DEEP of the depth, SPAN positions
           DEEP      ├─ piece ─┤    ├─ piece ─┤          its product with the filters adds to the
           2 DEEP    └─ piece ─┘    └─ piece ─┘          output, tile by tile (`tile.py`)

    one core         lower 0 │ multiply 0 │ lower 1 │ multiply 1 │ ...      by locality alone
    two: a           lower 0    │ multiply 0 │ lower 1    │ multiply 1      each its own positions:
         b           lower 2  │ multiply 2 │ lower 3  │ multiply 3          one lowers beside the
                                                                            other's product
What is lowered is written once, in the cache, and read from there by every tile of filters; a
library's product would write it once more, into the order that it likes. A piece holds a part of
the depth too, so that layers with large weights have pieces of the same size. The weights' gradient
sums over positions, and lowers a few elements of the depth at a time, in rows; the input's makes
pieces, and adds them to the image.

Source: K. Sakiyama, S. Kato, Y. Ishikawa, A. Hori and A. Monrroy, "Deep learning on large-scale
muticore clusters" (so spelt; SBAC-PAD 2018), who overlap lowering with multiplication, piece by
piece; blocks and their order are K. Goto and R. van de Geijn's (`tile.py`).
"""

from __future__ import annotations

import numpy as np

from convoy.kernels.cpu.compiling import Array, compiled
from convoy.kernels.cpu.padding import offsets, runs_of, taps
from convoy.kernels.cpu.panels import (
    gather_panels,
    gather_rows,
    lower_panels,
    lower_rows,
    spread_row,
)
from convoy.kernels.cpu.tile import (
    LEFT_ROWS,
    RIGHT_ROWS,
    ROWS,
    multiply_rows,
    multiply_tile,
)
from convoy.kernels.geometry import Window

_u = np.uint64  # indices without a sign: see pieces.py


@compiled
def _add_tile(
    left: Array,
    left_at: int,
    right: Array,
    right_at: int,
    depth: int,
    into: Array,
    into_at: int,
    into_row: int,
    rows: int,
    run: int,
    columns: int,
    spare: Array,
) -> None:
    """A tile of which `rows` x `run` are there: others are made beside, and left."""
    if rows == ROWS and run == columns:
        multiply_tile(left, left_at, right, right_at, depth, into, into_at, into_row)
        return
    for at in range(ROWS * columns):
        spare[at] = 0
    multiply_tile(left, left_at, right, right_at, depth, spare, 0, columns)
    for row in range(rows):
        for x in range(run):
            into[into_at + row * into_row + x] += spare[row * columns + x]


@compiled
def forward(
    padded: Array,
    packed: Array,
    bias: Array,
    outputs: Array,
    window: Window,
    first: int,
    last: int,
    span: int,
    deep: int,
    memory: Array,
) -> None:
    """The output at positions from `first` to `last`, counted through all images.

    Args:
        padded: [images, channels, padded height, padded width].
        packed: of each group's filters, [groups, panels, depth, ROWS].
        bias: [filters].
        outputs: [images, filters, positions], to be written.
        window: of a group.
        first, last: positions.
        span, deep: positions and elements of the depth in a piece.
        memory: room for a piece, of positions rounded up to a tile's, and for two tiles.
    """
    columns = 64 // memory.itemsize
    filters, of_image = outputs.shape[1], outputs.shape[2]
    groups = packed.shape[0]
    of_group = filters // groups
    wide = padded.shape[3]
    plane = padded.shape[2] * wide
    tap = taps(window, wide, plane)
    off = np.empty(span, np.int64)
    flat, out, weights = (
        padded.reshape(padded.size),
        outputs.reshape(outputs.size),
        packed.reshape(packed.size),
    )
    spare = memory[memory.size - ROWS * columns :]
    panel = tap.size * ROWS
    for start in range(first, last, span):
        count = min(span, last - start)
        offsets(window, start, count, wide, padded.shape[1] * plane, off)
        for group in range(groups):
            base = group * window.channels * plane
            _begin(out, bias, group * of_group, of_group, filters, of_image, start, count)
            for shallow in range(0, tap.size, deep):
                steps = min(deep, tap.size - shallow)
                lower_panels(flat, base, tap[shallow : shallow + steps], off, count, memory)
                for number in range(packed.shape[1]):
                    row = number * ROWS
                    rows = min(ROWS, of_group - row)
                    left = (group * packed.shape[1] + number) * panel + shallow * ROWS
                    for column in range(0, count, columns):
                        done = 0
                        run = min(columns, count - column)
                        image, at = divmod(start + column, of_image)
                        to = (image * filters + group * of_group + row) * of_image + at
                        if at + run <= of_image:
                            _add_tile(
                                weights, left, memory, column * steps, steps,
                                out, to, of_image, rows, run, columns, spare,
                            )  # fmt: skip
                            continue
                        for x in range(ROWS * columns):
                            spare[x] = 0
                        multiply_tile(
                            weights, left, memory, column * steps, steps, spare, 0, columns
                        )
                        while done < run:  # positions of several images
                            part = min(of_image - at, run - done)
                            to = (image * filters + group * of_group + row) * of_image + at
                            for inner in range(rows):
                                for x in range(part):
                                    out[to + inner * of_image + x] += spare[
                                        inner * columns + done + x
                                    ]
                            done += part
                            image += 1
                            at = 0


@compiled
def _begin(
    out: Array,
    bias: Array,
    first_filter: int,
    count_filters: int,
    filters: int,
    of_image: int,
    start: int,
    count: int,
) -> None:
    """Write the bias where products are added to it."""
    done = 0
    image, at = divmod(start, of_image)
    while done < count:
        part = min(of_image - at, count - done)
        for row in range(first_filter, first_filter + count_filters):
            d, value = _u((image * filters + row) * of_image + at), bias[row]
            for x in range(_u(part)):
                out[d + x] = value
        done += part
        image += 1
        at = 0


@compiled
def weight_gradient(
    padded: Array,
    gradient: Array,
    into: Array,
    window: Window,
    first: int,
    last: int,
    span: int,
    memory: Array,
) -> None:
    """Add to the weights' gradient what positions from `first` to `last` contribute.

    Args:
        padded, window, first, last: see `forward`.
        gradient: of the output, [images, filters, positions].
        into: [groups, filters of a group, depth], to be added to.
        span: positions in a piece, which has RIGHT_ROWS elements of the depth: a multiple of a
            tile's columns.
        memory: room for (filters of a group, rounded up to LEFT_ROWS, + RIGHT_ROWS + 1) x span.
    """
    groups, of_group, depth = into.shape
    filters, of_image = gradient.shape[1], gradient.shape[2]
    wide = padded.shape[3]
    plane = padded.shape[2] * wide
    tap = taps(window, wide, plane)
    off, begins = np.empty(span, np.int64), np.empty(span + 1, np.int64)
    flat, given, sums = (
        padded.reshape(padded.size),
        gradient.reshape(gradient.size),
        into.reshape(into.size),
    )
    width = 32 // memory.itemsize
    part = memory[(RIGHT_ROWS + 1) * span :]
    made = np.empty(LEFT_ROWS * RIGHT_ROWS, memory.dtype)
    for start in range(first, last, span):
        count = min(span, last - start)
        row = -(-count // width) * width
        offsets(window, start, count, wide, padded.shape[1] * plane, off)
        runs = runs_of(off, 0, count, begins)
        for group in range(groups):
            base = group * window.channels * plane
            gather_rows(
                given, group * of_group, of_group, filters, of_image, start, count, row, part
            )
            for shallow in range(0, depth, RIGHT_ROWS):
                some = min(RIGHT_ROWS, depth - shallow)
                lower_rows(
                    flat, base, tap[shallow : shallow + some], off, begins, runs, row, memory
                )
                for number in range(0, of_group, LEFT_ROWS):
                    to = (group * of_group + number) * depth + shallow
                    rows = min(LEFT_ROWS, of_group - number)
                    if rows == LEFT_ROWS and some == RIGHT_ROWS:
                        multiply_rows(part, number * row, row, memory, 0, row, row, sums, to, depth)
                        continue
                    made[:] = 0
                    multiply_rows(part, number * row, row, memory, 0, row, row, made, 0, RIGHT_ROWS)
                    for inner in range(rows):
                        for x in range(some):
                            sums[to + inner * depth + x] += made[inner * RIGHT_ROWS + x]


@compiled
def input_gradient(
    gradient: Array,
    packed: Array,
    padded: Array,
    window: Window,
    first: int,
    last: int,
    span: int,
    memory: Array,
) -> None:
    """Add to the padded input's gradient what positions from `first` to `last` contribute.

    Args:
        gradient: of the output, [images, filters, positions].
        packed: of each group's filters, turned: [groups, panels of the depth, filters, ROWS].
        padded: [images, channels, padded height, padded width], to be added to.
        window, first, last, span: see `forward`; positions of one image are one thread's.
        memory: room for a group's gradient at a piece's positions, rounded up to a tile's, and for
            ROWS rows of a piece.
    """
    columns = 64 // memory.itemsize
    groups, panels, of_group = packed.shape[0], packed.shape[1], packed.shape[2]
    filters, of_image = gradient.shape[1], gradient.shape[2]
    wide = padded.shape[3]
    plane = padded.shape[2] * wide
    tap = taps(window, wide, plane)
    off, begins = np.empty(span, np.int64), np.empty(span + 1, np.int64)
    flat, given, weights = (
        padded.reshape(padded.size),
        gradient.reshape(gradient.size),
        packed.reshape(packed.size),
    )
    across = -(-span // columns) * columns
    part = memory[: of_group * across]
    made = memory[part.size : part.size + ROWS * across]
    for start in range(first, last, span):
        count = min(span, last - start)
        offsets(window, start, count, wide, padded.shape[1] * plane, off)
        runs = runs_of(off, 0, count, begins)
        for group in range(groups):
            base = group * window.channels * plane
            gather_panels(
                given, group * of_group, of_group, filters, of_image, start, count, columns, part
            )
            for number in range(panels):
                made[:] = 0
                left = (group * panels + number) * of_group * ROWS
                for column in range(0, count, columns):
                    multiply_tile(
                        weights, left, part, column * of_group, of_group, made, column, across
                    )
                first_tap = number * ROWS
                for row in range(min(ROWS, tap.size - first_tap)):
                    to = base + tap[first_tap + row]
                    spread_row(flat, to, off, begins, runs, made, row * across)

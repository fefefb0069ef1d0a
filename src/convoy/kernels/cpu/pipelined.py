"""Lowering in pieces that fit the L2 cache, straight into the order in which products read them.

    positions        0 .... span .... 2 span
    depth  0         ┌─ piece ─┬─ piece ─┐           a piece: some positions, all of the depth, or
           :         │    0    │    1    │           as much of it as fits; its product with the
           depth     └─────────┴─────────┘           filters is added to the output, tile by tile

    one core         lower 0 │ multiply 0 │ lower 1 │ multiply 1 │ ...      by locality alone
    two: a           lower 0    │ multiply 0 │ lower 2    │ multiply 2      whoever is free takes
         b           lower 1  │ multiply 1 │ lower 3  │ multiply 3          the next: one lowers
                                                                            while others multiply
What is lowered is written once, in the cache, and read from there by every tile of filters; a
library's product would write it once more, into the order that it likes. Layers with large weights
have pieces of few positions, so that sums over all of the depth stay in registers. The weights'
gradient sums over positions, and lowers a few elements of the depth at a time, in rows; the input's
makes pieces, and adds them to the image.

Source: K. Sakiyama, S. Kato, Y. Ishikawa, A. Hori and A. Monrroy, "Deep learning on large-scale
muticore clusters" (so spelt; SBAC-PAD 2018), who overlap lowering with multiplication, piece by
piece; blocks and their order are K. Goto and R. van de Geijn's (`tile.py`).
"""

from __future__ import annotations

import numpy as np

from convoy.kernels.cpu.compiling import Array, compiled
from convoy.kernels.cpu.cutting import take
from convoy.kernels.cpu.padding import crop, offsets, runs_of, taps
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
    add_run,
    copy_run,
    multiply_rows,
    multiply_tile,
)
from convoy.kernels.geometry import Window


@compiled
def forward(
    padded: Array,
    packed: Array,
    bias: Array,
    outputs: Array,
    window: Window,
    edges: Array,
    counter: Array,
    deep: int,
    memory: Array,
) -> None:
    """The output at the pieces that this thread takes.

    Args:
        padded: [images, channels, padded height, padded width].
        packed: of each group's filters, [groups, panels, depth, ROWS].
        bias: [groups, panels, ROWS].
        outputs: [images, filters, positions], to be written.
        window: of a group.
        edges: where pieces begin, in positions counted through all images, and the last one's end.
        counter: of pieces that have been taken, shared by all threads: int64[1].
        deep: elements of the depth in a piece.
        memory: room for a piece, of positions rounded up to a tile's, and for a tile.
    """
    columns = 64 // memory.itemsize
    filters, of_image = outputs.shape[1], outputs.shape[2]
    groups, panels = packed.shape[0], packed.shape[1]
    of_group = filters // groups
    wide = padded.shape[3]
    plane = padded.shape[2] * wide
    tap = taps(window, wide, plane)
    most = 0
    for piece in range(edges.size - 1):
        most = max(most, edges[piece + 1] - edges[piece])
    off = np.empty(most, np.int64)
    flat, out, weights, begin = (
        padded.reshape(padded.size),
        outputs.reshape(outputs.size),
        packed.reshape(packed.size),
        bias.reshape(bias.size),
    )
    nothing = np.zeros(ROWS, memory.dtype)
    beside = memory[memory.size - ROWS * columns :]
    while True:
        taken = take(counter)
        if taken >= edges.size - 1:
            return
        start = edges[taken]
        count = edges[taken + 1] - start
        offsets(window, start, count, wide, padded.shape[1] * plane, off)
        for group in range(groups):
            base = group * window.channels * plane
            for shallow in range(0, tap.size, deep):
                steps = min(deep, tap.size - shallow)
                adds = shallow > 0
                lower_panels(flat, base, tap[shallow : shallow + steps], off, count, memory)
                for number in range(panels):
                    row = number * ROWS
                    rows = min(ROWS, of_group - row)
                    which = group * panels + number
                    left = (which * tap.size + shallow) * ROWS
                    for column in range(0, count, columns):
                        run = min(columns, count - column)
                        image, at = divmod(start + column, of_image)
                        to = (image * filters + group * of_group + row) * of_image + at
                        right = column * steps
                        if rows == ROWS and run == columns and at + run <= of_image:
                            multiply_tile(
                                weights, left, memory, right, steps, begin, which * ROWS, adds,
                                out, to, of_image,
                            )  # fmt: skip
                            continue
                        own, own_at = (nothing, 0) if adds else (begin, which * ROWS)
                        multiply_tile(
                            weights, left, memory, right, steps, own, own_at, False,
                            beside, 0, columns,
                        )  # fmt: skip
                        done = 0
                        while done < run:  # positions of several images
                            part = min(of_image - at, run - done)
                            _move(beside, done, columns, rows, part, adds, out, to, of_image)
                            done += part
                            to += filters * of_image - at
                            at = 0


@compiled
def _move(
    tile: Array,
    first: int,
    columns: int,
    rows: int,
    run: int,
    adds: bool,
    out: Array,
    to: int,
    of_image: int,
) -> None:
    """Write a part of a tile that was made beside the output, or add it to what is there."""
    for row in range(rows):
        from_, into = row * columns + first, to + row * of_image
        if adds:
            add_run(tile, from_, out, into, run)
        else:
            copy_run(tile, from_, out, into, run)


@compiled
def weight_gradient(
    padded: Array,
    gradient: Array,
    parts: Array,
    window: Window,
    edges: Array,
    blocks: Array,
    counter: Array,
    span: int,
    memory: Array,
) -> None:
    """Add to parts of the weights' gradient what the pieces contribute that this thread takes.

    Args:
        padded, window, counter: see `forward`.
        gradient: of the output, [images, filters, positions].
        parts: [parts of the positions, groups, filters of a group, depth], to be added to.
        edges: where parts of the positions begin, and the last one's end.
        blocks: where blocks of the depth begin, in RIGHT_ROWS counted through groups, likewise.
        span: positions that are lowered at a time: a multiple of a tile's columns.
        memory: room for (filters of a group, rounded up to LEFT_ROWS, + RIGHT_ROWS) rows of
            `row_of(span)`, and for a tile's row.
    """
    _, groups, of_group, depth = parts.shape
    filters, of_image = gradient.shape[1], gradient.shape[2]
    wide = padded.shape[3]
    plane = padded.shape[2] * wide
    tap = taps(window, wide, plane)
    off, begins = np.empty(span, np.int64), np.empty(span + 1, np.int64)
    flat, given, sums = (
        padded.reshape(padded.size),
        gradient.reshape(gradient.size),
        parts.reshape(parts.size),
    )
    columns = 64 // memory.itemsize
    of_depth = -(-depth // RIGHT_ROWS)
    left = memory[RIGHT_ROWS * row_of(span, columns) + columns :]
    made = np.empty(LEFT_ROWS * RIGHT_ROWS, memory.dtype)
    while True:
        block, number = divmod(take(counter), edges.size - 1)
        if block >= blocks.size - 1:
            return
        last = edges[number + 1]
        for start in range(edges[number], last, span):
            count = min(span, last - start)
            row = row_of(count, columns)
            length = -(-count // (columns // 2)) * (columns // 2)
            offsets(window, start, count, wide, padded.shape[1] * plane, off)
            runs = runs_of(off, 0, count, begins)
            gathered = -1
            for which in range(blocks[block], blocks[block + 1]):
                group, shallow = which // of_depth, which % of_depth * RIGHT_ROWS
                if group != gathered:
                    gather_rows(
                        given, group * of_group, of_group, filters, of_image, start, count, length,
                        row, left,
                    )  # fmt: skip
                    gathered = group
                some = min(RIGHT_ROWS, depth - shallow)
                base = group * window.channels * plane
                under = tap[shallow : shallow + some]
                lower_rows(flat, base, under, off, begins, runs, length, row, memory)
                for first in range(0, of_group, LEFT_ROWS):
                    to = ((number * groups + group) * of_group + first) * depth + shallow
                    rows = min(LEFT_ROWS, of_group - first)
                    at = first * row
                    if rows == LEFT_ROWS and some == RIGHT_ROWS:
                        multiply_rows(left, at, row, memory, 0, row, length, sums, to, depth)
                        continue
                    made[:] = 0
                    multiply_rows(left, at, row, memory, 0, row, length, made, 0, RIGHT_ROWS)
                    for inner in range(rows):
                        for x in range(some):
                            sums[to + inner * depth + x] += made[inner * RIGHT_ROWS + x]


@compiled
def input_gradient(
    gradient: Array,
    packed: Array,
    padded: Array,
    into: Array,
    window: Window,
    edges: Array,
    blocks: Array,
    counter: Array,
    span: int,
    memory: Array,
) -> None:
    """The input's gradient at the pieces that this thread takes: some images, some channels.

    Args:
        gradient: of the output, [images, filters, positions].
        packed: of each group's filters, turned: [groups, panels of the depth, filters, ROWS].
        padded: [images, channels, padded height, padded width], to be written.
        into: [images, channels, height, width], to be written; of no images where `padded` is it.
        window, counter: see `forward`.
        edges: where ranges of images begin, and the last one's end.
        blocks: where blocks of panels begin, counted through groups, likewise; each of channels.
        span: positions of a piece of which a product is made at a time.
        memory: room for a group's gradient at a piece's positions, rounded up to a tile's, and for
            ROWS rows of a piece.
    """
    columns = 64 // memory.itemsize
    panels, of_group = packed.shape[1], packed.shape[2]
    filters, of_image = gradient.shape[1], gradient.shape[2]
    high, wide = padded.shape[2], padded.shape[3]
    plane, channels = high * wide, padded.shape[1]
    tap = taps(window, wide, plane)
    off, begins = np.empty(span, np.int64), np.empty(span + 1, np.int64)
    flat, given, weights = (
        padded.reshape(padded.size),
        gradient.reshape(gradient.size),
        packed.reshape(packed.size),
    )
    planes = padded.reshape(padded.shape[0] * channels, high, wide)
    cropped = into.reshape(into.shape[0] * channels, window.height, window.width)
    across = -(-span // columns) * columns
    part = memory[: of_group * across]
    made = memory[part.size : part.size + ROWS * across]
    nothing = np.zeros(ROWS, memory.dtype)
    while True:
        block, number = divmod(take(counter), edges.size - 1)
        if block >= blocks.size - 1:
            return
        first_image, last_image = edges[number], edges[number + 1]
        first_channel = _channel(blocks[block], panels, window)
        last_channel = _channel(blocks[block + 1], panels, window)
        for image in range(first_image, last_image):
            planes[image * channels + first_channel : image * channels + last_channel] = 0
        last = last_image * of_image
        for start in range(first_image * of_image, last, span):
            count = min(span, last - start)
            offsets(window, start, count, wide, channels * plane, off)
            runs = runs_of(off, 0, count, begins)
            gathered = -1
            for which in range(blocks[block], blocks[block + 1]):
                group, inner = which // panels, which % panels
                if group != gathered:
                    gather_panels(
                        given, group * of_group, of_group, filters, of_image, start, count,
                        columns, part,
                    )  # fmt: skip
                    gathered = group
                left = which * of_group * ROWS
                for column in range(0, count, columns):
                    multiply_tile(
                        weights, left, part, column * of_group, of_group, nothing, 0, False,
                        made, column, across,
                    )  # fmt: skip
                base = group * window.channels * plane
                first_tap = inner * ROWS
                for row in range(min(ROWS, tap.size - first_tap)):
                    to = base + tap[first_tap + row]
                    spread_row(flat, to, off, begins, runs, made, row * across)
        if into.size:
            for image in range(first_image, last_image):
                from_, to = image * channels + first_channel, image * channels + last_channel
                crop(planes, window, cropped, from_, to)


@compiled
def _channel(which: int, panels: int, window: Window) -> int:
    """The channel with which a panel begins, both counted through groups."""
    group, inner = which // panels, which % panels
    return group * window.channels + inner * ROWS // (window.kernel_y * window.kernel_x)


@compiled
def row_of(count: int, columns: int) -> int:
    """What a row takes of which `count` are there: an odd number of lines.

    Else rows' beginnings share a few places of the L1 cache, and drive one another out.
    """
    return (-(-count // columns) | 1) * columns

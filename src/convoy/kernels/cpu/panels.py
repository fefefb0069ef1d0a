"""What products read, in the order in which they read it.

panels of positions   [panels, depth, a tile's columns]    the right side of `multiply_tile`
panels of filters     [panels, depth, ROWS]                its left side
rows                  [filters or depth, positions]        both sides of `multiply_rows`
"""

from __future__ import annotations

import numpy as np

from convoy.kernels.cpu.compiling import Array, compiled
from convoy.kernels.cpu.padding import runs_of
from convoy.kernels.cpu.tile import LEFT_ROWS, ROWS, add_run, copy_line, copy_run


@compiled
def _copy(flat: Array, start: int, piece: Array, at: int, run: int, columns: int) -> None:
    """A run, in whole rows of a tile: what is written beyond its end is written over later."""
    for first in range(0, run, columns):
        copy_line(flat, start + first, piece, at + first)


@compiled
def lower_panels(flat: Array, base: int, tap: Array, off: Array, count: int, piece: Array) -> None:
    """Panels of a tile's columns: [panels, taps, columns]; what is beyond `count` is anything."""
    columns, deep = 64 // piece.itemsize, tap.size
    begins = np.empty(columns + 1, np.int64)
    for first in range(0, count, columns):
        at = first * deep
        runs = runs_of(off, first, min(columns, count - first), begins)
        if runs == 1:
            start = base + off[first]
            for step in range(deep):
                copy_line(flat, start + tap[step], piece, at)
                at += columns
        else:
            for step in range(deep):
                start = base + tap[step]
                for number in range(runs):
                    begin = begins[number]
                    copy_line(flat, start + off[first + begin], piece, at + begin)
                at += columns


@compiled
def lower_rows(
    flat: Array,
    base: int,
    tap: Array,
    off: Array,
    begins: Array,
    runs: int,
    length: int,
    row: int,
    piece: Array,
) -> None:
    """Rows of positions: [taps, row], with zeros from the last position to `length`."""
    count, columns = begins[runs], 64 // piece.itemsize
    for step in range(tap.size):
        start, at = base + tap[step], step * row
        for number in range(runs):
            begin = begins[number]
            run = begins[number + 1] - begin
            _copy(flat, start + off[begin], piece, at + begin, run, columns)
        for x in range(at + count, at + length):
            piece[x] = 0


@compiled
def spread_row(
    flat: Array, base: int, off: Array, begins: Array, runs: int, made: Array, at: int
) -> None:
    """Add a row of a piece to where it was lowered from."""
    for number in range(runs):
        begin = begins[number]
        add_run(made, at + begin, flat, base + off[begin], begins[number + 1] - begin)


@compiled
def pack(matrix: Array, is_turned: bool, into: Array, first: int, last: int) -> None:
    """A matrix in the order in which tiles read their left side: these panels of it.

    Args:
        matrix: [rows, depth], or [depth, rows] if it is turned.
        is_turned: see there.
        into: [ROWS-wide panels, depth, ROWS], to be written; zeros beyond the last row.
        first, last: of the panels; the last one exclusive.
    """
    rows, depth = matrix.shape
    if is_turned:
        depth, rows = matrix.shape
    for panel in range(first, last):
        for step in range(depth):
            for inner in range(ROWS):
                row = panel * ROWS + inner
                if row >= rows:
                    into[panel, step, inner] = 0
                elif is_turned:
                    into[panel, step, inner] = matrix[step, row]
                else:
                    into[panel, step, inner] = matrix[row, step]


@compiled
def gather_panels(
    flat: Array,
    first_filter: int,
    of_group: int,
    filters: int,
    of_image: int,
    start: int,
    count: int,
    columns: int,
    into: Array,
) -> None:
    """A group's gradient at `count` positions: [panels, filters, columns]."""
    for row in range(of_group):
        image, at = divmod(start, of_image)
        for first in range(0, count, columns):
            run = min(columns, count - first)
            d = first * of_group + row * columns
            s = (image * filters + first_filter + row) * of_image + at
            if run == columns and at + run <= of_image:
                copy_line(flat, s, into, d)
                at += run
                continue
            done = 0
            while done < run:
                if at == of_image:
                    at = 0
                    image += 1
                part = min(of_image - at, run - done)
                s = (image * filters + first_filter + row) * of_image + at
                copy_run(flat, s, into, d + done, part)
                done += part
                at += part


@compiled
def gather_rows(
    flat: Array,
    first_filter: int,
    of_group: int,
    filters: int,
    of_image: int,
    start: int,
    count: int,
    length: int,
    row: int,
    into: Array,
) -> None:
    """The same as it is, in rows `row` apart, with zeros to `length` and after the last filter."""
    for number in range(-(-of_group // LEFT_ROWS) * LEFT_ROWS):
        at = number * row
        done = 0
        if number < of_group:
            image, inside = divmod(start, of_image)
            while done < count:
                part = min(of_image - inside, count - done)
                s = (image * filters + first_filter + number) * of_image + inside
                copy_run(flat, s, into, at + done, part)
                done += part
                image += 1
                inside = 0
        for x in range(at + done, at + length):
            into[x] = 0

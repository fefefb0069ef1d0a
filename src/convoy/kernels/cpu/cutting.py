"""How the work of `pipelined` is cut into pieces, and how threads take them, one after another.

    a grid             blocks of filters, channels or elements of the depth
                     ┌──────────┬─────┬──┐
    positions        │    0     │  2  │ 4│    whoever is free takes the next number: a core that
    or images        ├──────────┼─────┼──┤    others slow down, or of a slower kind, takes fewer
                     │    1     │  3  │ 5│
                     └──────────┴─────┴──┘

What is added up, and in which order, is the same whoever takes a piece: so are the bits, for any
number of threads.

Source: C. Polychronopoulos and D. Kuck, "Guided self-scheduling", IEEE Transactions on Computers
C-36 (12), 1987: pieces become smaller towards the end, so that threads end together. Where there
are many ranges of images, or parts of the positions, these are alike, and there are no blocks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from convoy.kernels.cpu.caches import l2_bytes
from convoy.kernels.cpu.compiling import Array
from convoy.kernels.cpu.tile import LEFT_ROWS, RIGHT_ROWS, ROWS, columns_of
from convoy.kernels.geometry import Geometry

OF_CACHE = 0.5
"""The part of the L2 cache that a piece may fill; the rest is for weights and results."""
MOST_SPAN = 2048
"""Positions of a piece, whatever fits."""
OF_POSITIONS = 64
"""Positions that a piece of `forward` has even where fewer would fit: it has less of the depth
then, and adds to the output several times."""
OF_ROWS = (384, 768)
"""Between which a piece of the weights' gradient has its positions, about, where there are as many:
sums are longer then, and what is done at their ends less; longer rows would not stay in the L1
cache (`benchmarks/kernels_pieces.py pieces`)."""
ENOUGH_RANGES = 8
"""Ranges per thread from which on they are not cut into blocks, each of which copies for itself."""
LEAST_BLOCK = 64
"""Elements of the depth in a block."""
MOST_PARTS, OF_GRADIENT = 16, 0.25
"""Of the positions whose weights' gradients are summed up apart, and the part of the output's
gradient that these may take. Of fewer parts there are more blocks, and each reads it all."""

_REMEMBERED = 1024


def up(value: int, unit: int) -> int:
    """Rounded up to a multiple."""
    return -(-value // unit) * unit


def span_of(rows: int, itemsize: int) -> int:
    """How many positions a piece of so many rows has, to fit the cache; a multiple of a tile's."""
    columns = columns_of(itemsize)
    fit = int(l2_bytes() * OF_CACHE / itemsize) // rows // columns * columns
    return max(columns, min(MOST_SPAN, fit))


def deep_of(depth: int, itemsize: int) -> int:
    """How many elements of the depth a piece of `forward` has: all of them, or nearly equal parts.

    All make sums that stay in registers to the end, and are written once.
    """
    fit = int(l2_bytes() * OF_CACHE / itemsize) // OF_POSITIONS
    return -(-depth // -(-depth // fit))


@lru_cache(_REMEMBERED)
def edges(total: int, most: int, unit: int, portion: int = 1) -> Array:
    """Where pieces of 0 to `total` begin, and the last one's end.

    Args:
        total: at least 1.
        most: of a piece.
        unit: pieces but the last are a multiple of it; `most` is rounded up to one.
        portion: each is at most this portion of what is left (3: a third), so that they become
            smaller. With 1 they are nearly equal.
    """
    found, most = [0], up(most, unit)
    equal = up(-(-total // -(-total // most)), unit)
    while found[-1] < total:
        size, rest = equal, total - found[-1]
        if portion > 1:
            size = min(most, up(-(-rest // portion), unit))
        found.append(min(total, found[-1] + size))
    return np.array(found, np.int64)


@lru_cache(_REMEMBERED)
def blocks(
    groups: int, of_group: int, unit: int, depth: int, ranges: int, num_threads: int
) -> Array:
    """Where blocks of groups' panels begin, and the last one's end.

    Args:
        groups: whose panels are counted through.
        of_group: panels of a group.
        unit: within a group, blocks begin at its multiples only.
        depth: elements of the depth in a panel.
        ranges: of positions or images, each with all of the blocks.
        num_threads: with one, there is one block.

    Returns:
        int64, of strictly ascending panels: 0 first.
    """
    total = groups * of_group
    if num_threads == 1 or ranges >= ENOUGH_RANGES * num_threads:
        return np.array([0, total], np.int64)
    least = -(-LEAST_BLOCK // depth)
    ideal = edges(total, total, least, 2 * num_threads if ranges == 1 else num_threads)
    starts = np.array(
        [group * of_group + panel for group in range(groups) for panel in range(0, of_group, unit)]
        + [total]
    )
    return np.unique([starts[np.abs(starts - cut).argmin()] for cut in ideal]).astype(np.int64)


def channel_blocks(g: Geometry, ranges: int, num_threads: int) -> Array:
    """Blocks of panels of the depth that are whole channels: they share no element of the input."""
    unit = math.lcm(g.kernel[0] * g.kernel[1], ROWS) // ROWS
    return blocks(g.groups, -(-g.depth // ROWS), unit, ROWS, ranges, num_threads)


def weight_pieces(g: Geometry, itemsize: int, num_threads: int) -> tuple[Array, Array]:
    """Parts of the positions, the same for any number of threads, and blocks of RIGHT_ROWS rows."""
    total = g.images * g.positions
    fit = int(OF_GRADIENT * total / g.depth)
    parts = max(1, min(MOST_PARTS, fit, total // OF_ROWS[1]))
    of_each = up(-(-total // parts), columns_of(itemsize))
    cut = edges(total, of_each, 1)
    of_group = -(-g.depth // RIGHT_ROWS)
    return cut, blocks(g.groups, of_group, 1, RIGHT_ROWS, cut.size - 1, num_threads)


def weight_span(g: Geometry, itemsize: int, part: int) -> int:
    """Positions of a piece of the weights' gradient: a part's in nearly equal numbers."""
    rows = up(g.filters // g.groups, LEFT_ROWS) + RIGHT_ROWS
    fit = min(max(span_of(rows, itemsize), OF_ROWS[0]), OF_ROWS[1])
    return up(-(-part // max(1, round(part / fit))), columns_of(itemsize))


@intrinsic  # type: ignore[untyped-decorator]
def take(_typing: Any, counter: Any) -> Any:
    """The next number of a counter that threads share: int64[1]; called from compiled code."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        data = context.make_array(counter)(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate

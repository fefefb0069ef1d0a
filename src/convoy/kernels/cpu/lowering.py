"""Convolutions as one matrix product: a thread's part of the batch is lowered, then multiplied.

    lower ─▶ piece [depth, count], in memory ─▶ weight [filters, depth] x piece ─▶ output

What is lowered is kernel height times width as large as the input, so that it goes through memory
twice. The weights' gradient is gradient x piece^T; the input's makes a piece, weight^T x gradient,
and adds it to the image.

Source: K. Chellapilla, S. Puri and P. Simard (2006), see `pieces.py`; Caffe did so image by image
(Y. Jia et al., "Caffe: convolutional architecture for fast feature embedding", 2014).
"""

from __future__ import annotations

import numpy as np

from convoy.kernels.cpu.compiling import Array, compiled
from convoy.kernels.cpu.pieces import gather, lower, scatter, spread
from convoy.kernels.geometry import Window


@compiled
def forward(
    inputs: Array,
    weight: Array,
    bias: Array,
    outputs: Array,
    window: Window,
    first: int,
    last: int,
    memory: Array,
) -> None:
    """The output's rows from `first` to `last`, counted through all images.

    Args:
        inputs: [images, channels, height, width].
        weight: [groups, filters of a group, depth].
        bias: [filters].
        outputs: [images, filters, positions], to be written.
        window: of a group.
        first, last: rows.
        memory: room for (depth + filters of a group) x count numbers, of `count` positions.
    """
    groups, filters, depth = weight.shape
    count = (last - first) * window.out_x
    piece = memory[: depth * count].reshape((depth, count))
    product = memory[depth * count : (depth + filters) * count].reshape((filters, count))
    for group in range(groups):
        lower(inputs, group * window.channels, window, first, last - first, memory)
        np.dot(weight[group], piece, product)
        scatter(product, bias, group * filters, first * window.out_x, count, outputs)


@compiled
def weight_gradient(
    inputs: Array,
    gradient: Array,
    into: Array,
    window: Window,
    first: int,
    last: int,
    memory: Array,
) -> None:
    """What the output's rows from `first` to `last` contribute to the weights' gradient.

    Args:
        inputs, window, first, last, memory: see `forward`.
        gradient: of the output, [images, filters, positions].
        into: [groups, filters of a group, depth], to be written.
    """
    groups, filters, depth = into.shape
    count = (last - first) * window.out_x
    piece = memory[: depth * count].reshape((depth, count))
    part = memory[depth * count : (depth + filters) * count].reshape((filters, count))
    for group in range(groups):
        lower(inputs, group * window.channels, window, first, last - first, memory)
        gather(gradient, group * filters, first * window.out_x, count, part)
        np.dot(part, piece.T, into[group])


@compiled
def input_gradient(
    gradient: Array,
    weight: Array,
    into: Array,
    window: Window,
    first: int,
    last: int,
    memory: Array,
) -> None:
    """Add to the input's gradient what the output's rows from `first` to `last` contribute.

    Args:
        gradient: of the output, [images, filters, positions].
        weight: [groups, filters of a group, depth].
        into: [images, channels, height, width], to be added to.
        window, first, last, memory: see `forward`; rows of one image are one thread's.
    """
    groups, filters, depth = weight.shape
    count = (last - first) * window.out_x
    piece = memory[: depth * count].reshape((depth, count))
    part = memory[depth * count : (depth + filters) * count].reshape((filters, count))
    for group in range(groups):
        gather(gradient, group * filters, first * window.out_x, count, part)
        np.dot(weight[group].T, part, piece)
        spread(memory, group * window.channels, window, first, last - first, into)

"""`convolve`: a convolution by an algorithm of ours, as an operation that torch knows.

Forward and both gradients are operations of their own, so that autograd, torch.compile and
DistributedDataParallel go through them as through any other: what they compute nobody looks into.

    convoy::convolve(input, weight, bias) ──▶ output
    convoy::convolve_input(gradient, weight) ──▶ gradient of the input
    convoy::convolve_weight(input, gradient) ──▶ gradient of the weight

Each pass has an algorithm of its own (`passes.py`); torch's is one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convoy.errors import UsageError
from convoy.kernels.compiled import cpu
from convoy.kernels.geometry import geometry_of, pair
from convoy.kernels.passes import PIPELINED, TORCH, by_pass

DTYPES = (torch.float32, torch.float64)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    algorithm: str = PIPELINED,
) -> Tensor:
    """What torch.nn.functional.conv2d computes, on a CPU, by an algorithm of one's choice.

    The threads are torch's number of them (`torch.set_num_threads`). The first call compiles, which
    takes seconds once; the result is kept in Numba's cache.

    Args:
        input: [images, channels, height, width], float32 or float64.
        weight: [filters, channels / groups, kernel height, kernel width], likewise.
        bias: [filters].
        stride, padding, dilation: one number, or two, rows first.
        groups: that channels and filters are divided among.
        algorithm: `direct`, `lowering`, `pipelined` or `torch`, or three of them for the output and
            the gradients of input and weight: `torch/pipelined/lowering`.

    Returns:
        [images, filters, out height, out width].

    Raises:
        UnknownNameError: no such algorithm.
        UsageError: a dtype, a device or shapes that do not fit; says what was expected.
    """
    if set(by_pass(algorithm)) == {TORCH}:
        plain: Tensor = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return plain
    for what, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES or tensor.dtype != input.dtype:
            beside = "" if tensor is input else f" and the input {input.dtype}"
            raise UsageError(
                f"the {what} is {tensor.dtype}{beside}: expected float32 or float64 in all of "
                f"them; {algorithm} has no other. With algorithm torch it would be torch's own"
            )
        if tensor.device.type != "cpu":
            raise UsageError(f"the {what} is on {tensor.device}: {algorithm} runs on a CPU only")
    window = [*pair(stride, "stride", 1), *pair(padding, "padding", 0)]
    window += pair(dilation, "dilation", 1)
    geometry = geometry_of(input.shape, weight.shape, *_parts(window), groups)
    if bias is not None and bias.shape != (geometry.filters,):
        raise UsageError(f"a bias of {list(bias.shape)}: expected [{geometry.filters}]")
    found: Tensor = _convolve(input, weight, bias, window, groups, algorithm)
    return found


def _parts(window: list[int]) -> tuple[list[int], list[int], list[int]]:
    return window[:2], window[2:4], window[4:6]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@torch.library.custom_op("convoy::convolve", mutates_args=())
def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    chosen = by_pass(algorithm).forward
    if chosen == TORCH:
        plain = torch.conv2d(input.contiguous(), weight.contiguous(), bias, *_parts(window), groups)
        return plain.contiguous()
    geometry = geometry_of(input.shape, weight.shape, *_parts(window), groups)
    added = None if bias is None else _array(bias)
    made = cpu().forward(
        geometry, _array(input), _array(weight), added, chosen, torch.get_num_threads()
    )
    return torch.from_numpy(made)


@torch.library.custom_op("convoy::convolve_input", mutates_args=())
def _convolve_input(
    gradient: Tensor,
    weight: Tensor,
    input_shape: list[int],
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    chosen = by_pass(algorithm).input
    if chosen == TORCH:
        stands_for = gradient.new_empty(1).expand(input_shape)
        return _by_torch(gradient, stands_for, weight.contiguous(), window, groups, 0)
    geometry = geometry_of(input_shape, weight.shape, *_parts(window), groups)
    made = cpu().input_gradient(
        geometry, _array(gradient), _array(weight), chosen, torch.get_num_threads()
    )
    return torch.from_numpy(made)


@torch.library.custom_op("convoy::convolve_weight", mutates_args=())
def _convolve_weight(
    input: Tensor,
    gradient: Tensor,
    weight_shape: list[int],
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    chosen = by_pass(algorithm).weight
    if chosen == TORCH:
        stands_for = gradient.new_empty(1).expand(weight_shape)
        return _by_torch(gradient, input.contiguous(), stands_for, window, groups, 1)
    geometry = geometry_of(input.shape, weight_shape, *_parts(window), groups)
    made = cpu().weight_gradient(
        geometry, _array(input), _array(gradient), chosen, torch.get_num_threads()
    )
    return torch.from_numpy(made)


def _by_torch(
    gradient: Tensor, input: Tensor, weight: Tensor, window: list[int], groups: int, which: int
) -> Tensor:
    """One of torch's gradients; it looks at no more than the shape of what that one is of."""
    mask = [which == 0, which == 1, False]
    how = (*_parts(window), False, [0, 0], groups, mask)
    found = torch.ops.aten.convolution_backward(gradient.contiguous(), input, weight, None, *how)
    made: Tensor = found[which]
    return made.contiguous()


@_convolve.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    (sy, sx), (py, px), (dy, dx) = _parts(window)
    filters, _, ky, kx = weight.shape
    images, _, height, width = input.shape
    out_y = (height + 2 * py - dy * (ky - 1) - 1) // sy + 1
    out_x = (width + 2 * px - dx * (kx - 1) - 1) // sx + 1
    return input.new_empty((images, filters, out_y, out_x))


@_convolve_input.register_fake
def _(
    gradient: Tensor,
    weight: Tensor,
    input_shape: list[int],
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    return gradient.new_empty(input_shape)


@_convolve_weight.register_fake
def _(
    input: Tensor,
    gradient: Tensor,
    weight_shape: list[int],
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    return gradient.new_empty(weight_shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, ctx.window, ctx.groups, ctx.algorithm = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    input, weight = ctx.saved_tensors
    how = (ctx.window, ctx.groups, ctx.algorithm)
    needs_input, needs_weight, needs_bias, *_rest = ctx.needs_input_grad
    to_input = to_weight = to_bias = None
    if needs_input:
        to_input = _convolve_input(gradient, weight, list(input.shape), *how)
    if needs_weight:
        to_weight = _convolve_weight(input, gradient, list(weight.shape), *how)
    if ctx.has_bias and needs_bias:
        to_bias = gradient.sum((0, 2, 3))
    return to_input, to_weight, to_bias, None, None, None


_convolve.register_autograd(_backward, setup_context=_remember)

"""`convolve`: a convolution by an algorithm of ours, as an operation that torch knows.

Forward and both gradients are operations of their own, so that autograd, torch.compile and
DistributedDataParallel go through them as through any other: what they compute nobody looks into.

    convoy::convolve(input, weight, bias) ──▶ output
    convoy::convolve_input(gradient, weight) ──▶ gradient of the input
    convoy::convolve_weight(input, gradient) ──▶ gradient of the weight

Each pass has an algorithm of its own (`passes.py`); torch's is one of them. What comes in
channels-last goes out in channels-last, as with torch's own; ours compute in the other layout, and
bring it there and back. The gradients have gradients, by the same three operations; forward-mode
differentiation and torch.func's transforms get torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from convoy.errors import UsageError
from convoy.kernels.compiled import cpu
from convoy.kernels.geometry import Geometry, geometry_of, pair
from convoy.kernels.passes import OF_TORCH, PIPELINED, TORCH, TORCH_LAST, by_pass

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
        algorithm: `direct`, `lowering`, `pipelined`, `torch`, `torch-contiguous` or
            `torch-channels-last`, or three of them for the output and the gradients of input and
            weight: `torch/pipelined/lowering`.

    Returns:
        [images, filters, out height, out width], in the input's memory layout.

    Raises:
        UnknownNameError: no such algorithm.
        UsageError: a dtype, a device or shapes that do not fit; says what was expected.
    """
    chosen = set(by_pass(algorithm))
    if chosen == {TORCH} or _is_transformed():
        plain: Tensor = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return plain
    for what, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if getattr(tensor, "layout", None) != torch.strided:
            raise UsageError(f"the {what} is no dense torch.Tensor: {type(tensor).__name__}")
        is_theirs = chosen <= set(OF_TORCH)
        if tensor.dtype != input.dtype or (tensor.dtype not in DTYPES and not is_theirs):
            beside = "" if tensor is input else f" and the input {input.dtype}"
            raise UsageError(
                f"the {what} is {tensor.dtype}{beside}: expected float32 or float64 in all of "
                f"them; {algorithm} has no other. With algorithm torch it would be torch's own"
            )
        if tensor.device.type != "cpu" and not is_theirs:
            raise UsageError(f"the {what} is on {tensor.device}: {algorithm} runs on a CPU only")
    window = [*pair(stride, "stride", 1), *pair(padding, "padding", 0)]
    window += pair(dilation, "dilation", 1)
    geometry = geometry_of(input.shape, weight.shape, *_parts(window), groups)
    if bias is not None and bias.shape != (geometry.filters,):
        raise UsageError(f"a bias of {list(bias.shape)}: expected [{geometry.filters}]")
    found: Tensor = _convolve(input, weight, bias, window, groups, algorithm)
    return found


def op_passes(
    geometry: Geometry,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gradient: Tensor,
    algorithm: str,
) -> dict[str, Callable[[], Tensor]]:
    """Each pass by itself, as autograd calls it; of torch's own, what torch calls.

    Args:
        geometry: what is computed.
        input, weight, bias, gradient: operands; the last one is that of the output.
        algorithm: of passes.CHOICES.
    """
    g = geometry
    window, shapes = [*g.stride, *g.padding, *g.dilation], (list(input.shape), list(weight.shape))
    how = (window, g.groups, algorithm)
    if algorithm == TORCH:
        return {
            "forward": lambda: torch.conv2d(input, weight, bias, *_parts(window), g.groups),
            "input": lambda: _of_torch(gradient, input, weight, window, g.groups, 0),
            "weight": lambda: _of_torch(gradient, input, weight, window, g.groups, 1),
        }
    return {
        "forward": lambda: _convolve(input, weight, bias, *how),
        "input": lambda: _convolve_input(gradient, weight, shapes[0], *how),
        "weight": lambda: _convolve_weight(input, gradient, shapes[1], *how),
    }


def _parts(window: list[int]) -> tuple[list[int], list[int], list[int]]:
    return window[:2], window[2:4], window[4:6]


def _is_transformed() -> bool:
    """Whether forward-mode differentiation or torch.func is at work, of which ours know nothing."""
    if torch.compiler.is_compiling():
        return False
    transforms = getattr(torch._C, "_are_functorch_transforms_active", None)
    return getattr(forward_ad, "_current_level", -1) >= 0 or bool(transforms and transforms())


def is_last(*tensors: Tensor) -> bool:
    """Whether one of these is in channels-last, by its strides: as torch's own decides.

    A single channel lies alike in both layouts; then strides say what a layout was asked for.
    """
    return any(_strides_are_last(tensor) for tensor in tensors)


def _strides_are_last(tensor: Tensor) -> bool:
    least = 0
    for dimension in (1, 3, 2, 0):  # from the innermost
        size, stride = tensor.shape[dimension], tensor.stride(dimension)
        if size == 0 or stride < max(least, 1):
            return False
        if dimension == 0 and least == tensor.stride(1):
            return False
        least = stride * size
    return True


def in_layout(tensor: Tensor, last: bool) -> Tensor:
    """A tensor in channels-last, or in torch's contiguous layout: itself, where it is."""
    if last:
        if not _strides_are_last(tensor):
            return tensor.to(memory_format=torch.channels_last)
        return tensor.contiguous(memory_format=torch.channels_last)
    plain = tensor.contiguous()
    if not _strides_are_last(plain):
        return plain
    channels, height, width = plain.shape[1:]
    strides = (channels * height * width, height * width, width, 1)
    return plain.as_strided(plain.shape, strides)  # of a single channel: the same numbers


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
    chosen, last = by_pass(algorithm).forward, is_last(input, weight)
    if chosen in OF_TORCH:
        x, w = (in_layout(tensor, _computes_last(chosen, last)) for tensor in (input, weight))
        return in_layout(torch.conv2d(x, w, bias, *_parts(window), groups), last)
    geometry = geometry_of(input.shape, weight.shape, *_parts(window), groups)
    added = None if bias is None else _array(bias)
    made = cpu().forward(
        geometry, _array(input), _array(weight), added, chosen, torch.get_num_threads()
    )
    return in_layout(torch.from_numpy(made), last)


@torch.library.custom_op("convoy::convolve_input", mutates_args=())
def _convolve_input(
    gradient: Tensor,
    weight: Tensor,
    input_shape: list[int],
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    chosen, last = by_pass(algorithm).input, is_last(gradient, weight)
    if chosen in OF_TORCH:
        g, w = (in_layout(tensor, _computes_last(chosen, last)) for tensor in (gradient, weight))
        stands_for = gradient.new_empty(1).expand(input_shape)
        return in_layout(_of_torch(g, stands_for, w, window, groups, 0), last)
    geometry = geometry_of(input_shape, weight.shape, *_parts(window), groups)
    made = cpu().input_gradient(
        geometry, _array(gradient), _array(weight), chosen, torch.get_num_threads()
    )
    return in_layout(torch.from_numpy(made), last)


@torch.library.custom_op("convoy::convolve_weight", mutates_args=())
def _convolve_weight(
    input: Tensor,
    gradient: Tensor,
    weight_shape: list[int],
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    chosen, last = by_pass(algorithm).weight, is_last(input, gradient)
    if chosen in OF_TORCH:
        x, g = (in_layout(tensor, _computes_last(chosen, last)) for tensor in (input, gradient))
        stands_for = gradient.new_empty(1).expand(weight_shape)
        return in_layout(_of_torch(g, x, stands_for, window, groups, 1), last)
    geometry = geometry_of(input.shape, weight_shape, *_parts(window), groups)
    made = cpu().weight_gradient(
        geometry, _array(input), _array(gradient), chosen, torch.get_num_threads()
    )
    return in_layout(torch.from_numpy(made), last)


def _computes_last(chosen: str, last: bool) -> bool:
    """Whether torch's own computes in channels-last what comes in that layout, or does not."""
    return last if chosen == TORCH else chosen == TORCH_LAST


def _of_torch(
    gradient: Tensor, input: Tensor, weight: Tensor, window: list[int], groups: int, which: int
) -> Tensor:
    """One of torch's gradients; it looks at no more than the shape of what that one is of."""
    mask = [which == 0, which == 1, False]
    how = (*_parts(window), False, [0, 0], groups, mask)
    made: Tensor = torch.ops.aten.convolution_backward(gradient, input, weight, None, *how)[which]
    return made


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
    return in_layout(input.new_empty((images, filters, out_y, out_x)), is_last(input, weight))


@_convolve_input.register_fake
def _(
    gradient: Tensor,
    weight: Tensor,
    input_shape: list[int],
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    return in_layout(gradient.new_empty(input_shape), is_last(gradient, weight))


@_convolve_weight.register_fake
def _(
    input: Tensor,
    gradient: Tensor,
    weight_shape: list[int],
    window: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    return in_layout(gradient.new_empty(weight_shape), is_last(input, gradient))


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


def _remember_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, weight, _, ctx.window, ctx.groups, ctx.algorithm = inputs
    ctx.save_for_backward(gradient, weight)


def _backward_of_input(ctx: Any, given: Tensor) -> tuple[Any, ...]:
    """The gradient of the input is linear in either; `given` is shaped as the input."""
    gradient, weight = ctx.saved_tensors
    how = (ctx.window, ctx.groups, ctx.algorithm)
    needs_gradient, needs_weight, *_rest = ctx.needs_input_grad
    to_gradient = _convolve(given, weight, None, *how) if needs_gradient else None
    to_weight = (
        _convolve_weight(given, gradient, list(weight.shape), *how) if needs_weight else None
    )
    return to_gradient, to_weight, None, None, None, None


def _remember_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, gradient, _, ctx.window, ctx.groups, ctx.algorithm = inputs
    ctx.save_for_backward(input, gradient)


def _backward_of_weight(ctx: Any, given: Tensor) -> tuple[Any, ...]:
    """Likewise; `given` is shaped as the weight."""
    input, gradient = ctx.saved_tensors
    how = (ctx.window, ctx.groups, ctx.algorithm)
    needs_input, needs_gradient, *_rest = ctx.needs_input_grad
    to_input = to_gradient = None
    if needs_input:
        to_input = _convolve_input(gradient, given, list(input.shape), *how)
    if needs_gradient:
        to_gradient = _convolve(input, given, None, *how)
    return to_input, to_gradient, None, None, None, None


_convolve.register_autograd(_backward, setup_context=_remember)
_convolve_input.register_autograd(_backward_of_input, setup_context=_remember_input)
_convolve_weight.register_autograd(_backward_of_weight, setup_context=_remember_weight)

"""What a two-dimensional convolution computes, apart from how.

    input   [images, channels, height, width]
    weight  [filters, channels / groups, kernel height, kernel width]
    output  [images, filters, out height, out width]

    out height = (height + 2 padding - dilation (kernel height - 1) - 1) // stride + 1

Filters and channels are divided among the groups in order. As torch.nn.functional.conv2d has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import NamedTuple, SupportsIndex

from convoy.errors import UsageError

Pair = tuple[int, int]


class Window(NamedTuple):
    """The numbers that a loop over one group needs; Numba knows tuples of ints, not classes."""

    channels: int
    """Of one group."""
    height: int
    width: int
    kernel_y: int
    kernel_x: int
    stride_y: int
    stride_x: int
    padding_y: int
    padding_x: int
    dilation_y: int
    dilation_x: int
    out_y: int
    out_x: int


def pair(value: int | Sequence[int], what: str, least: int) -> Pair:
    """One number for both directions, or two: rows first.

    Raises:
        UsageError: it is neither, or less than `least`.
    """
    numbers = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(numbers) != 2 or any(not isinstance(n, SupportsIndex) or n < least for n in numbers):
        raise UsageError(
            f"{what} {value!r}: expected an integer, {least} or more, or two of them, rows first"
        )
    return index(numbers[0]), index(numbers[1])


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shapes, stride, padding, dilation and groups of a convolution that can be computed."""

    images: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        if self.groups < 1 or self.channels % self.groups or self.filters % self.groups:
            raise UsageError(
                f"{self.groups} groups of {self.channels} channels and {self.filters} filters: "
                "expected a number of groups that divides both"
            )
        if min(self.channels, self.height, self.width, self.filters, *self.kernel) < 1:
            raise UsageError(
                f"a convolution of {self.channels} channels of {self.height}x{self.width}, "
                f"{self.filters} filters and a kernel of {list(self.kernel)}: expected 1 or more "
                "of each"
            )
        for axis, padded, spans in zip("yx", self.padded, self._spans, strict=True):
            if spans > padded:
                size = "height" if axis == "y" else "width"
                raise UsageError(
                    f"the kernel spans {spans} and the padded input has a {size} of {padded}: "
                    "expected an input that is no smaller than the kernel; pad it"
                )

    @property
    def padded(self) -> Pair:
        """Height and width of the input with its padding."""
        return self.height + 2 * self.padding[0], self.width + 2 * self.padding[1]

    @property
    def _spans(self) -> Pair:
        """What a kernel covers, its gaps included."""
        (ky, kx), (dy, dx) = self.kernel, self.dilation
        return dy * (ky - 1) + 1, dx * (kx - 1) + 1

    @property
    def out(self) -> Pair:
        """Height and width of the output."""
        (height, width), (y, x) = self.padded, self._spans
        return (height - y) // self.stride[0] + 1, (width - x) // self.stride[1] + 1

    def of_images(self, images: int) -> Geometry:
        """The same convolution of so many images."""
        return replace(self, images=images)

    @property
    def positions(self) -> int:
        """Of one image's output."""
        return self.out[0] * self.out[1]

    @property
    def depth(self) -> int:
        """Products in an element of the output: the rows of a lowered input, of one group."""
        return self.channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def input_elements(self) -> int:
        """Of all images."""
        return self.images * self.channels * self.height * self.width

    @property
    def weight_elements(self) -> int:
        """Of all filters."""
        return self.filters * self.depth

    @property
    def output_elements(self) -> int:
        """Of all images."""
        return self.images * self.filters * self.positions

    @property
    def lowered_elements(self) -> int:
        """Of all images and groups: what im2col makes of the input."""
        return self.images * self.positions * self.depth * self.groups

    @property
    def flops(self) -> int:
        """Of the forward pass, a product and a sum counted as two; each gradient has as many."""
        return 2 * self.output_elements * self.depth

    @property
    def is_product(self) -> bool:
        """Whether the input is its own lowering: kernels of one element, side by side."""
        return self.kernel == self.stride == (1, 1) and self.padding == (0, 0)

    @property
    def window(self) -> Window:
        """Of one group."""
        return Window(
            self.channels // self.groups,
            self.height,
            self.width,
            *self.kernel,
            *self.stride,
            *self.padding,
            *self.dilation,
            *self.out,
        )


def geometry_of(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Geometry:
    """The convolution of an input by a weight.

    Args:
        input_shape: [images, channels, height, width].
        weight_shape: [filters, channels / groups, kernel height, kernel width].
        stride, padding, dilation: one number, or two, rows first.
        groups: that channels and filters are divided among.

    Raises:
        UsageError: they do not fit; says what was expected.
    """
    if len(input_shape) != 4 or len(weight_shape) != 4:
        raise UsageError(
            f"an input {list(input_shape)} and a weight {list(weight_shape)}: expected "
            "[images, channels, height, width] and [filters, channels / groups, height, width]"
        )
    if not isinstance(groups, SupportsIndex) or index(groups) < 1:
        raise UsageError(f"groups {groups!r}: expected an integer, 1 or more")
    images, channels, height, width = input_shape
    filters, of_group, *kernel = weight_shape
    if channels != of_group * groups:
        raise UsageError(
            f"an input of {channels} channels and a weight for {of_group} in each of {groups} "
            f"groups: expected {of_group * groups} channels"
        )
    return Geometry(
        images=images,
        channels=channels,
        height=height,
        width=width,
        filters=filters,
        kernel=(kernel[0], kernel[1]),
        stride=pair(stride, "stride", 1),
        padding=pair(padding, "padding", 0),
        dilation=pair(dilation, "dilation", 1),
        groups=groups,
    )

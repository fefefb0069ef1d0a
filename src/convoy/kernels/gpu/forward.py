"""A convolution's output by one of the four GPU kernels: shapes of blocks, and the launch.

NUMBA_ENABLE_CUDASIM=1, set before Numba is imported, plays the same kernels on a CPU with arrays of
NumPy's: thread by thread, for tests, thousands of times slower than anything else here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from convoy.errors import UnknownNameError, UsageError
from convoy.kernels.geometry import Geometry, geometry_of

KERNELS = ("naive", "shared-input", "shared-both", "blocked")
EXTRA = "pip install 'convoy-cnn[gpu]'"
BLOCK = 256
"""Threads of a block of `naive`."""
OUTPUTS = (8, 16)
"""Rows and columns of the output that a block makes where input is shared."""
TOGETHER = 8
"""Filters of a block of `shared-both`."""
MOST_DEEP = 65_535
"""Blocks of a grid's third direction, on every CUDA GPU."""
TILES = (
    (64, 64, 8, 4, 4),
    (128, 64, 8, 8, 4),
    (64, 128, 8, 4, 8),
    (128, 128, 8, 8, 8),
    (32, 64, 16, 2, 4),
)
"""Of `blocked`, to be tried: see `kernels.Tile`."""


@cache
def _kernels() -> ModuleType:
    try:
        import numba_cuda  # noqa: F401 - Numba's own CUDA target is another, and no longer kept
        from numba import cuda

        from convoy.kernels.gpu import kernels
    except ImportError as error:
        raise UsageError(
            f"the GPU kernels need Numba's CUDA ({error.name or error} is missing): {EXTRA}"
        ) from None
    if not cuda.is_available():
        raise UsageError(
            "the GPU kernels need a CUDA GPU, and Numba finds none here. What it knows: python -c "
            "'from numba import cuda; cuda.detect()'. On a CPU take pipelined"
        )
    return kernels


def forward(
    inputs: Any,
    weight: Any,
    bias: Any | None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    kernel: str = "blocked",
    tile: Sequence[int] | None = None,
    outputs: Any,
) -> Any:
    """Compute a convolution's output on the GPU, on its default stream.

    Args:
        inputs: [images, channels, height, width], float32 or float64: a CUDA tensor or a device
            array; in the simulator an array of NumPy's.
        weight: [filters, channels / groups, kernel height, kernel width], likewise.
        bias: [filters]; None for none.
        stride, padding, dilation: one number, or two, rows first.
        groups: that channels and filters are divided among.
        kernel: one of KERNELS.
        tile: of `blocked`, see `kernels.Tile`; the first of TILES without it.
        outputs: [images, filters, out height, out width], to be written.

    Returns:
        `outputs`.

    Raises:
        UnknownNameError: no such kernel.
        UsageError: no GPU, no Numba for it, a dtype or shapes that do not fit, or a tile that does
            not fit a block.
    """
    if kernel not in KERNELS:
        raise UnknownNameError("GPU kernel", kernel, KERNELS)
    geometry = geometry_of(inputs.shape, weight.shape, stride, padding, dilation, groups)
    dtype = str(inputs.dtype).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise UsageError(f"the input is {dtype}: the GPU kernels compute in float32 and float64")
    for what, one in (("weight", weight), ("bias", bias), ("outputs", outputs)):
        if one is not None and str(one.dtype) != str(inputs.dtype):
            raise UsageError(f"the {what} is {one.dtype}: expected {inputs.dtype} as the input is")
    if bias is not None and tuple(bias.shape) != (geometry.filters,):
        raise UsageError(f"a bias of {list(bias.shape)}: expected [{geometry.filters}]")
    expected = (geometry.images, geometry.filters, *geometry.out)
    if tuple(outputs.shape) != expected:
        raise UsageError(f"outputs of {list(outputs.shape)}: expected {list(expected)}")
    cuda_kernels = _kernels()
    if not math.prod(expected):
        return outputs
    for what, one in (("input", inputs), ("weight", weight), ("bias", bias), ("outputs", outputs)):
        if one is not None and not getattr(one, "is_cuda", True):
            raise UsageError(f"the {what} is on {one.device}: the GPU kernels compute on a GPU")
    if bias is None:
        is_tensor = hasattr(weight, "new_zeros")
        size = geometry.filters
        bias = weight.new_zeros(size) if is_tensor else np.zeros(size, weight.dtype)
    if kernel.startswith("shared") and geometry.images * geometry.filters > MOST_DEEP:
        raise UsageError(
            f"{kernel} would need more than {MOST_DEEP:,} blocks in one direction: give it fewer "
            "images, or take naive or blocked"
        )
    given = [_array(one) for one in (inputs, weight, bias, outputs)]
    launch = {"naive": _naive, "shared-input": _shared_input, "shared-both": _shared_both}
    if kernel in launch:
        launch[kernel](cuda_kernels, geometry, dtype, given)
    else:
        _blocked(cuda_kernels, geometry, dtype, given, tile or TILES[0])
    return outputs


def _array(tensor: Any) -> Any:
    if hasattr(tensor, "is_cuda"):
        from numba import cuda

        return cuda.as_cuda_array(tensor.detach())
    return tensor


def _naive(kernels: ModuleType, g: Geometry, _dtype: str, given: list[Any]) -> None:
    blocks = -(-g.output_elements // BLOCK)
    kernels.naive()[blocks, BLOCK](*given, g.window, g.groups)


def _tile_elements(g: Geometry) -> int:
    """Of the input beneath a block's outputs, of one channel."""
    spans = [
        (count - 1) * stride + dilation * (size - 1) + 1
        for count, stride, dilation, size in zip(
            OUTPUTS, g.stride, g.dilation, g.kernel, strict=True
        )
    ]
    return math.prod(spans)


def _grid(g: Geometry, deep: int) -> tuple[int, int, int]:
    rows, columns = (-(-size // of) for size, of in zip(g.out, OUTPUTS, strict=True))
    return columns, rows, deep


def _shared_input(kernels: ModuleType, g: Geometry, dtype: str, given: list[Any]) -> None:
    size = _tile_elements(g) * _bytes(dtype)
    _check_shared(size, "shared-input")
    grid = _grid(g, g.images * g.filters)
    launched = kernels.shared_input(dtype)[grid, OUTPUTS[::-1], 0, size]
    launched(*given, g.window, g.groups)


def _shared_both(kernels: ModuleType, g: Geometry, dtype: str, given: list[Any]) -> None:
    size = (_tile_elements(g) + TOGETHER * math.prod(g.kernel)) * _bytes(dtype)
    _check_shared(size, "shared-both")
    bunches = -(-g.filters // g.groups // TOGETHER)
    grid = _grid(g, g.images * g.groups * bunches)
    launched = kernels.shared_both(dtype, TOGETHER)[grid, OUTPUTS[::-1], 0, size]
    launched(*given, g.window, g.groups)


def _blocked(
    kernels: ModuleType, g: Geometry, dtype: str, given: list[Any], numbers: Sequence[int]
) -> None:
    tile = kernels.Tile(*numbers)
    if min(tile) < 1 or tile.filters % tile.rows or tile.positions % tile.columns:
        raise UsageError(
            f"a tile of {tuple(tile)}: expected filters, positions, depth, rows and columns, where "
            "rows divide filters and columns positions"
        )
    if tile.threads > 1024:
        raise UsageError(
            f"a tile of {tuple(tile)} has {tile.threads} threads: a block has 1,024 at most; give "
            "each more rows or columns"
        )
    _check_shared((tile.filters + tile.positions) * tile.depth * _bytes(dtype), "blocked")
    grid = (
        -(-g.images * g.positions // tile.positions),
        -(-g.filters // g.groups // tile.filters),
        g.groups,
    )
    kernels.blocked(dtype, tile)[grid, tile.threads](*given, g.window, g.groups)


def _bytes(dtype: str) -> int:
    return 8 if dtype == "float64" else 4


SHARED_BYTES = 48 * 1024
"""What every CUDA GPU's block may have without asking for more."""


def _check_shared(size: int, kernel: str) -> None:
    if size > SHARED_BYTES:
        raise UsageError(
            f"{kernel} would need {size:,} bytes of shared memory for a block, and has "
            f"{SHARED_BYTES:,}: the kernel or its stride is too large for it. Take naive or blocked"
        )

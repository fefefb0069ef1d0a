"""Run by test_gpu.py with NUMBA_ENABLE_CUDASIM=1: all kernels against torch's convolution."""

from __future__ import annotations

import sys

import numpy as np
import torch

from convoy.kernels.geometry import Geometry
from convoy.kernels.gpu import forward as forwards
from convoy.kernels.gpu.forward import KERNELS, forward

CASES = (
    Geometry(images=2, channels=2, height=5, width=4, filters=3, kernel=(3, 3), padding=(1, 1)),
    Geometry(
        images=1, channels=2, height=5, width=19, filters=4, kernel=(2, 3), stride=(2, 1),
        padding=(0, 2), dilation=(1, 2), groups=2,
    ),
    Geometry(images=2, channels=2, height=3, width=3, filters=9, kernel=(1, 1)),
    Geometry(images=0, channels=2, height=4, width=4, filters=3, kernel=(2, 2)),
)  # fmt: skip
TILES = ((8, 8, 4, 2, 2), (4, 16, 3, 1, 4))


def check(geometry: Geometry, kernel: str, dtype: str, tile: tuple[int, ...] | None) -> None:
    """One kernel on one case."""
    random = np.random.default_rng(0)
    g = geometry
    shapes = (
        (g.images, g.channels, g.height, g.width),
        (g.filters, g.channels // g.groups, *g.kernel),
        (g.filters,),
    )
    given = [random.standard_normal(shape).astype(dtype) for shape in shapes]
    expected = torch.nn.functional.conv2d(
        *(torch.from_numpy(one.astype("float64")) for one in given),
        g.stride, g.padding, g.dilation, g.groups,
    ).numpy()  # fmt: skip
    outputs = np.full(expected.shape, np.nan, dtype)
    forward(
        *given, g.stride, g.padding, g.dilation, g.groups, kernel=kernel, tile=tile, outputs=outputs
    )
    near = {"float32": 1e-4, "float64": 1e-11}[dtype]
    np.testing.assert_allclose(outputs, expected, rtol=near, atol=near)


def main() -> None:
    """All of them: in float32, and one case of each in float64."""
    for kernel in KERNELS:
        tiles = TILES if kernel == "blocked" else (None,)
        for geometry in CASES:
            for tile in tiles:
                check(geometry, kernel, "float32", tile)
        check(CASES[1], kernel, "float64", tiles[0])
        if kernel == "blocked":
            for shipped in forwards.TILES:
                check(CASES[2], kernel, "float32", shipped)
        sys.stdout.write("all alike\n")


if __name__ == "__main__":
    main()

"""A network's convolutions, or one of any shape, by every algorithm: `convoy conv bench`.

    layer    what it computes, and the study's columns: sizes in elements
    row      one pass of one layer by one algorithm with so many threads

Source of the columns: Sakiyama et al. (`cpu/pipelined.py`), who give for each layer of a network
its kernel and the elements of its input, lowered input, weight and output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from convoy.errors import UsageError
from convoy.kernels.compiled import cpu
from convoy.kernels.geometry import Geometry, geometry_of
from convoy.kernels.passes import ALGORITHMS, LOWERING, TORCH
from convoy.kernels.timing import TIMED, Timed, timed

SHAPE_FORM = "CxHxW:FxKyxKx[:STRIDE[:PADDING[:DILATION[:GROUPS]]]]"
_NUMBER = r"(\d+)"
_SHAPE = re.compile(
    rf"{_NUMBER}x{_NUMBER}x{_NUMBER}:{_NUMBER}x{_NUMBER}x{_NUMBER}"
    rf"(?::{_NUMBER})?(?::{_NUMBER})?(?::{_NUMBER})?(?::{_NUMBER})?"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass of one layer by one algorithm."""

    layer: str
    what: str
    """`forward`, or the gradient of the `input` or the `weight`."""
    threads: int
    algorithm: str
    seconds: float
    """The median of its turns."""
    gflops: float
    peak_gflops: float
    """Of a large product of matrices by torch, with as many threads and in the same turns."""
    of_peak: float
    """Beside that. The padding's zeros count as operations: one that skips them may exceed 1."""
    vs_lowering: float | None
    """How many times as fast as `lowering`; None where that was not timed."""
    vs_library: float | None
    """As torch's own in the contiguous layout."""

    def to_dict(self) -> dict[str, Any]:
        """As `convoy conv bench --json` prints it."""
        row = asdict(self)
        return {"layer": row.pop("layer"), "pass": row.pop("what"), **row}


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that was timed."""

    images: int
    geometries: Mapping[str, Geometry]
    peaks: Mapping[int, float]
    """FLOP/s of a product of matrices, by threads: the best of all turns' medians."""
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `convoy conv bench --json` prints it."""
        return {
            "batch_size": self.images,
            "peak_gflops": max(self.peaks.values()) / 1e9,
            "peaks_gflops": {str(t): flops / 1e9 for t, flops in self.peaks.items()},
            "shapes": {name: sizes(geometry) for name, geometry in self.geometries.items()},
            "layers": [row.to_dict() for row in self.rows],
        }


def bench(
    geometries: Mapping[str, Geometry],
    threads: Sequence[int],
    algorithms: Sequence[str] = TIMED,
    *,
    dtype: torch.dtype = torch.float32,
    enough_s: float = 0.3,
    say: Callable[[str], Any] = lambda _text: None,
) -> Found:
    """Time every pass of every layer; algorithms take turns.

    Args:
        geometries: by layer.
        threads: numbers of them to be tried.
        algorithms: of timing.TIMED.
        dtype: float32 or float64.
        enough_s: of turns of each.
        say: told which layer is timed.
    """
    ours = [name for name in algorithms if name in ALGORITHMS]
    if ours:
        say("compiling (seconds; kept for the next time)")
        cpu().compile_all(np.dtype(str(dtype).removeprefix("torch.")), ours)
    peaks: dict[int, float] = {}
    rows: list[Row] = []
    for number in dict.fromkeys(threads):
        peaks[number] = 0.0
        for layer, geometry in geometries.items():
            say(f"timing {layer}, {number} thread{'s' * (number > 1)}")
            found = timed(geometry, number, algorithms, dtype=dtype, enough_s=enough_s)
            rows += [_row(layer, geometry, one, found) for one in found]
            peaks[number] = max(peaks[number], *(one.peak_flops for one in found))
    images = next(iter(geometries.values())).images
    return Found(images=images, geometries=geometries, peaks=peaks, rows=tuple(rows))


def sizes(geometry: Geometry) -> dict[str, Any]:
    """The study's columns, in elements of all images."""
    return {
        "kernel": list(geometry.kernel),
        "input": geometry.input_elements,
        "lowered": geometry.lowered_elements,
        "weight": geometry.weight_elements,
        "output": geometry.output_elements,
        "flops": geometry.flops,
    }


def shape_of(text: str, images: int) -> Geometry:
    """The convolution that `--shape` describes, as 3x32x32:32x5x5:1:2.

    Raises:
        UsageError: it is malformed, or does not fit.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise UsageError(f"--shape {text}: expected {SHAPE_FORM}, as 3x32x32:32x5x5:1:2")
    channels, height, width, filters, ky, kx = map(int, match.groups()[:6])
    stride, padding, dilation, groups = (
        default if found is None else int(found)
        for found, default in zip(match.groups()[6:], (1, 0, 1, 1), strict=True)
    )
    if groups < 1 or channels % groups:
        raise UsageError(f"--shape {text}: {groups} groups do not divide {channels} channels")
    weight = (filters, channels // groups, ky, kx)
    given = (images, channels, height, width)
    return geometry_of(given, weight, stride, padding, dilation, groups)


def _row(layer: str, geometry: Geometry, one: Timed, among: Sequence[Timed]) -> Row:
    beside = {other.algorithm: other.seconds for other in among if other.what == one.what}
    flops = geometry.flops / one.seconds

    def times(name: str) -> float | None:
        return beside[name] / one.seconds if name in beside else None

    return Row(
        layer=layer,
        what=one.what,
        threads=one.num_threads,
        algorithm=one.algorithm,
        seconds=one.seconds,
        gflops=flops / 1e9,
        peak_gflops=one.peak_flops / 1e9,
        of_peak=flops / one.peak_flops,
        vs_lowering=times(LOWERING),
        vs_library=times(TORCH),
    )

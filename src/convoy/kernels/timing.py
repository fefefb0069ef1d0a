"""What each pass of a convolution takes by each algorithm, in turns on one machine.

Whatever else the machine does meanwhile, it does to all of them: algorithms take turns, and the
medians of their turns are compared. The first turn, in which Numba compiles and memory is mapped,
does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convoy.kernels.compiled import cpu
from convoy.kernels.geometry import Geometry
from convoy.kernels.passes import ALGORITHMS, PASSES, TORCH

CHANNELS_LAST = "torch channels-last"
"""torch's own with the channels of a position side by side in memory."""
TIMED = (TORCH, CHANNELS_LAST, *ALGORITHMS)
LEAST_TURNS, ENOUGH_S = 5, 0.3
PEAK_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One pass of one convolution by one algorithm."""

    algorithm: str
    what: str
    """One of PASSES."""
    num_threads: int
    seconds: float
    """The median of its turns."""


def timed(
    geometry: Geometry,
    num_threads: int,
    algorithms: Sequence[str] = TIMED,
    *,
    dtype: torch.dtype = torch.float32,
    enough_s: float = ENOUGH_S,
) -> list[Timed]:
    """Every pass by every algorithm.

    Args:
        geometry: of the convolution.
        num_threads: that share the work.
        algorithms: of TIMED.
        dtype: float32 or float64.
        enough_s: of turns of one pass by one algorithm, beyond the least number of them.
    """
    found = []
    with torch_threads(num_threads):
        by_algorithm = {name: _passes(geometry, name, num_threads, dtype) for name in algorithms}
        for what in PASSES:
            works = {name: passes[what] for name, passes in by_algorithm.items()}
            for name, seconds in in_turns(works, enough_s).items():
                found.append(
                    Timed(algorithm=name, what=what, num_threads=num_threads, seconds=seconds)
                )
    return found


def in_turns(
    works: Mapping[str, Callable[[], Any]], enough_s: float = ENOUGH_S
) -> dict[str, float]:
    """Median seconds of each, after a turn that does not count."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    spent_s = 0.0
    while spent_s < enough_s * len(works) or len(next(iter(times.values()))) < LEAST_TURNS:
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            took_s = time.perf_counter() - begun
            times[name].append(took_s)
            spent_s += took_s
    return {name: statistics.median(found) for name, found in times.items()}


def peak_flops(num_threads: int, dtype: torch.dtype = torch.float32) -> float:
    """Of a product of two square matrices by torch: floating-point operations per second."""
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, dtype=dtype) for _ in range(2))
    with torch_threads(num_threads):
        seconds = in_turns({"product": lambda: torch.mm(a, b)})["product"]
    return 2 * PEAK_SIZE**3 / seconds


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """So many threads of torch's, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _passes(
    geometry: Geometry, algorithm: str, num_threads: int, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    g = geometry
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    inputs = drawn(g.images, g.channels, g.height, g.width)
    weight = drawn(g.filters, g.channels // g.groups, *g.kernel)
    gradient, bias = drawn(g.images, g.filters, *g.out), drawn(g.filters)
    if algorithm in (TORCH, CHANNELS_LAST):
        return _of_torch(g, inputs, weight, bias, gradient, algorithm == CHANNELS_LAST)
    convolution = cpu()
    x, w, b, d = (tensor.numpy() for tensor in (inputs, weight, bias, gradient))
    return {
        "forward": lambda: convolution.forward(g, x, w, b, algorithm, num_threads),
        "input": lambda: convolution.input_gradient(g, d, w, algorithm, num_threads),
        "weight": lambda: convolution.weight_gradient(g, x, d, algorithm, num_threads),
    }


def _of_torch(
    g: Geometry, inputs: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, is_last: bool
) -> dict[str, Callable[[], Any]]:
    if is_last:
        inputs, weight, gradient = (
            tensor.contiguous(memory_format=torch.channels_last)
            for tensor in (inputs, weight, gradient)
        )
    how = (list(g.stride), list(g.padding), list(g.dilation), False, [0, 0], g.groups)

    def backward(*mask: bool) -> Any:
        return torch.ops.aten.convolution_backward(gradient, inputs, weight, None, *how, list(mask))

    def forward() -> Tensor:
        with torch.no_grad():
            return torch.conv2d(inputs, weight, bias, g.stride, g.padding, g.dilation, g.groups)

    return {
        "forward": forward,
        "input": lambda: backward(True, False, False),
        "weight": lambda: backward(False, True, False),
    }

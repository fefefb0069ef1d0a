"""What each pass of a convolution takes by each algorithm, in turns on one machine.

Whatever else the machine does meanwhile, it does to all of them: algorithms take turns, and the
medians of their turns are compared. The first turn, in which Numba compiles and memory is mapped,
does not count.

    timed       an algorithm by itself, its operands in the layout that it likes: for a bench
    timed_as_op as a step of a network in one of torch's layouts calls it, with what brings operands
                into another layout and back: for a choice
"""

from __future__ import annotations

import math
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
from convoy.kernels.operation import in_layout, op_passes
from convoy.kernels.passes import ALGORITHMS, PASSES, TORCH, TORCH_LAST

TIMED = (TORCH, TORCH_LAST, *ALGORITHMS)
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
    peak_flops: float
    """Of a product of two large square matrices by torch, in the same turns: per second."""


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
        a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, dtype=dtype) for _ in range(2))
        for what in PASSES:
            works = {name: passes[what] for name, passes in by_algorithm.items()}
            seconds = in_turns({"product": lambda: torch.mm(a, b), **works}, enough_s)
            found += [
                Timed(
                    algorithm=name,
                    what=what,
                    num_threads=num_threads,
                    seconds=seconds[name],
                    peak_flops=2 * PEAK_SIZE**3 / seconds["product"],
                )
                for name in works
            ]
    return found


def timed_as_op(
    geometry: Geometry,
    algorithms: Sequence[str],
    passes: Sequence[str] = PASSES,
    *,
    last: bool,
    device: torch.device,
    dtype: torch.dtype,
    enough_s: float,
    least: int,
    hopeless: float,
    most_s: float,
) -> dict[tuple[str, str], float]:
    """Seconds by pass and algorithm, with torch's number of threads; operands are as they come.

    Args:
        geometry: of the convolution.
        algorithms: of passes.CHOICES; those that run on `device`.
        passes: those of PASSES that are timed.
        last: whether the network is in channels-last.
        device: of the operands.
        dtype: of the operands.
        enough_s, least, hopeless, most_s: as `turns_of` has them, of one pass.
    """
    inputs, weight, gradient, bias = (tensor.to(device) for tensor in _operands(geometry, dtype))
    inputs, weight, gradient = (in_layout(t, last) for t in (inputs, weight, gradient))
    by_algorithm = {
        name: op_passes(geometry, inputs, weight, bias, gradient, name) for name in algorithms
    }
    found: dict[tuple[str, str], float] = {}
    for what in passes:
        works = {name: _finished(of[what], device) for name, of in by_algorithm.items()}
        turns = turns_of(works, enough_s, least=least, hopeless=hopeless, most_s=most_s)
        found |= {(what, name): statistics.median(times) for name, times in turns.items()}
    return found


def in_turns(
    works: Mapping[str, Callable[[], Any]], enough_s: float = ENOUGH_S
) -> dict[str, float]:
    """Median seconds of each."""
    return {name: statistics.median(found) for name, found in turns_of(works, enough_s).items()}


def turns_of(
    works: Mapping[str, Callable[[], Any]],
    enough_s: float,
    *,
    least: int = LEAST_TURNS,
    hopeless: float = math.inf,
    most_s: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of each, turn by turn, after one that does not count.

    Args:
        works: what is timed.
        enough_s: of turns of each, beyond the least number of them.
        least: number of turns.
        hopeless: one that took so many times as long as the fastest, twice, has no more turns.
        most_s: of turns of all, after which there is no further one.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    rivals, spent_s, turns = dict(works), 0.0, 0
    while spent_s < enough_s * len(rivals) or turns < least:
        for name, work in rivals.items():
            begun = time.perf_counter()
            work()
            took_s = time.perf_counter() - begun
            times[name].append(took_s)
            spent_s += took_s
        turns += 1
        if spent_s > most_s:
            break
        if turns > 1:
            best = {name: min(times[name]) for name in rivals}
            bound = hopeless * min(best.values())
            rivals = {name: work for name, work in rivals.items() if best[name] <= bound}
    return times


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
    inputs, weight, gradient, bias = _operands(g, dtype)
    if algorithm in (TORCH, TORCH_LAST):
        laid = [in_layout(t, algorithm == TORCH_LAST) for t in (inputs, weight, gradient)]
        return op_passes(g, laid[0], laid[1], bias, laid[2], TORCH)
    convolution = cpu()
    x, w, b, d = (tensor.numpy() for tensor in (inputs, weight, bias, gradient))
    return {
        "forward": lambda: convolution.forward(g, x, w, b, algorithm, num_threads),
        "input": lambda: convolution.input_gradient(g, d, w, algorithm, num_threads),
        "weight": lambda: convolution.weight_gradient(g, x, d, algorithm, num_threads),
    }


def _operands(g: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, gradient of the output, and bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (g.images, g.channels, g.height, g.width),
        (g.filters, g.channels // g.groups, *g.kernel),
        (g.images, g.filters, *g.out),
        (g.filters,),
    )
    drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return drawn[0], drawn[1], drawn[2], drawn[3]


def _finished(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    if device.type != "cuda":
        return work

    def finished() -> None:
        work()
        torch.cuda.synchronize(device)

    return finished

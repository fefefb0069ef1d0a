"""What the sizes of `pipelined`'s pieces are worth, and what lowering image by image takes.

    python benchmarks/kernels_pieces.py pieces [--threads 1,2] [--turns 15]
    python benchmarks/kernels_pieces.py lowering [--threads 1,2] [--turns 9]

`pieces`: GFLOP/s of each pass of five convolutions, by positions in a piece, and of the output by
elements of the depth too; in turns, the size that Convoy takes among them. `lowering`: Convoy's
lowers a thread's share of the batch whole, and Caffe did image by image; both, and `pipelined`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common import write
from convoy.api.convolutions import of_network
from convoy.kernels.cpu import convolution, cutting, lowering, threads
from convoy.kernels.geometry import Geometry

LAYERS = ("conv2", *(f"inception_{name}.conv" for name in (
    "3a.branch_5x5", "4a.branch_3x3", "4e.branch_3x3", "5b.branch_3x3",
)))  # fmt: skip
SPANS, DEPTHS = (64, 112, 208, 400, 784, 1568), (256, 576)
PASSES = ("forward", "input", "weight")
Calls = dict[str, Callable[[], Any]]


def operands(g: Geometry) -> tuple[Any, Any, Any]:
    """Input, weight and the output's gradient."""
    random = np.random.default_rng(0)
    shapes = (
        (g.images, g.channels, g.height, g.width),
        (g.filters, g.channels // g.groups, *g.kernel),
        (g.images, g.filters, *g.out),
    )
    x, weight, gradient = (random.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return x, weight, gradient


def in_turns(calls: dict[Any, Callable[[], Any]], turns: int) -> dict[Any, float]:
    """Medians, in seconds; the first turn does not count."""
    found: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(turns + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def passes(g: Geometry, algorithm: str, num_threads: int, given: Any, **size: int) -> Calls:
    """Each pass of a convolution by an algorithm."""
    x, weight, gradient = given
    of_span = {name: value for name, value in size.items() if name == "span"}
    how = (algorithm, num_threads)
    return {
        "forward": lambda: convolution.forward(g, x, weight, None, *how, **size),
        "input": lambda: convolution.input_gradient(g, gradient, weight, *how, **of_span),
        "weight": lambda: convolution.weight_gradient(g, x, gradient, *how, **of_span),
    }


def pieces(options: argparse.Namespace) -> None:
    """By size."""
    rows, layers = [], of_network("googlenet", 16, None)
    for num_threads in options.threads:
        torch.set_num_threads(num_threads)
        for name in LAYERS:
            g = layers[name]
            given = operands(g)
            for what in PASSES:
                sizes: list[dict[str, int]] = [{}, *({"span": span} for span in SPANS)]
                if what == "forward":
                    sizes += [
                        {"span": span, "deep": deep}
                        for span in SPANS for deep in DEPTHS
                        if deep < g.depth and deep * span < 2**19
                    ]  # fmt: skip
                    sizes = [s for s in sizes if s.get("deep", g.depth) * s.get("span", 0) < 2**19]
                calls = {
                    tuple(size.items()): passes(g, "pipelined", num_threads, given, **size)[what]
                    for size in sizes
                }
                for size, seconds in in_turns(calls, options.turns).items():
                    row = {"layer": name, "pass": what, "threads": num_threads}
                    row |= {"positions": "ours", "depth": g.depth, **_named(size)}
                    rows.append(row | {"gflops": g.flops / seconds / 1e9})
            print(name, num_threads)
    write(
        "kernels_pieces",
        rows,
        about="GFLOP/s of `pipelined` by what a piece has; `ours`: what Convoy takes, which has "
        f"all of the depth up to {cutting.deep_of(10**9, 4)} elements here.",
    )


def _named(size: tuple[tuple[str, int], ...]) -> dict[str, int]:
    names = {"span": "positions", "deep": "depth"}
    return {names[name]: value for name, value in size}


def by_image(g: Geometry, num_threads: int, given: Any) -> Calls:
    """Lowering, image by image; each thread has its images."""
    x, weight, gradient = given
    of_group = weight.reshape(g.groups, g.filters // g.groups, g.depth)
    flat = gradient.reshape(g.images, g.filters, g.positions)
    rows, zeros = g.out[0], np.zeros(g.filters, np.float32)

    def run(work: Callable[[int, int, Any], Any]) -> None:
        ranges = threads.shares(g.images, num_threads)
        size = (g.depth + g.filters // g.groups) * g.positions
        memory = threads.rooms(len(ranges), size, np.float32)

        def some(number: int, first: int, last: int) -> None:
            for image in range(first, last):
                work(number, image * rows, memory[number])

        with threads.one_blas_thread_each():
            threads.in_parallel(some, ranges)

    def forward() -> None:
        out = np.empty((g.images, g.filters, g.positions), np.float32)
        run(lambda _, at, own: lowering.forward(
            x, of_group, zeros, out, g.window, at, at + rows, own
        ))  # fmt: skip

    def input_gradient() -> None:
        into = np.zeros_like(x)
        run(lambda _, at, own: lowering.input_gradient(
            flat, of_group, into, g.window, at, at + rows, own
        ))  # fmt: skip

    def weight_gradient() -> None:
        parts = np.zeros((num_threads, *of_group.shape), np.float32)
        run(lambda number, at, own: lowering.weight_gradient(
            x, flat, parts[number], g.window, at, at + rows, own
        ))  # fmt: skip
        parts.sum(axis=0)

    return {"forward": forward, "input": input_gradient, "weight": weight_gradient}


def lowerings(options: argparse.Namespace) -> None:
    """Lowering in two ways."""
    rows = []
    for network, images in (("cifar10-full", 100), ("googlenet", 16)):
        layers = {
            name: g for name, g in of_network(network, images, None).items() if g.kernel != (1, 1)
        }
        for num_threads in options.threads:
            torch.set_num_threads(num_threads)
            ratios: dict[str, list[float]] = {"lowering": [], "by image": []}
            for name, g in layers.items():
                given = operands(g)
                ways = {
                    "lowering": passes(g, "lowering", num_threads, given),
                    "by image": by_image(g, num_threads, given),
                    "pipelined": passes(g, "pipelined", num_threads, given),
                }
                calls = {(way, what): ways[way][what] for what in PASSES for way in ways}
                found = in_turns(calls, options.turns)
                total = {way: sum(found[way, what] for what in PASSES) for way in ways}
                row: dict[str, Any] = {"network": network, "layer": name, "threads": num_threads}
                row |= {f"{way} ms": seconds * 1e3 for way, seconds in total.items()}
                for way, kept in ratios.items():
                    kept.append(total[way] / total["pipelined"])
                    row[f"over {way}"] = kept[-1]
                rows.append(row)
                print(row)
            mean = {
                f"over {way}": math.exp(statistics.fmean(map(math.log, kept)))
                for way, kept in ratios.items()
            }
            rows.append({"network": network, "layer": "mean", "threads": num_threads, **mean})
            print(rows[-1])
    write(
        "kernels_lowering",
        rows,
        about="Forward and both gradients: `lowering` (a thread's share of the batch at once), the "
        "same image by image, and how many times as fast as each `pipelined` is.",
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("pieces", "lowering"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    options.threads = [int(number) for number in options.threads.split(",")]
    {"pieces": pieces, "lowering": lowerings}[options.what](options)


if __name__ == "__main__":
    main()

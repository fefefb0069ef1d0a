"""What `convoy conv bench` does: convolutions by every algorithm, and layers over image sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any

import psutil
import torch

from convoy import networks
from convoy.api.requests import without_weights
from convoy.errors import UnknownNameError, UsageError
from convoy.kernels.bench import Found, bench, shape_of
from convoy.kernels.bench import sizes as sizes_of
from convoy.kernels.compare import Compared, compare, layer
from convoy.kernels.geometry import Geometry
from convoy.kernels.layers import geometries
from convoy.kernels.timing import TIMED
from convoy.quotas import usable_cores

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def bench_convolutions(
    network: str | None = None,
    *,
    shapes: Sequence[str] = (),
    input_shape: tuple[int, int, int] | None = None,
    layers: str = "*",
    batch_size: int = 16,
    threads: Sequence[int] | None = None,
    algorithms: Sequence[str] = TIMED,
    precision: str = "fp32",
    seconds: float = 0.3,
    say: Callable[[str], Any] = lambda _text: None,
) -> Found:
    """Time every convolution of a network, or of these shapes, by each algorithm.

    Args:
        network: its name, or package.module:function; cifar10-full where no shapes are given.
        shapes: in place of a network: "3x32x32:32x5x5:1:2", see `kernels.bench.SHAPE_FORM`.
        input_shape: of an image; the published one without it.
        layers: which of the network's, as a pattern with * and ?.
        batch_size: images.
        threads: numbers of them to try; 1 and as many as there are cores without it.
        algorithms: of `kernels.timing.TIMED`.
        precision: fp32 or fp64.
        seconds: of turns of each pass by each algorithm.
        say: told which layer is timed.

    Raises:
        UnknownNameError: no such algorithm, or no layer of that name.
        UsageError: no positive number of images or threads, or shapes that do not fit.
    """
    if network is not None and shapes:
        raise UsageError("--network and --shape: expected one of them")
    for name in algorithms:
        if name not in TIMED:
            raise UnknownNameError("convolution algorithm", name, TIMED)
    if precision not in DTYPES:
        raise UnknownNameError("precision", precision, DTYPES)
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected 1 or more")
    threads = _threads(threads)
    _checked(seconds)
    found = (
        {text: shape_of(text, batch_size) for text in shapes}
        if shapes
        else of_network(network or "cifar10-full", batch_size, input_shape, layers)
    )
    dtype = DTYPES[precision]
    for name, geometry in found.items():
        _fits(name, geometry, dtype.itemsize)
    return bench(found, threads, algorithms, dtype=dtype, enough_s=seconds, say=say)


def cores() -> int:
    """How many this process may use."""
    return max(1, int(usable_cores()))


def of_network(
    name: str, images: int, input_shape: tuple[int, int, int] | None, pattern: str = "*"
) -> dict[str, Geometry]:
    """A named network's convolutions.

    Raises:
        UsageError: it has none, or an image shape is needed.
        UnknownNameError: no layer fits the pattern.
    """
    model, input_shape = without_weights(name, input_shape)
    found = geometries(model, torch.zeros(1, *input_shape, device="meta"))
    if not found:
        raise UsageError(f"{name} has no convolution whose algorithm can be chosen")
    chosen = {layer: of for layer, of in found.items() if fnmatch(layer, pattern)}
    if not chosen:
        raise UnknownNameError("convolution layer", pattern, found)
    return {layer: geometry.of_images(images) for layer, geometry in chosen.items()}


def compare_over_sizes(
    names: Sequence[str],
    sizes: Sequence[int],
    *,
    are_networks: bool,
    channels: int = 3,
    batch_size: int = 16,
    threads: Sequence[int] | None = None,
    seconds: float = 0.3,
    say: Callable[[str], Any] = lambda _text: None,
) -> list[Compared]:
    """Time dense and convolution layers, or networks, over image sizes, on a CPU and a GPU if any.

    Args:
        names: of `kernels.compare.KINDS`, or of networks.
        sizes: of square images.
        are_networks: which of the two `names` are.
        channels: of an image.
        batch_size: images.
        threads: numbers of them to try on a CPU; 1 and as many as there are cores without it.
        seconds: of turns of each.
        say: told what is timed.

    Raises:
        UnknownNameError: no such layer or network.
        UsageError: images too small for a network, or numbers that are none.
    """
    threads = _threads(threads)
    _checked(seconds)
    numbers = [("--batch-size", batch_size), ("--channels", channels)]
    for what, value in (*numbers, *(("--image-sizes", size) for size in sizes)):
        if value < 1:
            raise UsageError(f"{what} {value}: expected 1 or more")
    sizes, names = list(dict.fromkeys(sizes)), list(dict.fromkeys(names))

    def build(name: str, size: int) -> torch.nn.Module:
        if not are_networks:
            return layer(name, channels, size)
        shape, classes = (channels, size, size), 10
        if name.startswith("chavan:") and name.rpartition("-")[2].isdigit():
            classes = int(name.rpartition("-")[2])
        return networks.build(name, input_shape=shape, num_classes=classes)

    return compare(
        build,
        names,
        sizes,
        channels=channels,
        images=batch_size,
        threads=threads,
        devices=["cpu", *(["cuda:0"] if torch.cuda.is_available() else [])],
        enough_s=seconds,
        say=say,
    )


def _fits(name: str, geometry: Geometry, itemsize: int) -> None:
    row, free = sizes_of(geometry), psutil.virtual_memory().available
    elements = sum(2 * row[what] for what in ("input", "weight", "output")) + row["lowered"]
    if elements * itemsize > free:
        raise UsageError(
            f"{name}: timing it takes {elements * itemsize / 1e9:,.1f} GB and {free / 1e9:,.1f} GB "
            "are free; expected a smaller shape or fewer images"
        )


def _checked(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds:g}: expected more than 0")


def _threads(asked: Sequence[int] | None) -> list[int]:
    threads = list(asked or dict.fromkeys((1, cores())))
    if min(threads) < 1:
        raise UsageError(f"--threads {min(threads)}: expected 1 or more")
    if max(threads) > cores():
        raise UsageError(
            f"--threads {max(threads)}: this process may use {cores()} core{'s' * (cores() > 1)}; "
            "with more threads than that, times say nothing"
        )
    return threads

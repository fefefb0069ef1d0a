"""Convolutions by algorithm: layers, and whole training steps.

    python benchmarks/kernels.py layers [--threads 1,2] [--seconds 1.0]
    python benchmarks/kernels.py summary
    python benchmarks/kernels.py steps [--threads 1,2] [--networks cifar10-full:100,googlenet:4]
    python benchmarks/kernels.py sizes [--threads 1,2] [--seconds 0.5]
    python benchmarks/kernels.py gpu [--images 32]

`layers`: the three convolutions of cifar10-full in batches of 100, and in batches of 16 the twenty
of GoogLeNet whose kernel is larger than one element, forward and both gradients, in turns.
`summary`: their tables in few rows.
`steps`: forward, backward and update of a network as PyTorch does it, with the layout that
`--memory-format auto` chooses, and with the algorithms of `--conv-algorithm auto` too, in turns.
`sizes`: dense and convolution layers, and networks of one convolution, over sizes of images,
forward and backward by torch, on a CPU and a GPU if there is one. `gpu`: the five convolutions of
AlexNet, forward, by the loop nest on one core, the four GPU kernels and cuDNN.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from common import RESULTS, write
from convoy.api.convolutions import compare_over_sizes, of_network
from convoy.api.requests import job_of
from convoy.kernels import convolve
from convoy.kernels.bench import bench
from convoy.kernels.compare import FILTERS, KERNEL, KINDS, UNITS
from convoy.kernels.geometry import Geometry
from convoy.kernels.gpu.forward import KERNELS, TILES, forward
from convoy.kernels.passes import ALGORITHMS, LOWERING, PASSES, TORCH, TORCH_LAST
from convoy.kernels.timing import in_turns, torch_threads
from convoy.runtime.layout import laid_out
from convoy.runtime.memory import keep_freed_memory
from convoy.runtime.training import Trainee

NETWORKS = {"cifar10-full": 100, "googlenet": 16}
"""And images in a batch."""
SIZES = (28, 64, 128, 256)
SIZES_NETWORKS = ("chavan:3-50-100-10", "chavan:5-50-100-10", "chavan:7-50-100-10")
STEPS = "cifar10-full:100,googlenet:4,vgg16:2"


def mean(values: Iterable[float]) -> float:
    """Geometric."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def layers(options: argparse.Namespace) -> None:
    """Every layer by every algorithm."""
    for network, images in NETWORKS.items():
        found = bench(geometries_of(network), options.threads, enough_s=options.seconds, say=print)
        write(
            f"kernels_{network}",
            [row.to_dict() for row in found.rows],
            about=f"Convolutions of {network}, {images} images, float32: medians of turns.",
        )
    summary(options)


def geometries_of(network: str) -> dict[str, Geometry]:
    """cifar10-full's three, or GoogLeNet's twenty."""
    found = of_network(network, NETWORKS[network], None)
    return {n: g for n, g in found.items() if network != "googlenet" or g.kernel != (1, 1)}


def summary(_options: argparse.Namespace) -> None:
    """What `layers` left, in few rows."""
    rows = {
        network: json.loads((RESULTS / f"kernels_{network}.json").read_text())["rows"]
        for network in NETWORKS
    }
    found = []
    for network, some in rows.items():
        for threads in sorted({row["threads"] for row in some}):
            found += ratios(network, [row for row in some if row["threads"] == threads], threads)
    write(
        "kernels_summary",
        found,
        about="Speed-ups: against lowering the geometric mean, the worst and the best over all "
        "layers' forward and backward passes (both gradients together), and of layers as a whole; "
        "against torch's own (oneDNN), in the better of its two layouts for each layer, of layers "
        "as a whole. `of peak`: of a large matrix product's speed in the same turns, all passes "
        "together; the padding's zeros count as operations, which oneDNN may skip.",
    )


def ratios(network: str, rows: Sequence[dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    """For each algorithm: speed-ups over all layers."""
    seconds = {(row["layer"], row["pass"], row["algorithm"]): row["seconds"] for row in rows}
    products = {(row["layer"], row["pass"]): row["peak_gflops"] for row in rows}
    geometries = geometries_of(network)

    def took(layer: str, algorithm: str, passes: Iterable[str]) -> float:
        return sum(seconds[layer, what, algorithm] for what in passes)

    def speed_ups(beside: str, algorithm: str) -> dict[str, float]:
        return {n: took(n, beside, PASSES) / took(n, algorithm, PASSES) for n in geometries}

    flops = 3 * sum(geometry.flops for geometry in geometries.values())
    product_s = sum(
        geometry.flops / products[layer, what] / 1e9
        for layer, geometry in geometries.items()
        for what in PASSES
    )
    found = []
    for algorithm in (TORCH, TORCH_LAST, *ALGORITHMS):
        passes = [
            took(layer, LOWERING, some) / took(layer, algorithm, some)
            for layer in geometries
            for some in (PASSES[:1], PASSES[1:])
        ]
        whole = speed_ups(LOWERING, algorithm)
        contiguous, last = speed_ups(TORCH, algorithm), speed_ups(TORCH_LAST, algorithm)
        library = {n: min(contiguous[n], last[n]) for n in geometries}
        all_s = sum(took(layer, algorithm, PASSES) for layer in geometries)
        found.append(
            {
                "network": network,
                "threads": threads,
                "algorithm": algorithm,
                "vs lowering": mean(passes),
                "worst pass": min(passes),
                "best pass": max(passes),
                "worst layer": min(whole.values()),
                "best layer": max(whole.values()),
                "vs torch": mean(library.values()),
                "faster than torch on": ", ".join(n for n, r in library.items() if r > 1),
                "GFLOP/s": flops / all_s / 1e9,
                "product GFLOP/s": flops / product_s / 1e9,
                "of peak": product_s / all_s,
            }
        )
    return found


def steps(options: argparse.Namespace) -> None:
    """Whole training steps."""
    rows = []
    for text in options.networks.split(","):
        network, _, images = text.rpartition(":")
        for threads in options.threads:
            with torch_threads(threads):
                rows.append(step_times(network, int(images), threads, options.seconds))
            print(rows[-1])
    rows.append({"network": "geometric mean", "speed-up": mean(row["speed-up"] for row in rows)})
    write(
        "kernels_steps",
        rows,
        about="A training step (forward, backward, SGD with momentum) as PyTorch does it, with "
        "`--memory-format auto` (`layout`), and with that and `--conv-algorithm auto`: medians of "
        "turns.",
    )


def step_times(network: str, images: int, threads: int, seconds: float) -> dict[str, Any]:
    """One network, three ways in turns."""
    told = {"batch_size": images, "threads_per_worker": threads, "strategy": "single", "workers": 1}
    ways: dict[str, dict[str, Any]] = {
        "default": {"memory_format": "contiguous"},
        "layout": {"memory_format": "auto"},
        "auto": {"memory_format": "auto", "conv_algorithm": "auto"},
    }
    trainees, layouts = {}, {}
    for name, more in ways.items():
        job = job_of(network, None, told | more)
        trainees[name] = trainee = Trainee(job, torch.device("cpu"), threads)
        layouts[name] = trainee.arrangement.choose_layout(images)
        trainee.arrangement.lay_out(layouts[name])
    works = {name: step(trainee, images, layouts[name]) for name, trainee in trainees.items()}
    found = in_turns(works, seconds)
    arrangement, layout = trainees["auto"].arrangement, layouts["auto"]
    return {
        "network": network,
        "batch": images,
        "threads": threads,
        "layout": layout,
        "layers proposed": len(arrangement.proposed(layout)),
        "layers chosen": len(arrangement.algorithms(layout)),
        **{f"{name} ms": found[name] * 1e3 for name in ways},
        "speed-up": found["default"] / found["auto"],
        "of the layout": found["default"] / found["layout"],
    }


def step(trainee: Trainee, images: int, layout: str) -> Callable[[], None]:
    """What makes one step."""
    inputs, targets = trainee.fetch(torch.arange(images))
    inputs = laid_out(inputs, layout)

    def work() -> None:
        F.cross_entropy(trainee.model(inputs), targets).backward()
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)

    for group in trainee.optimizer.param_groups:
        group["lr"] = 0.0  # all the work, and the same numbers every time
    return work


def sizes(options: argparse.Namespace) -> None:
    """Layers and networks over sizes of images."""
    for study, names in (("layers", KINDS), ("networks", SIZES_NETWORKS)):
        found = compare_over_sizes(
            names,
            SIZES,
            are_networks=study == "networks",
            batch_size=NETWORKS["googlenet"],
            threads=options.threads,
            seconds=options.seconds,
            say=print,
        )
        write(
            f"kernels_sizes_{study}",
            [
                {
                    study[:-1]: row.what,
                    "image size": row.image_size,
                    "device": row.device,
                    "threads": row.threads,
                    "forward ms": row.forward_s * 1e3,
                    "backward ms": row.backward_s * 1e3,
                }
                for row in found
            ],
            about=f"{study.capitalize()} over sizes of square images of three channels, "
            f"{NETWORKS['googlenet']} in a batch, float32, by torch: medians of turns. A dense "
            f"layer has {UNITS} units, a convolution {FILTERS} filters of {KERNEL}x{KERNEL}; "
            "backward is of weights and input.",
        )


def gpu(options: argparse.Namespace) -> None:
    """The study's table on this GPU: milliseconds of each layer by each kernel."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here")
    rows = []
    for name, geometry in of_network("alexnet", options.images, None).items():
        g = geometry
        x = torch.randn(g.images, g.channels, g.height, g.width)
        w, b = torch.randn(g.filters, g.channels // g.groups, *g.kernel), torch.randn(g.filters)
        how = (g.stride, g.padding, g.dilation, g.groups)
        on_gpu = [tensor.cuda() for tensor in (x, w, b)]
        expected = torch.conv2d(*on_gpu, *how)
        outputs = torch.empty_like(expected)
        works: dict[str, Callable[[], Any]] = {
            "cuDNN": lambda a=on_gpu, h=how: finished(torch.conv2d(*a, *h))
        }
        for kernel in KERNELS:
            for tile in TILES if kernel == "blocked" else (None,):
                label = kernel if tile is None else f"{kernel} {tile}"
                works[label] = lambda a=on_gpu, h=how, k=kernel, t=tile, o=outputs: finished(
                    forward(*a, *h, kernel=k, tile=t, outputs=o)
                )
                outputs.fill_(float("nan"))
                works[label]()
                torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-3)
        seconds = in_turns(works, options.seconds)
        with torch_threads(1), torch.no_grad():
            on_cpu = partial(convolve, x, w, b, *how, algorithm="direct")
            serial = in_turns({"serial": on_cpu}, 0.1)
        tiles = {label: s for label, s in seconds.items() if label.startswith("blocked")}
        best = min(tiles, key=tiles.__getitem__)
        rows.append(
            {
                "layer": name,
                "serial CPU ms": serial["serial"] * 1e3,
                **{f"{k} ms": seconds[k] * 1e3 for k in KERNELS[:-1]},
                "blocked ms": tiles[best] * 1e3,
                "tile": best.removeprefix("blocked "),
                "cuDNN ms": seconds["cuDNN"] * 1e3,
                "naive / blocked": seconds["naive"] / tiles[best],
                "cuDNN / blocked": seconds["cuDNN"] / tiles[best],
            }
        )
    about = f"AlexNet's convolutions, {options.images} images, float32, forward, on "
    write("kernels_gpu", rows, about=about + torch.cuda.get_device_name())


def finished(tensor: torch.Tensor) -> torch.Tensor:
    """Once the GPU has done it."""
    torch.cuda.synchronize()
    return tensor


STUDIES = {"layers": layers, "summary": summary, "steps": steps, "sizes": sizes, "gpu": gpu}


def main() -> None:
    """One of these."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=[*STUDIES])
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--networks", default=STEPS)
    options = parser.parse_args()
    options.threads = [int(number) for number in options.threads.split(",")]
    keep_freed_memory()  # as a rank of a run does
    STUDIES[options.study](options)


if __name__ == "__main__":
    main()

"""Convolutions by algorithm, as one picture: bars by layer, and speed over threads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.figure

from convoy.runtime.run_folder import write_bytes

COLOURS = ("#555555", "#999999", "#c9b458", "#d9a441", "#3b6fb6", "#8c4a6b")


def draw_convolutions(document: Mapping[str, Any], path: Path) -> Path:
    """Draw forward and both gradients together, layer by layer, with the most threads; and the
    geometric mean over layers by number of threads.

    Args:
        document: what `convoy conv bench --json` prints.
        path: of the PNG.

    Raises:
        ConvoyError: it cannot be written there.
    """
    rows = document["layers"]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    threads = sorted({row["threads"] for row in rows})
    width = max(7.0, 0.22 * len(layers) * len(algorithms))
    figure = matplotlib.figure.Figure(figsize=(width + 4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(width, 4))
    for number, (algorithm, colour) in enumerate(zip(algorithms, COLOURS, strict=False)):
        bar = 0.8 / len(algorithms)
        speeds = [_gflops(document, layer, algorithm, threads[-1]) for layer in layers]
        at = [i + bar * (number - (len(algorithms) - 1) / 2) for i in range(len(layers))]
        left.bar(at, speeds, bar, color=colour, label=algorithm)
        means = [
            math.exp(
                sum(math.log(_gflops(document, layer, algorithm, t)) for layer in layers)
                / len(layers)
            )
            for t in threads
        ]
        right.plot(threads, means, "o-", color=colour)
    left.axhline(
        document["peaks_gflops"][str(threads[-1])], color="#bbb", linestyle="--", linewidth=1
    )
    left.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=8)
    left.set_ylabel("GFLOP/s, forward and both gradients")
    left.set_title(
        f"{threads[-1]} thread{'s' * (threads[-1] > 1)}; dashed: matrix product", fontsize=9
    )
    left.legend(frameon=False, fontsize=8)
    right.set_xticks(threads)
    right.set_ylim(bottom=0)
    right.set_xlabel("threads")
    right.set_title("geometric mean of layers", fontsize=9)
    image = BytesIO()
    figure.savefig(image, dpi=110)
    write_bytes(path, image.getvalue())
    return path


def _gflops(document: Mapping[str, Any], layer: str, algorithm: str, threads: int) -> float:
    """Of all three passes together."""
    seconds: float = sum(
        row["seconds"]
        for row in document["layers"]
        if (row["layer"], row["algorithm"], row["threads"]) == (layer, algorithm, threads)
    )
    return 3 * float(document["shapes"][layer]["flops"]) / seconds / 1e9


def draw_sizes(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw forward and backward seconds over image sizes, a line for each layer and device.

    Args:
        rows: `sizes` of what `convoy conv bench --image-sizes ... --json` prints.
        path: of the PNG.

    Raises:
        ConvoyError: it cannot be written there.
    """
    figure = matplotlib.figure.Figure(figsize=(10, 4.2), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("forward", "backward"), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            label = f"{row['what']}, {row['device']}"
            if row["device"] == "cpu":
                label += f", {row['threads']} thread{'s' * (row['threads'] > 1)}"
            lines.setdefault(label, []).append((row["image_size"], row[f"{what}_s"]))
        for label, points in lines.items():
            axes.plot(*zip(*points, strict=True), "o-", label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sorted({row["image_size"] for row in rows}))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
        axes.set_xlabel("side of the image")
        axes.set_ylabel(f"{what}, s")
    figure.axes[0].legend(frameon=False, fontsize=8)
    image = BytesIO()
    figure.savefig(image, dpi=110)
    write_bytes(path, image.getvalue())
    return path

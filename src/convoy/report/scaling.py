"""Scaling curves as one picture: throughput and efficiency by number of nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure

from convoy.errors import UsageError
from convoy.runtime.json_lines import finite
from convoy.runtime.run_folder import write_bytes

COLOURS = ("#3b6fb6", "#d9a441", "#8c4a6b", "#2f8f5b", "#555555")


def draw_scaling(document: Mapping[str, Any], folder: Path) -> Path:
    """Write scaling.json and scaling.png to `folder`; returns where the picture is.

    Args:
        document: what `convoy simulate --json` prints.

    Raises:
        UsageError: the folder cannot be made.
        ConvoyError: a file cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {folder}: cannot make this folder ({error.strerror}); name another"
        ) from None
    text = json.dumps(finite(document), indent=1)
    write_bytes(folder / "scaling.json", (text + "\n").encode())
    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (name, points) in zip(COLOURS * 9, _by_strategy(document).items(), strict=False):
        _draw(left, right, name, points, colour, document["exposed_from"][name])
    base = document["baseline"]
    _dress(left, "images/s")
    left.set_yscale("log")
    _dress(right, f"efficiency, relative to {base} node{'s' * (base != 1)}")
    right.set_ylim(0, 1.05)
    right.axhline(1, color="#bbb", linewidth=0.8)
    size = "x".join(map(str, document["input"]))
    batch = document["batch_size"]
    shown = f"{batch} in all" if batch else f"{document['batch_per_node']} per node"
    figure.suptitle(
        f"{document['network']}, images of {size}, batch of {shown}", fontsize=11, parse_math=False
    )
    image = BytesIO()
    figure.savefig(image, dpi=110)
    write_bytes(folder / "scaling.png", image.getvalue())
    return folder / "scaling.png"


def _by_strategy(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for point in document["points"]:
        found.setdefault(point["strategy"], []).append(point)
    return found


def _draw(
    left: Any,
    right: Any,
    name: str,
    points: Sequence[Mapping[str, Any]],
    colour: str,
    exposed_from: int | None,
) -> None:
    counts = [point["nodes"] for point in points]
    rates = [point["images_per_s"] for point in points]
    left.plot(counts, rates, "o-", color=colour, markersize=3, label=name)
    if points[0]["efficiency"]:
        alone = rates[0] / counts[0] / points[0]["efficiency"]
        ideal = [alone * count for count in counts]
        left.plot(counts, ideal, ":", color=colour, linewidth=0.9, label=f"{name}, ideal")
    known = [point for point in points if point["efficiency"] is not None]
    right.plot(
        [point["nodes"] for point in known],
        [point["efficiency"] for point in known],
        "o-",
        color=colour,
        markersize=3,
        label=name,
    )
    if exposed_from is not None:
        for axes in (left, right):
            label = "communication exposed from here" if axes is right else None
            axes.axvline(exposed_from, color=colour, linewidth=0.8, linestyle="--", label=label)


def _dress(axes: Any, label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("nodes")
    axes.set_ylabel(label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)

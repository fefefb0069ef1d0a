"""A comparison as a picture: predicted and measured step times side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.figure

from convoy.runtime.run_folder import write_bytes


def draw_comparison(runs: Sequence[Mapping[str, Any]], title: str, path: Path) -> Path:
    """Draw bars of each way's predicted and measured step time, with every repeat as a dot.

    Args:
        runs: rows of `convoy compare --json`.
    """
    figure = matplotlib.figure.Figure(figsize=(10, 1.4 + 0.55 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for place, run in enumerate(runs):
        for offset, key, colour in (
            (-0.19, "predicted_step_s", "#9aa5b1"),
            (0.19, "measured_step_s", "#3b6fb6"),
        ):
            axes.barh(place + offset, run[key] * 1e3, height=0.36, color=colour)
        each = [seconds * 1e3 for seconds in run["measured_each_s"]]
        axes.plot(each, [place + 0.19] * len(each), "o", color="#1f3a5f", markersize=3)
        longest = max(run["predicted_step_s"], run["measured_step_s"], *run["measured_each_s"])
        axes.annotate(
            f" {run['images_per_s']:,.0f} images/s, predicted {run['error']:+.1%}",
            (longest * 1e3, place),
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(runs)), [run["label"] for run in runs])
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds per step: predicted (grey), measured (blue)")
    axes.set_title(title, fontsize=11, parse_math=False, loc="left")
    image = BytesIO()
    figure.savefig(image, dpi=110)
    write_bytes(path, image.getvalue())
    return path

"""Accuracy by the number of filters before a cut, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.figure

from convoy.runtime.run_folder import write_bytes


def draw_narrowing(narrowed: Mapping[str, Any], path: Path) -> Path:
    """Draw accuracy over filters, with the full network's as a line.

    Args:
        narrowed: what narrow.json holds.
    """
    full, rows = narrowed["full"], narrowed["filters"]
    figure = matplotlib.figure.Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(
        full["accuracy"],
        color="#555",
        linestyle="--",
        linewidth=1,
        label=f"all {full['filters']} filters: {full['accuracy']:.2%}",
    )
    filters = [row["filters"] for row in rows]
    way = "trained from first weights" if narrowed["from_scratch"] else "fine-tuned"
    axes.plot(filters, [row["accuracy"] for row in rows], "o-", color="#3b6fb6", label=way)
    axes.set_xlabel(f"filters before {narrowed['cut']}", parse_math=False)
    axes.set_ylabel("test accuracy")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", frameon=False)
    per_filter = full["bytes_per_image_float32"] / full["filters"] / 1e3
    above = axes.secondary_xaxis(
        "top", functions=(lambda count: count * per_filter, lambda size: size / per_filter)
    )
    above.set_xlabel("kB that cross the cut for an image, in float32")
    figure.suptitle(f"{full['network']} cut at {narrowed['cut']}", fontsize=11, parse_math=False)
    image = BytesIO()
    figure.savefig(image, dpi=110)
    write_bytes(path, image.getvalue())
    return path

"""What ways between an edge and a cloud were measured to do, beside what was foreseen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from convoy.cluster import format_bandwidth

KEYS = ("bandwidth_bit_s", "edge_cpus", "batch_size", "mode")


def draw_split_bench(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each setting: a bar for each way, with what was foreseen as a mark."""
    panels = list(dict.fromkeys(tuple(row[key] for key in KEYS) for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, (0.9 + 0.2 * len(ways)) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for place in axes[len(panels) :]:
        place.set_axis_off()
    for number, (place, panel) in enumerate(zip(axes, panels, strict=False)):
        these = {r["way"]: r for r in rows if tuple(r[key] for key in KEYS) == panel}
        values = [these[way]["images_per_s"] if way in these else 0.0 for way in ways]
        marks = [these[way]["foreseen_images_per_s"] if way in these else 0.0 for way in ways]
        at = range(len(ways))
        place.barh(at, values, color="#5b8db8", label="measured")
        place.plot(
            marks, at, "|", color="#b03030", markersize=9, markeredgewidth=2, label="foreseen"
        )
        place.set_xscale("log")
        place.set_yticks(list(at), ways if number % columns == 0 else [""] * len(ways), fontsize=7)
        place.invert_yaxis()
        link, cpus, size, mode = panel
        title = f"{format_bandwidth(link)}, edge {cpus:g}, batch {size}, {mode}"
        place.set_title(title, fontsize=8)
        place.tick_params(axis="x", labelsize=7)
    axes[0].legend(fontsize=7, frameon=False)
    figure.supxlabel("images per second", fontsize=9)
    figure.savefig(path, dpi=110)

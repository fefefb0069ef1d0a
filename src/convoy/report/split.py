"""A plan for edge and cloud as one picture: where time goes at each cut, and what the link is for.

┌ bars: edge, transfer, cloud by cut ┐┌ the choice over bandwidth ┐
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure

from convoy.errors import UsageError
from convoy.runtime.run_folder import write_bytes

PARTS = {
    "edge_s": ("#3b6fb6", "edge"),
    "transfer_s": ("#d9a441", "transfer"),
    "cloud_s": ("#8c4a6b", "cloud"),
}
COLOURS = ("#3b6fb6", "#d9a441", "#8c4a6b", "#2f8f5b", "#b8543d", "#555555")
REFUSED = 0.35
"""How much of its colour a way keeps that will not do."""


def draw_split(plan: Mapping[str, Any], path: Path) -> None:
    """Draw what `convoy split plan --json` prints.

    Raises:
        UsageError: there is no folder for it.
        ConvoyError: the picture cannot be written.
    """
    if not path.parent.is_dir():
        raise UsageError(f"--picture {path}: {path.parent} is no folder; name one that is there")
    shown = _best_of_each_place(plan["rows"])
    height = max(4.0, 0.32 * len(shown) + 1.6)
    figure = matplotlib.figure.Figure(figsize=(13, height), layout="constrained")
    bars, curve = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_bars(bars, shown, plan)
    _draw_choice(curve, plan)
    count = plan["batch_size"]
    figure.suptitle(
        f"{plan['network']}: edge {plan['edge']['name']}, cloud {plan['cloud']['name']}, "
        f"{plan['link']['bandwidth_bit_s'] / 1e6:g} Mbit/s, "
        + (f"batches of {count}" if count > 1 else "one image at a time"),
        fontsize=11,
        parse_math=False,
    )
    image = BytesIO()
    figure.savefig(image, dpi=110, format="png")
    write_bytes(path, image.getvalue())


def _best_of_each_place(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each cut the codec that comes first, in the network's order; what is no cut before."""
    first: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for number, row in enumerate(rows):
        if number and row["kind"] == "picture" and row["variant"]:
            continue  # the full network's, but for less time in the cloud
        where = (row["variant"], row["cut"], row["codec"] if row["kind"] == "picture" else None)
        first.setdefault((row["kind"], *where), row)
    order = {"picture": 0, "split": 1, "local": 2}
    return sorted(first.values(), key=lambda row: (order[row["kind"]], row["depth"]))


def _draw_bars(axes: Any, rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> None:
    chosen = plan["rows"][plan["chosen"]]["name"] if plan["chosen"] is not None else None
    names = [("▸ " if row["name"] == chosen else "") + row["name"] for row in rows]
    places = range(len(rows))
    left = [0.0] * len(rows)
    for key, (colour, label) in PARTS.items():
        widths = [row[key] * 1e3 for row in rows]
        drawn = axes.barh(places, widths, left=left, color=colour, label=label, height=0.7)
        for bar, row in zip(drawn, rows, strict=True):
            bar.set_alpha(REFUSED if row["refused"] else 1.0)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    _fit(axes, left)
    what = f"a batch of {plan['batch_size']}" if plan["batch_size"] > 1 else "one image"
    axes.set_xlabel(f"milliseconds for {what} (pale: will not do)")
    axes.legend(loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _fit(axes: Any, totals: Sequence[float]) -> None:
    """Let a bar that is many times as long as most leave the picture, and say how long it is."""
    middle = sorted(totals)[len(totals) // 2]
    limit = min(max(totals), 6 * middle) * 1.02
    axes.set_xlim(0, limit)
    for place, total in enumerate(totals):
        if total > limit:
            axes.text(limit, place, f"{total:,.0f} ", ha="right", va="center", fontsize=8)


def _draw_choice(axes: Any, plan: Mapping[str, Any]) -> None:
    points = plan["over_bandwidth"]
    by_rate = plan["objective"] == "throughput"
    names = list(dict.fromkeys(point["name"] for point in points))
    for name, colour in zip(names, COLOURS * 9, strict=False):
        mine = [point for point in points if point["name"] == name]
        axes.plot(
            [point["bandwidth_bit_s"] / 1e6 for point in mine],
            [point["images_per_s"] if by_rate else point["latency_s"] * 1e3 for point in mine],
            "o",
            color=colour,
            markersize=4,
            label=name,
        )
    axes.axvline(plan["link"]["bandwidth_bit_s"] / 1e6, color="#999", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("Mbit/s (dashed: this link)")
    axes.set_ylabel("images/s of the choice" if by_rate else "ms of the choice")
    if names:
        axes.legend(loc="best", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)

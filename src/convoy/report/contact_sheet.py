"""Pictures in rows with labels: originals, and what was made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SIDE = 0.9
"""Inches of a picture."""
LABEL = 3.2
"""Of the column of labels."""


def draw_contact_sheet(rows: Sequence[tuple[str, Any]], path: Path) -> None:
    """A row for each label and its pictures, uint8 [n, height, width, channels]."""
    count = len(rows[0][1])
    figure = Figure(figsize=(LABEL + SIDE * count, SIDE * len(rows) + 0.1))
    left = LABEL / (LABEL + SIDE * count)
    axes = figure.subplots(len(rows), count, squeeze=False)
    figure.subplots_adjust(left=left, right=0.995, top=0.99, bottom=0.01, wspace=0.05, hspace=0.05)
    for (label, pictures), line in zip(rows, axes, strict=True):
        for picture, place in zip(pictures, line, strict=True):
            place.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
            place.set_axis_off()
        line[0].annotate(
            label,
            (-0.1, 0.5),
            xycoords="axes fraction",
            ha="right",
            va="center",
            fontsize=8,
        )
    figure.savefig(path, dpi=110)

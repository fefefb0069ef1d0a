"""A run as one picture: loss and accuracy over steps, and where each rank's time went."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure

from convoy.runtime.json_lines import read_lines
from convoy.runtime.records import StepSummary, read_steps
from convoy.runtime.run_folder import RunFolder, write_bytes

COLOURS = {"compute_s": "#3b6fb6", "wait_s": "#d9a441", "comm_s": "#8c4a6b"}
LABELS = {"compute_s": "compute", "wait_s": "wait for slower ranks", "comm_s": "communicate"}


def draw_run(path: Path) -> Path:
    """Draw `run.png` in the run folder at `path` from its records; returns where it is.

    Raises:
        DataError: a record is damaged.
        ConvoyError: the picture cannot be written.
    """
    folder = RunFolder(path)
    steps = read_steps(folder.steps)
    result = json.loads(folder.result.read_text(encoding="utf-8"))
    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_curves(curves, steps, _evaluations(folder))
    _draw_ranks(bars, result["ranks"])
    accuracy = result["test_accuracy"]
    shown = f", {accuracy:.2%} of test samples right" if accuracy is not None else ""
    figure.suptitle(
        f"{result['network']} on {result['dataset']}: {result['strategy']} over "
        f"{len(result['machines'])} rank{'s' * (len(result['machines']) != 1)}{shown}",
        fontsize=11,
        parse_math=False,
    )
    image = BytesIO()
    figure.savefig(image, dpi=110)
    write_bytes(folder.picture, image.getvalue())
    return folder.picture


def _evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    if not folder.evaluations.is_file():
        return []
    rows = read_lines(folder.evaluations)
    by_step = {row["step"]: row for row in rows}  # the last doing counts
    return [by_step[step] for step in sorted(by_step)]


def _draw_curves(axes: Any, steps: list[StepSummary], evaluations: list[dict[str, Any]]) -> None:
    numbers = [step.step for step in steps]
    losses = [step.loss for step in steps]
    axes.plot(numbers, losses, color="#b8c7dd", linewidth=0.7)
    axes.plot(numbers, _smooth(losses), color=COLOURS["compute_s"], label="training loss")
    if evaluations:
        at = [row["step"] for row in evaluations]
        axes.plot(
            at, [row["test_loss"] for row in evaluations], "--", color="#555", label="test loss"
        )
        right = axes.twinx()
        right.plot(
            at,
            [row["test_accuracy"] for row in evaluations],
            "o-",
            color="#2f8f5b",
            markersize=3,
            label="test accuracy",
        )
        right.set_ylabel("test accuracy")
        right.set_ylim(top=1.0)
        right.legend(loc="center right", frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", frameon=False)


def _draw_ranks(axes: Any, ranks: list[dict[str, Any]]) -> None:
    names = [f"rank {row['rank']}\n{row['machine']}\n{row['samples']} samples" for row in ranks]
    left = [0.0] * len(ranks)
    for key, colour in COLOURS.items():
        widths = [row[key] * 1e3 for row in ranks]
        axes.barh(names, widths, left=left, color=colour, label=LABELS[key], height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step (medians)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    weight, total, norm, result = 0.95, 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result

"""One step of a plan as a timeline: what each device and each exchange does when."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.patches

from convoy.cost.schedule import Compute, Operation, Transfer
from convoy.cost.simulate import Span
from convoy.planner import play
from convoy.report.plans import PlanReport
from convoy.runtime.run_folder import write_bytes

COLOURS = {
    "load": "#9aa5b1",
    "forward": "#3b6fb6",
    "replica": "#c7b8d9",
    "backward": "#5fa17a",
    "update": "#d9a441",
    "average": "#c9803a",
    "exchange": "#8c4a6b",
}


def draw_step(report: PlanReport, path: Path) -> Path:
    """Draw one step of the chosen plan: what each device and each exchange does when."""
    ranking = report.ranking
    chosen = ranking.best
    schedule, played = play(ranking.world, chosen)
    names = [ranking.world.devices[pick].machine for pick in chosen.picks]
    rows = len(names) + (1 if len(names) > 1 else 0)
    figure = matplotlib.figure.Figure(figsize=(11, 1.6 + 0.6 * rows), layout="constrained")
    axes = figure.subplots()
    used = _draw_spans(axes, schedule, played.spans, len(names))
    labels = [*names, "network"][:rows]
    axes.set_yticks(range(rows), labels)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.set_title(
        f"{report.network}, batch of {ranking.task.batch_size}: a step of "
        f"{chosen.strategy.name} takes {chosen.step_s * 1e3:.1f} ms",
        fontsize=11,
        loc="left",
        parse_math=False,
    )
    handles = [
        matplotlib.patches.Patch(color=COLOURS[kind], label=kind)
        for kind in COLOURS
        if kind in used
    ]
    figure.legend(handles=handles, ncols=len(handles), fontsize=8, loc="outside upper right")
    image = BytesIO()
    figure.savefig(image, dpi=110)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, image.getvalue())
    return path


def _draw_spans(
    axes: Any, schedule: Sequence[Operation], spans: Sequence[Span], num_ranks: int
) -> set[str]:
    """Bars by rank, and below them the exchanges; returns the kinds of work that occur."""
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    key: tuple[int, str]
    for operation, span in zip(schedule, spans, strict=True):
        if isinstance(operation, Compute):
            key = (operation.rank, operation.phase)
        else:
            key = (num_ranks, "exchange")
            if isinstance(operation, Transfer) and operation.payload_bytes == 0:
                continue
        bars.setdefault(key, []).append((span.start * 1e3, (span.end - span.start) * 1e3))
    for (row, kind), stretches in bars.items():
        axes.broken_barh(
            stretches, (row - 0.35, 0.7), color=COLOURS[kind], edgecolor="white", linewidth=0.3
        )
    return {kind for _, kind in bars}

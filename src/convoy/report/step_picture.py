"""One step of a plan as a timeline: what each device and each exchange does when."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.patches

from convoy.cost.schedule import Collective, Compute, Exchange, Operation, Transfer
from convoy.cost.simulate import Span
from convoy.planner import play
from convoy.report.plans import PlanReport
from convoy.runtime.run_folder import write_bytes

COLOURS = {
    "load": "#9aa5b1",
    "forward": "#3b6fb6",
    "replica": "#c7b8d9",
    "backward": "#5fa17a",
    "accumulate": "#a8c66c",
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
    links = _links(schedule, [ranking.world.devices[pick].host for pick in chosen.picks])
    rows = len(names) + len(links)
    figure = matplotlib.figure.Figure(figsize=(11, 1.6 + 0.6 * rows), layout="constrained")
    axes = figure.subplots()
    used = _draw_spans(axes, schedule, played.spans, len(names), links)
    labels = [*names, *(f"{names[a]} to {names[b]}" for a, b in links)]
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


def _links(schedule: Sequence[Operation], hosts: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of ranks on different machines between which something goes, in that direction."""
    pairs = {pair for operation in schedule for pair in _pairs(operation)}
    return sorted((a, b) for a, b in pairs if hosts[a] != hosts[b])


def _pairs(operation: Operation) -> list[tuple[int, int]]:
    """From whom to whom an operation's bytes go: of what all take part in, round a ring."""
    match operation:
        case Transfer(source=source, destination=destination, payload_bytes=size):
            return [(source, destination)] if size else []
        case Collective(ranks=ranks) | Exchange(ranks=ranks):
            return list(zip(ranks, (*ranks[1:], ranks[0]), strict=True))
        case _:
            return []


def _draw_spans(
    axes: Any,
    schedule: Sequence[Operation],
    spans: Sequence[Span],
    num_ranks: int,
    links: Sequence[tuple[int, int]],
) -> set[str]:
    """Bars by rank, and below them by link; returns the kinds of work that occur."""
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for operation, span in zip(schedule, spans, strict=True):
        keys: list[tuple[int, str]]
        if isinstance(operation, Compute):
            keys = [(operation.rank, operation.phase)]
        else:
            pairs = [pair for pair in _pairs(operation) if pair in links]
            keys = [(num_ranks + links.index(pair), "exchange") for pair in pairs]
        for key in keys:
            bars.setdefault(key, []).append((span.start * 1e3, (span.end - span.start) * 1e3))
    for (row, kind), stretches in bars.items():
        axes.broken_barh(
            stretches, (row - 0.35, 0.7), color=COLOURS[kind], edgecolor="white", linewidth=0.3
        )
    return {kind for _, kind in bars}

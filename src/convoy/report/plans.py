"""What the planner found, as plain values and as a picture: one step as a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.patches

from convoy.cost.analytic import bound_of
from convoy.cost.profile import Profile
from convoy.cost.schedule import Compute, Operation, Transfer
from convoy.cost.simulate import Span
from convoy.planner import Prediction, Ranking, play
from convoy.runtime.run_folder import write_bytes

COLOURS = {
    "load": "#9aa5b1",
    "forward": "#3b6fb6",
    "replica": "#c7b8d9",
    "backward": "#5fa17a",
    "update": "#d9a441",
    "exchange": "#8c4a6b",
}


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """A ranking of plans for one network."""

    network: str
    ranking: Ranking
    profile: Profile

    def to_dict(self) -> dict[str, Any]:
        """As `convoy plan --json` prints it."""
        ranking = self.ranking
        return {
            "network": self.network,
            "batch_size": ranking.task.batch_size,
            "plans": [self.row(prediction) for prediction in ranking.predictions],
            "chosen": ranking.chosen,
            "advice": ranking.advice,
            "break_even_bandwidth": ranking.break_even_bandwidth,
        }

    def row(self, prediction: Prediction) -> dict[str, Any]:
        """One plan's figures; times and rates are None where there is no plan."""
        world, single, plan = self.ranking.world, self.ranking.best_single, prediction.plan
        shares = plan.shares if plan else (0,) * len(prediction.picks)
        size = self.ranking.task.batch_size
        return {
            "strategy": prediction.strategy.name,
            "machines": [
                {
                    "name": world.devices[pick].machine,
                    "device": world.devices[pick].device,
                    "share": samples / size,
                    "samples": samples,
                }
                for pick, samples in zip(prediction.picks, shares, strict=True)
            ],
            "step_s": prediction.step_s if plan else None,
            "step_p90_s": prediction.step_p90_s if plan else None,
            "images_per_s": prediction.images_per_s if plan else None,
            "amdahl_step_s": bound_of(world, prediction.picks, size).step_s,
            "speedup": single.step_s / prediction.step_s if plan and single else None,
            "sent_bytes_per_step": prediction.sent_bytes_per_step,
            "link_bytes": prediction.link_bytes or {},
            "peak_bytes": list(prediction.peak_bytes),
            "exact": prediction.strategy.exact,
            "feasible": prediction.feasible,
            "reason": prediction.reason,
        }

    def draw(self, path: Path) -> Path:
        """Draw one step of the chosen plan: what each device and each exchange does when."""
        ranking = self.ranking
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
            f"{self.network}, batch of {ranking.task.batch_size}: a step of "
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

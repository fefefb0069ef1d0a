"""What the planner found, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convoy.cost.analytic import bound_of
from convoy.cost.profile import Profile
from convoy.planner import Prediction, Ranking


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
        nothing = (0,) * len(prediction.picks)
        shares, portions = (plan.shares, plan.portions) if plan else (nothing, nothing)
        size = self.ranking.task.batch_size
        return {
            "strategy": prediction.strategy.name,
            "machines": [
                {
                    "name": world.devices[pick].machine,
                    "device": world.devices[pick].device,
                    "share": portion,
                    "samples": samples,
                }
                for pick, samples, portion in zip(prediction.picks, shares, portions, strict=True)
            ],
            "settled": plan.settled if plan else {},
            "divided": {n: list(parts) for n, parts in plan.divided.items()} if plan else {},
            "kept": dict(plan.kept) if plan else {},
            "step_s": prediction.step_s if plan else None,
            "step_p90_s": prediction.step_p90_s if plan else None,
            "images_per_s": prediction.images_per_s if plan else None,
            "amdahl_step_s": bound_of(world, prediction.picks, size).step_s,
            "speedup": single.step_s / prediction.step_s if plan and single else None,
            "sent_bytes_per_step": prediction.sent_bytes_per_step,
            "link_bytes": prediction.link_bytes or {},
            "peak_bytes": list(prediction.peak_bytes),
            "exact": prediction.exact,
            "feasible": prediction.feasible,
            "reason": prediction.reason,
        }

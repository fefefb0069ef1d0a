"""`result.json`: what a run came to, computed from the records that it left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convoy.runtime.records import StepSummary

WARM_UP_STEPS = 5
"""First steps of each generation that speed figures leave out."""
SLOW_RATIO = 1.3
"""A rank that computes this many times longer than the others is named to the user."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run. Times in seconds, sizes in bytes; None where a figure does not apply."""

    strategy: str
    network: str
    dataset: str
    machines: list[dict[str, Any]]
    """{"name", "device", "share"} of each rank at the end."""
    batch_size: int
    steps: int
    epochs: float
    seed: int
    precision: str
    memory_format: str
    wall_s: float
    images_per_s: float | None
    """Training steps only, after warm-up."""
    step_s: dict[str, float | None]
    """{"median", "p90"}"""
    sent_bytes_per_step: float
    """Mean over steps of what all ranks together sent."""
    train_loss: float | None
    """Mean over the samples of the last epoch."""
    test_loss: float | None
    test_accuracy: float | None
    samples_seen: int
    reformations: int
    """How many times ranks were lost and the others formed anew."""
    resumed_from_step: int | None
    slowest: dict[str, Any] | None
    """{"machine", "rank", "ratio"}: whose compute time exceeds the others' most."""
    ranks: list[dict[str, Any]]
    """Medians of the last crew's ranks: {"rank", "machine", "compute_s", "wait_s", "comm_s"}."""
    conv_algorithm: str = "torch"
    convolutions: dict[str, dict[str, str]] = field(default_factory=dict)
    """By rank and layer, the algorithms that were not torch's own."""
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    """One per lost crew: {"step", "lost", "seconds"}, from the loss to the next step's end."""
    rebalancings: list[dict[str, Any]] = field(default_factory=list)
    """One per time that shares were cut anew: {"step", "from", "to"}, samples by rank."""
    startup_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase up to the first step, from the start of the process."""
    servers: dict[str, Any] | None = None
    """Of asynchronous training: {"shards", "updates", "apply_s", "lost_updates", "restorations",
    "moves", "staleness": {"histogram", "mean", "max"}, "samples_repeated", "steps_leased_again"}:
    samples recorded twice, and steps of dead replicas, some of which may have been done already."""
    predicted_step_s: float | None = None
    predicted_images_per_s: float | None = None
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"folder": str(self.folder)}


def steady(steps: Sequence[StepSummary]) -> list[StepSummary]:
    """The steps after each generation's warm-up; all of them where that would leave none."""
    seen: dict[int, int] = {}
    kept = []
    for step in steps:
        seen[step.generation] = seen.get(step.generation, 0) + 1
        if seen[step.generation] > WARM_UP_STEPS and step.wall_s > 0:
            kept.append(step)
    return kept or [step for step in steps if step.wall_s > 0]


def speed(steps: Sequence[StepSummary]) -> dict[str, Any]:
    """images_per_s and step_s of a run's steps."""
    times = [step.wall_s for step in steady(steps)]
    if not times:
        return {"images_per_s": None, "step_s": {"median": None, "p90": None}}
    images = sum(step.samples for step in steady(steps))
    # inclusive: the other method guesses at times longer than any that was measured
    p90 = statistics.quantiles(times, n=10, method="inclusive")[-1] if len(times) > 1 else times[0]
    return {
        "images_per_s": images / sum(times),
        "step_s": {"median": statistics.median(times), "p90": p90},
    }


def rank_times(steps: Sequence[StepSummary]) -> list[dict[str, Any]]:
    """Median times of each rank of the last crew."""
    if not steps:
        return []
    last = [step for step in steady(steps) if step.generation == steps[-1].generation]
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for step in last or steps[-1:]:
        for row in step.ranks:
            if row["compute_s"] is not None:
                rows.setdefault(row["rank"], []).append(row)
    return [
        {"rank": rank, "machine": of_rank[0]["machine"], "samples": of_rank[0]["samples"]}
        | {
            key: statistics.median(row[key] for row in of_rank)
            for key in ("compute_s", "wait_s", "comm_s", "sent_bytes")
        }
        for rank, of_rank in sorted(rows.items())
    ]


def slowest(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The rank that computes longest, against the median of the others.

    Shares are meant to make all ranks finish together, so a ratio far above 1 is a machine
    slower than its share allows. Waiting does not count as computing.
    """
    if len(ranks) < 2:
        return None
    worst = max(ranks, key=lambda row: row["compute_s"])
    others = statistics.median(r["compute_s"] for r in ranks if r["rank"] != worst["rank"])
    if others <= 0:
        return None
    return {
        "machine": worst["machine"],
        "rank": worst["rank"],
        "ratio": worst["compute_s"] / others,
    }

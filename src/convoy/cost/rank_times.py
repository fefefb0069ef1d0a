"""When operations ran, split into each rank's computing, waiting and communicating."""

from __future__ import annotations

from dataclasses import dataclass

from convoy.cost.schedule import Compute, Schedule, ranks_of, sent_by_rank


@dataclass(frozen=True, kw_only=True)
class Span:
    """When an operation ran, in seconds from the start of the step."""

    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """One rank's step, as `steps.jsonl` has it."""

    compute_s: float
    wait_s: float
    comm_s: float
    wall_s: float
    sent_bytes: int


def split_ranks(
    schedule: Schedule, spans: tuple[Span, ...], num_ranks: int
) -> tuple[RankTimes, ...]:
    """Split each rank's step as a real run does: it is blocked while it does not compute.

    A rank's step ends with the last operation that it takes part in. Of the time for which all are
    blocked, as much as the least blocked one is counts as communicating.
    """
    walls, computed = [0.0] * num_ranks, [0.0] * num_ranks
    for operation, span in zip(schedule, spans, strict=True):
        for rank in ranks_of(operation):
            walls[rank] = max(walls[rank], span.end)
        if isinstance(operation, Compute):
            computed[operation.rank] += span.end - span.start
    blocked = [max(0.0, wall - own) for wall, own in zip(walls, computed, strict=True)]
    comm_s = min(blocked, default=0.0)
    sent = sent_by_rank(schedule, num_ranks)
    return tuple(
        RankTimes(
            compute_s=walls[rank] - blocked[rank],
            wait_s=blocked[rank] - comm_s,
            comm_s=comm_s,
            wall_s=walls[rank],
            sent_bytes=sent[rank],
        )
        for rank in range(num_ranks)
    )

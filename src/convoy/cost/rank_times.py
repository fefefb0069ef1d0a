"""When operations ran, split into each rank's computing, waiting and communicating."""

from __future__ import annotations

from dataclasses import dataclass

from convoy.cost.schedule import Collective, Schedule, sent_by_rank


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
    """Split each rank's step as a real run does: blocked from its last collective's issue on."""
    step_s = max((span.end for span in spans), default=0.0)
    last: dict[int, int] = {}
    for index, operation in enumerate(schedule):
        if isinstance(operation, Collective):
            last |= dict.fromkeys(operation.ranks, index)
    blocked = [0.0] * num_ranks
    for index in set(last.values()):
        issued: dict[int, float] = {}
        for before in schedule[index].after:
            rank = getattr(schedule[before], "rank", None)
            if rank is not None:
                issued[rank] = max(issued.get(rank, 0.0), spans[before].end)
        for rank, its_last in last.items():
            if its_last == index:
                blocked[rank] = spans[index].end - issued.get(rank, spans[index].start)
    comm_s = min(blocked, default=0.0)
    sent = sent_by_rank(schedule, num_ranks)
    return tuple(
        RankTimes(
            compute_s=step_s - blocked[rank],
            wait_s=blocked[rank] - comm_s,
            comm_s=comm_s,
            wall_s=step_s,
            sent_bytes=sent[rank],
        )
        for rank in range(num_ranks)
    )

"""Who is left out where a strategy cannot plan for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from convoy.cost.curve import Curve
from convoy.cost.layers import NetworkFacts
from convoy.errors import UsageError
from convoy.runtime.lineup import plan_for_most
from convoy.strategies import Plan, Problem, Worker


def workers(*weights: float) -> list[Worker]:
    return [Worker(index=i, machine=f"m{i}", device="cpu", weight=w) for i, w in enumerate(weights)]


def plan_of_two(some: Sequence[Worker]) -> Plan:
    """Of two workers; anything else is too much, or too little."""
    if len(some) != 2:
        raise UsageError(f"{len(some)} are not two")
    network = NetworkFacts(num_parameters=1, num_buffers=0)
    return Plan(problem=Problem(batch_size=2, workers=tuple(some), network=network), shares=(1, 1))


def taking_part(plan: Plan) -> list[int]:
    return [worker.index for worker in plan.problem.workers]


def test_the_slowest_are_left_out_and_the_others_stay_in_their_order() -> None:
    assert taking_part(plan_for_most(plan_of_two, workers(1, 4, 2, 3))) == [1, 3]


def test_what_was_measured_counts_more_than_weights() -> None:
    some = [
        replace(worker, seconds=Curve((1, 8), (s, 8 * s)))
        for worker, s in zip(workers(9, 1, 1), (3.0, 1.0, 2.0), strict=True)
    ]
    assert taking_part(plan_for_most(plan_of_two, some)) == [1, 2]


def test_nobody_is_left_out_without_need() -> None:
    assert taking_part(plan_for_most(plan_of_two, workers(1, 4))) == [0, 1]


def test_one_that_is_needed_takes_part() -> None:
    assert taking_part(plan_for_most(plan_of_two, workers(1, 4, 2, 3), needed=0)) == [0, 1]


def test_what_was_said_of_all_is_said_where_there_is_no_plan_at_all() -> None:
    with pytest.raises(UsageError, match="1 are not two"):
        plan_for_most(plan_of_two, workers(1))
    with pytest.raises(UsageError, match="3 are not two"):
        plan_for_most(
            lambda some: plan_of_two(some[:1] if len(some) == 2 else some), workers(1, 2, 3)
        )

"""Replicas of several devices: who has what, which shards it talks to, and what travels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

from convoy import networks
from convoy.cost.layers import facts_of
from convoy.cost.schedule import Collective, Compute, Transfer, sent_by_rank
from convoy.errors import UsageError
from convoy.strategies import Problem, Worker
from convoy.strategies.downpour import Downpour
from convoy.strategies.downpour_plan import DownpourPlan
from convoy.strategies.pipeline_drawing import TARGET_BYTES

BATCH = 12
NETWORK = "chavan:3-16-32-10"


def problem(weights: Sequence[float], network: nn.Module | None = None, **changes: Any) -> Problem:
    """Devices as fast as their weights say, each on a machine of its own."""
    network = network or networks.build(NETWORK, input_shape=(1, 8, 8), num_classes=10)
    workers = tuple(
        Worker(index=i, machine=f"m{i}", device="cpu", weight=weight)
        for i, weight in enumerate(weights)
    )
    facts = facts_of(network, (1, 8, 8))
    return Problem(**({"batch_size": BATCH, "workers": workers, "network": facts} | changes))


def planned(weights: Sequence[float], **options: Any) -> DownpourPlan:
    return Downpour(**({"replica_devices": 2} | options)).plan(problem(weights))


def names(plan: DownpourPlan, place: int) -> set[str]:
    """Parameters in the shards of a place."""
    shards = plan.layout.shards_of(place)
    return {piece.name for shard in shards for piece in plan.layout.pieces[shard]}


def test_each_device_talks_to_the_shards_of_its_own_layers() -> None:
    plan = planned((1.0, 1.0, 1.0, 1.0))
    assert len(plan.speeds) == 2
    shapes = dict(plan.problem.network.shapes)
    layers = [set(stage.layers) for stage in plan.stages]
    assert len(layers) == 2
    for place in (0, 1):
        assert {name.rpartition(".")[0] for name in names(plan, place)} <= layers[place]
    assert names(plan, 0) | names(plan, 1) == set(shapes)
    assert not names(plan, 0) & names(plan, 1)
    assert sum(plan.sizes) == plan.problem.network.num_parameters
    # on a machine that has the same part of some replica
    for home, place in zip(plan.homes, plan.layout.places, strict=True):
        assert home % 2 == place
    assert plan.shares == (6, 0, 6, 0)
    assert sum(plan.portions) == pytest.approx(1)
    assert plan.settled["replicas"] == 2


@pytest.mark.parametrize("shards", [2, 3, 5, 9])
def test_as_many_shards_as_asked_for(shards: int) -> None:
    plan = planned((1.0, 1.0), shards=shards)
    assert len(plan.sizes) == shards
    assert set(plan.layout.places) == {0, 1}
    assert sum(plan.sizes) == plan.problem.network.num_parameters


def test_what_no_pass_uses_is_the_first_devices() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(3, 3)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))

        def forward(self, x: Any) -> Any:
            return self.body(x)

    plan = Downpour(replica_devices=2).plan(problem((1.0, 1.0), Idle()))
    assert {"idle.weight", "idle.bias"} <= names(plan, 0)
    assert sum(plan.sizes) == plan.problem.network.num_parameters


def test_those_left_over_are_the_slowest() -> None:
    plan = planned((1.0, 0.2, 3.0, 2.0, 0.1))
    assert [worker.index for worker in plan.problem.workers] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"replica_devices": 3}, "there are 2 devices in all. Give --replica-devices 2 or fewer"),
        ({"shards": 1}, "--shards 1: the 2 devices of a replica have shards of their own, 2 at"),
        ({"shards": 10**6}, "fill 116 at most"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as raised:
        planned((1.0, 1.0), **options)
    assert text in str(raised.value)


def test_a_network_that_cannot_be_cut_so_often() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4))
    with pytest.raises(UsageError, match="cannot be cut into as many stages"):
        Downpour(replica_devices=9).plan(problem((1.0,) * 9, network))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"replica_devices": 0}, "--replica-devices 0: expected a whole number of 1 or more"),
        ({"micro_batches": 0, "replica_devices": 2}, "--micro-batches 0: expected a whole"),
        ({"micro_batches": 4}, "a replica of one device takes batches whole"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as raised:
        Downpour(**options)
    assert text in str(raised.value)


def test_what_travels_in_a_step_by_the_formula() -> None:
    """Maps on and gradients back, classes and the loss; and to each device its own shards'."""
    strategy = Downpour(replica_devices=2, micro_batches=3)
    plan = planned((1.0, 1.0), micro_batches=3)
    schedule = strategy.schedule(plan, 0)
    assert not any(isinstance(operation, Collective) for operation in schedule)
    moved: Counter[tuple[int, int]] = Counter()
    for operation in schedule:
        if isinstance(operation, Transfer):
            moved[operation.source, operation.destination] += operation.payload_bytes
    cut = plan.stages[0].cut
    assert cut is not None
    maps = BATCH * cut.elements * 4
    own = [sum(plan.sizes[shard] for shard in plan.layout.shards_of(place)) for place in (0, 1)]
    assert plan.homes == (0, 1)
    assert moved == {
        (0, 1): maps + BATCH * TARGET_BYTES,
        (1, 0): maps + 4,
        (0, 0): 2 * 4 * own[0],
        (1, 1): 2 * 4 * own[1],
    }
    computed = [op for op in schedule if isinstance(op, Compute) and op.phase == "forward"]
    assert sum(op.samples for op in computed if op.rank == 0) == BATCH * len(plan.stages[0].layers)
    updates = [op for op in schedule if isinstance(op, Compute) and op.phase == "update"]
    assert sum(op.part for op in updates) == pytest.approx(1)


def test_replicas_side_by_side() -> None:
    strategy = Downpour(replica_devices=2)
    plan = planned((1.0, 1.0, 1.0, 1.0))
    stretch, count = strategy.stretch(plan)
    one = sum(sent_by_rank(strategy.schedule(plan, 0), 4))
    assert sum(sent_by_rank(stretch, 4)) == count * one
    assert {op.step for op in stretch if isinstance(op, Compute)} == set(range(count))
    ranks = {op.rank for op in stretch if isinstance(op, Compute) and op.phase == "forward"}
    assert ranks == {0, 1, 2, 3}


def test_each_device_holds_its_part_only() -> None:
    strategy = Downpour(replica_devices=2)
    plan = planned((1.0, 1.0, 1.0, 1.0))
    parameters = strategy.parameters(plan)
    assert parameters[:2] == parameters[2:]
    assert sum(parameters[:2]) == plan.problem.network.num_parameters
    whole = Downpour().plan(problem((1.0, 1.0)))
    assert max(strategy.activations(plan)) < Downpour().activations(whole)[0] + BATCH * 1000
    assert max(parameters) < Downpour().parameters(whole)[0]

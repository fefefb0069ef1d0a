"""What `downpour` plans and draws, against closed forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convoy.cost.fabric import Fabric
from convoy.cost.layers import LayerSize, NetworkFacts
from convoy.cost.schedule import Compute, Schedule, Transfer, sent_by_rank
from convoy.cost.simulate import simulate
from convoy.errors import UsageError
from convoy.strategies import Problem, Worker
from convoy.strategies.downpour import Accrued, Downpour, DownpourPlan
from convoy.strategies.push_codec import parse_wire

BATCH = 120
SHAPES = (("conv", (10, 1, 5, 5)), ("fc", (100, 7)), ("bias", (50,)))
NUM_PARAMETERS = 1000
LAYERS = tuple(LayerSize(name=f"layer{i}") for i in range(20))
"""An update waits until the layer at hand is computed: with many it hardly does."""


def problem(
    weights: Sequence[float],
    machines: Sequence[str] = (),
    *,
    shapes: Any = SHAPES,
    num_parameters: int = NUM_PARAMETERS,
    **changes: Any,
) -> Problem:
    """Replicas as fast as their weights say, each on a machine of its own."""
    names = machines or [f"m{i}" for i in range(len(weights))]
    workers = tuple(
        Worker(index=i, machine=name, device="cpu", weight=weight)
        for i, (name, weight) in enumerate(zip(names, weights, strict=True))
    )
    facts = NetworkFacts(num_parameters=num_parameters, num_buffers=0, shapes=shapes, layers=LAYERS)
    values: dict[str, Any] = {"batch_size": BATCH, "workers": workers, "network": facts}
    return Problem(**(values | changes))


def planned(strategy: Downpour, *args: Any, **changes: Any) -> DownpourPlan:
    plan = strategy.plan(problem(*args, **changes))
    assert isinstance(plan, DownpourPlan)
    return plan


def fabric(count: int, bandwidth: float, latency_s: float = 0.0) -> Fabric:
    """Hosts that send and receive so much, also to themselves."""
    of_each = dict.fromkeys(range(count), bandwidth)
    return Fabric(
        hosts=tuple(range(count)),
        up=of_each,
        down=of_each,
        within=bandwidth if count == 1 else float("inf"),
        latency_s=latency_s,
    )


# Plans


def test_shards_are_beside_the_fastest_replicas_of_machines() -> None:
    plan = planned(Downpour(shards=3), (1.0, 2.0, 5.0, 3.0), ("a", "a", "b", "c"))
    assert plan.homes == (2, 3, 1)  # fastest first
    assert plan.settled == {"shards": 3, "in_flight": 0, "expected_staleness": 3.0}


@pytest.mark.parametrize(
    ("speeds", "shards"),
    [
        ((1.0,), 1),
        ((1.0, 1.0), 1),  # either way a link carries what one replica pushes
        ((2.0, 1.0), 1),  # 1 against 0.5 + 1
        ((1.0, 1.0, 1.0), 3),  # 2 against 1.5 and 4 / 3
        ((9.0, 1.0, 1.0), 1),  # the fast one would fetch half of its weights from a slow one
        ((1.0,) * 40, 8),
    ],
)
def test_as_few_shards_as_keep_the_busiest_link_least_busy(
    speeds: tuple[float, ...], shards: int
) -> None:
    large: dict[str, Any] = {"shapes": (("fc", (100, 100_000)),), "num_parameters": 10**7}
    assert planned(Downpour(), speeds, **large).settled["shards"] == shards
    assert planned(Downpour(), speeds).settled["shards"] == 1  # of little, not even that


def test_more_shards_than_machines_go_round() -> None:
    plan = planned(Downpour(shards=5), (1.0, 2.0))
    assert plan.homes == (1, 0, 1, 0, 1)
    assert len(plan.sizes) == 5


@pytest.mark.parametrize("shards", [1, 2, 7, "auto"])
def test_shards_hold_all_parameters(shards: Any) -> None:
    plan = planned(Downpour(shards=shards), (1.0, 1.0, 1.0))
    assert sum(plan.sizes) == NUM_PARAMETERS
    assert min(plan.sizes) > 0


def test_parts_of_the_work_follow_speeds() -> None:
    assert planned(Downpour(), (1.0, 2.0, 5.0)).shares == (15, 30, 75)
    assert planned(Downpour(), (3.0, 1.0)).portions == (0.75, 0.25)


def test_measured_times_count_more_than_weights() -> None:
    slow, fast = 0.03, 0.01
    workers = tuple(
        Worker(
            index=i,
            machine=f"m{i}",
            device="cpu",
            weight=9.0 - i,
            seconds=lambda n, s=seconds: s * n,  # type: ignore[misc, arg-type]
        )
        for i, seconds in enumerate((slow, fast))
    )
    plan = planned(Downpour(shards=2), (1.0, 1.0), workers=workers)
    assert plan.shares == (30, 90)
    assert plan.homes == (1, 0)


def test_a_network_of_unknown_shapes_is_cut_anywhere() -> None:
    plan = planned(Downpour(shards=3), (1.0,), shapes=(), num_parameters=100)
    assert sorted(plan.sizes) == [33, 33, 34]


def test_few_parameters_get_few_shards_unless_asked_for_more() -> None:
    changes: dict[str, Any] = {"shapes": (("scale", ()), ("bias", (1,))), "num_parameters": 2}
    weights = (1.0,) * 5
    assert planned(Downpour(), weights, **changes).sizes == (2,)
    with pytest.raises(
        UsageError, match=r"^--shards 5: 2 parameters in 2 tensors.*Give --shards 2 or fewer$"
    ):
        planned(Downpour(shards=5), weights, **changes)


def test_few_wide_rows_still_fill_as_many_shards_as_are_asked_for() -> None:
    """A row is larger than what a shard should hold: others make up for it."""
    shapes = (("conv", (16, 9)), ("fc", (2, 8000)), ("bias", (2,)))
    plan = planned(Downpour(shards=6), (1.0,) * 6, shapes=shapes, num_parameters=16146)
    assert len(plan.sizes) == 6
    assert sum(plan.sizes) == 16146


def test_batches_may_be_smaller_than_there_are_replicas() -> None:
    plan = planned(Downpour(), (1.0, 2.0, 1.0), batch_size=2)
    assert plan.portions == (0.25, 0.5, 0.25)
    assert set(plan.takers) == {0, 1, 2}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.2, 8), min_size=1, max_size=8))
def test_steps_of_a_stretch_go_to_replicas_by_their_speed(weights: list[float]) -> None:
    plan = planned(Downpour(), weights)
    counts = Counter(plan.takers)
    assert set(counts) == set(range(len(weights)))
    for rank, share in enumerate(plan.shares):
        assert abs(counts[rank] - len(plan.takers) * share / BATCH) <= 1.5


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 0}, r"--shards 0: expected .* of 1 or more"),
        ({"shards": 1.5}, r"--shards 1\.5: expected a whole number of 1 or more"),
        ({"shards": "all"}, r"--shards all: expected a whole number of 1 or more"),
        ({"fetch_every": 0}, r"--fetch-every 0: expected a whole number of 1 or more"),
        ({"push_every": True}, r"--push-every True: expected a whole number of 1 or more"),
        ({"warm_start": -1}, r"--warm-start -1: expected a whole number of 0 or more"),
        ({"in_flight": -1}, r"--in-flight -1: expected a whole number of 0 or more"),
        ({"snapshot_s": 0}, r"--snapshot-s 0: expected a whole number of 1 or more"),
        ({"max_staleness": -1}, r"--max-staleness -1: expected a whole number of 0 or more"),
        ({"max_staleness": "any"}, r"--max-staleness any: expected a whole number of 0 or more"),
        ({"staleness_scaled": "maybe"}, r"--staleness-scaled maybe: expected yes or no"),
        ({"wire": "fp8"}, r"--wire fp8: expected fp32, bf16, or topk: and a fraction"),
    ],
)
def test_options_say_what_was_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="^" + message):
        Downpour(**options)


@pytest.mark.parametrize(("in_flight", "without"), [(0, 0), (1, 1), (3, 3)])
def test_no_push_is_in_flight_where_staleness_is_bounded(in_flight: int, without: int) -> None:
    assert planned(Downpour(in_flight=in_flight), (1.0, 1.0)).depth == without
    for bound in range(3):
        bounded = Downpour(in_flight=in_flight, max_staleness=bound)
        assert planned(bounded, (1.0, 1.0)).depth == 0


@pytest.mark.parametrize("bound", [0, 5])
def test_a_bound_needs_weights_with_every_push(bound: int) -> None:
    with pytest.raises(
        UsageError,
        match=rf"^--max-staleness {bound} with --fetch-every 4 and --push-every 1: .*"
        r"Fetch at least as often as you push",
    ):
        Downpour(fetch_every=4, push_every=1, max_staleness=bound)
    assert Downpour(fetch_every=2, push_every=4, max_staleness=bound).bound == bound


def test_what_is_asked_of_the_servers() -> None:
    strategy = Downpour(
        fetch_every=4, push_every=6, wire="bf16", staleness_scaled="yes", warm_start=9
    )
    terms = strategy.terms(planned(strategy, (1.0, 1.0)))
    assert terms is not None
    assert (terms.bound, terms.window, terms.warm_start, terms.depth) == (None, 12, 9, 0)
    assert terms.staleness_scaled
    assert terms.wire == parse_wire("bf16")


# Schedules


@pytest.mark.parametrize("wire", ["fp32", "bf16", "topk:0.05"])
@pytest.mark.parametrize("element_bytes", [4, 8])
def test_bytes_are_those_of_the_wire(wire: str, element_bytes: int) -> None:
    strategy = Downpour(shards=3, wire=wire)
    plan = planned(strategy, (1.0, 2.0), element_bytes=element_bytes)
    of_wire = parse_wire(wire)
    pushed = sum(of_wire.push_bytes(size, element_bytes) for size in plan.sizes)
    fetched = sum(of_wire.fetch_bytes(size, element_bytes) for size in plan.sizes)
    for step in range(4):
        assert sum(sent_by_rank(strategy.schedule(plan, step), 2)) == pushed + fetched
    whole, count = strategy.stretch(plan)
    assert sum(sent_by_rank(whole, 2)) == count * (pushed + fetched)


@pytest.mark.parametrize(("fetch_every", "push_every"), [(1, 2), (2, 1), (4, 2), (3, 1)])
def test_pushes_and_fetches_are_as_rare_as_asked_for(fetch_every: int, push_every: int) -> None:
    strategy = Downpour(shards=2, fetch_every=fetch_every, push_every=push_every)
    plan = planned(strategy, (1.0, 3.0))
    whole, count = strategy.stretch(plan)
    of_replica = Counter(plan.takers)
    expected = sum(
        NUM_PARAMETERS * 4 * (taken // fetch_every + taken // push_every)
        for taken in of_replica.values()
    )
    assert sum(of_replica.values()) == count
    assert sum(sent_by_rank(whole, 2)) == expected
    assert len(updates(whole)) == 2 * sum(taken // push_every for taken in of_replica.values())


def updates(schedule: Schedule) -> list[Compute]:
    return [op for op in schedule if isinstance(op, Compute) and op.phase == "update"]


def test_a_step_pushes_what_it_has_computed_and_fetches_what_came_of_it() -> None:
    strategy = Downpour(shards=2)
    plan = planned(strategy, (1.0, 1.0))
    schedule = strategy.schedule(plan, 0)
    assert sum(compute.part for compute in updates(schedule)) == pytest.approx(1)
    for index, operation in enumerate(schedule):
        match operation:
            case Compute(phase="update", rank=home):
                (before,) = operation.after
                push = schedule[before]
                assert isinstance(push, Transfer)
                assert push.destination == home
                (computed,) = push.after
                assert schedule[computed].phase == "backward"  # type: ignore[union-attr]
                answer = schedule[index + 1]
                assert isinstance(answer, Transfer)
                assert (answer.source, answer.after) == (home, (index,))


def seconds(speeds: Sequence[float], update_s: float = 0.0) -> Any:
    """Replicas that compute BATCH samples in 1 / speed, two fifths of it forward."""

    def of(compute: Compute) -> float:
        parts = {"load": 0.0, "forward": 0.4, "backward": 0.6}
        if compute.phase == "update":
            return update_s * compute.part
        return parts[compute.phase] / len(LAYERS) / speeds[compute.rank]

    return of


@pytest.mark.parametrize("wire", ["fp32", "bf16", "topk:0.1"])
def test_one_replica_alone_by_the_formula(wire: str) -> None:
    """It waits for its own answer: compute, push, update, fetch."""
    strategy = Downpour(wire=wire, in_flight=2)
    plan = planned(strategy, (1.0,))
    whole, count = strategy.stretch(plan)
    step_s = simulate(whole, seconds([0.5], update_s=0.125), fabric(1, 8000.0)).step_s / count
    of_wire = parse_wire(wire)
    moved = of_wire.push_bytes(NUM_PARAMETERS, 4) + of_wire.fetch_bytes(NUM_PARAMETERS, 4)
    assert step_s == pytest.approx(2.0 + moved / 8000 + 0.125)


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("speeds", [(1.0, 1.0), (3.0, 1.0), (5.0, 2.0, 1.0)], ids=str)
def test_with_a_fast_link_speeds_add_up(speeds: tuple[float, ...], in_flight: int) -> None:
    strategy = Downpour(in_flight=in_flight)
    plan = planned(strategy, speeds)
    whole, count = strategy.stretch(plan)
    played = simulate(whole, seconds(speeds), fabric(len(speeds), 1e9))
    # what each has begun when the last is done is not counted: at most a step of each
    assert count / played.step_s == pytest.approx(sum(speeds), rel=0.15)
    assert count / played.step_s <= sum(speeds) * (1 + 1e-9)


@pytest.mark.parametrize("num_others", [1, 3])
def test_with_a_slow_link_the_servers_link_is_the_bound(num_others: int) -> None:
    """All weights are with the fastest replica; the others' pushes meet on its link."""
    speeds = (2.0, *(1.0,) * num_others)
    strategy = Downpour(shards=1, in_flight=1)
    plan = planned(strategy, speeds)
    assert plan.homes == (0,)
    whole, _ = strategy.stretch(plan)
    bandwidth = 400.0  # 4000 bytes take 10 s
    played = simulate(whole, seconds(speeds), fabric(len(speeds), bandwidth))
    remote = sum(1 for taker in plan.takers if taker)
    least = remote * NUM_PARAMETERS * 4 / bandwidth
    assert least < played.step_s
    # and that is about all: a first computation, and an answer that overlaps no push
    assert played.step_s < 2 * least + 2
    fast = simulate(whole, seconds(speeds), fabric(len(speeds), 1e9)).step_s
    assert played.step_s > 5 * fast


def test_pushes_in_flight_hide_the_way_to_the_server() -> None:
    """A push and its answer take as long as a computation: one in flight hides them."""
    speeds = (1.0, 1.0)
    times = []
    for in_flight in (0, 1):
        strategy = Downpour(shards=1, in_flight=in_flight)
        whole, count = strategy.stretch(planned(strategy, speeds))
        played = simulate(whole, seconds(speeds), fabric(2, 1e9, latency_s=0.5))
        last = max(
            span.end
            for operation, span in zip(whole, played.spans, strict=True)
            if isinstance(operation, Compute)
            and operation.rank == 1
            and operation.phase != "update"
        )
        times.append(last)
        assert count == 8  # four each
    assert times == [pytest.approx(4 + 3 * 1.0, rel=0.02), pytest.approx(4.0, rel=0.02)]


# A replica's gradients


def test_gradients_add_up_until_they_are_taken() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    accrued = Accrued(model)
    for value in (1.0, 2.0):
        model.weight.grad = torch.full((1, 2), value, dtype=torch.float64)
        own = accrued.add(3)
        assert own["weight"].tolist() == [[value, value]]
        assert model.weight.grad is None
    push = accrued.taken(0.5)
    assert push.gradients["weight"].tolist() == [[3.0, 3.0]]
    assert (push.samples, push.lr) == (6, 0.5)
    model.weight.grad = torch.ones(1, 2, dtype=torch.float64)
    accrued.add(1)
    assert accrued.taken(0.1).gradients["weight"].tolist() == [[1.0, 1.0]]


def test_what_has_no_gradient_is_pushed_as_zeros_and_what_is_frozen_not_at_all() -> None:
    model = nn.ModuleDict({"used": nn.Linear(1, 1), "frozen": nn.Linear(1, 1)})
    model["frozen"].requires_grad_(False)
    accrued = Accrued(model)
    accrued.add(2)
    found = accrued.taken(0.1).gradients
    assert {name: gradient.sum() for name, gradient in found.items()} == {
        "used.weight": 0,
        "used.bias": 0,
    }


@pytest.mark.parametrize(("bound", "together", "first"), [(0, 0.2, 0.5), (100, 1.1, 10 / 11)])
def test_a_bound_on_staleness_is_foreseen(bound: int, together: float, first: float) -> None:
    """Without one, machines of 1 and a tenth do 1.1 of what the first does; in step, a fifth."""
    free = planned(Downpour(), (1.0, 0.1))
    held = planned(Downpour(max_staleness=bound), (1.0, 0.1))
    assert free.staleness == 1
    assert held.staleness <= min(bound, 1.05)
    assert sum(free.speeds) == pytest.approx(1.1)
    assert sum(held.speeds) == pytest.approx(together, rel=0.05)
    assert max(held.of_replicas) == pytest.approx(first, rel=0.05)

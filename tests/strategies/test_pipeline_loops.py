"""`pipeline` with several stages on each device: where it cuts, what it gains, that it is exact."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.cost.fabric import Fabric
from convoy.cost.schedule import Compute, Transfer, sent_by_rank
from convoy.cost.simulate import Played, simulate
from convoy.strategies import pipeline_loops
from convoy.strategies.pipeline_drawing import idle_fraction
from convoy.strategies.pipeline_loops import best_loop
from convoy.strategies.pipeline_orders import KINDS, Kind
from convoy.strategies.pipeline_parallel import PipelineParallel, PipelinePlan
from convoy.strategies.pipeline_partition import Costs

from .harness import Crew, Halt, job_for, plan_of
from .reference import assert_equal, first_part, train_alone, train_in_micro_batches
from .test_pipeline_parallel import WEIGHTS, chain, measured, problem
from .test_pipeline_partition import costs_of


def _played(strategy: PipelineParallel, plan: PipelinePlan) -> Played:
    """A step of which every stage takes a micro-batch 1 s forward and 2 s back, and links none."""
    hosts = tuple(range(plan.depth))
    capacity = dict.fromkeys(hosts, math.inf)

    def seconds(compute: Compute) -> float:
        return {"forward": 1.0, "backward": 2.0}.get(compute.phase, 0.0)

    fabric = Fabric(hosts=hosts, up=capacity, down=capacity)
    return simulate(strategy.schedule(plan, 0), seconds, fabric)


def seconds_of(
    costs: Costs, devices: tuple[int, ...], ends: tuple[int, ...], micro_batches: int
) -> float:
    """By the definition."""
    depth, starts = len(devices), (0, *ends)
    busy = dict.fromkeys(devices, 0.0)
    rounds = [0.0] * (len(ends) // depth)
    links: dict[frozenset[int], float] = {}
    both = 0.0
    for stage, end in enumerate(ends):
        device = devices[stage % depth]
        taken = costs.stages[device, starts[stage], end]
        busy[device] += taken
        rounds[stage // depth] = max(rounds[stage // depth], taken)
        if stage < len(ends) - 1:
            there = devices[(stage + 1) % depth]
            pair = frozenset((device, there))
            links[pair] = links.get(pair, 0.0) + costs.one_way[device, there, end]
            both += costs.both_ways[device, there, end]
    longest = max((max(busy.values()) + sum(rounds)) / 2, *links.values())
    through = sum(busy.values()) + both
    steady = micro_batches * longest + max(0.0, through - longest) / len(rounds)
    few = through + (micro_batches - 1) * longest / len(rounds)
    return float(max(steady, few) + costs.first[devices[0]])


@given(st.data())
def test_no_other_cuts_are_better(data: st.DataObject) -> None:
    count, each = data.draw(st.integers(2, 3)), data.draw(st.integers(2, 3))
    segments = data.draw(st.integers(count * each, 10))
    times = st.integers(0, 20)
    way = [[data.draw(times) for _ in range(segments - 1)] for _ in range(count)]
    costs = costs_of(
        [[data.draw(times) for _ in range(segments)] for _ in range(count)],
        [[[a + b for a, b in zip(way[i], way[j], strict=True)] for j in range(count)]
         for i in range(count)],
        [data.draw(times) for _ in range(count)],
    )  # fmt: skip
    devices = tuple(data.draw(st.permutations(range(count))))
    micro_batches = data.draw(st.integers(2, 9))
    found = best_loop(costs, devices, each, micro_batches)
    assert found.devices == devices
    assert len(found.ends) == count * each
    assert found.seconds == pytest.approx(seconds_of(costs, devices, found.ends, micro_batches))
    inner = itertools.combinations(range(1, segments), count * each - 1)
    assert found.seconds == pytest.approx(
        min(seconds_of(costs, devices, (*ends, segments), micro_batches) for ends in inner)
    )


def test_of_too_many_cuts_those_that_divide_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so nearly as well as all of them."""
    random = numpy.random.default_rng(7)
    costs = costs_of(random.integers(1, 20, (2, 24)).tolist())
    best = best_loop(costs, (0, 1), 2, 4).seconds
    monkeypatch.setattr(pipeline_loops, "MOST_DIVISIONS", 200)
    few = best_loop(costs, (0, 1), 2, 4).seconds
    assert best <= few <= 1.15 * best


@pytest.mark.parametrize(
    ("depth", "each", "number"),
    [(2, 2, 1), (2, 2, 3), (2, 3, 4), (3, 2, 2), (3, 2, 6), (4, 2, 2), (4, 3, 3), (4, 2, 8)],
)
def test_of_equal_stages_it_is_what_a_step_takes(depth: int, each: int, number: int) -> None:
    """With as many micro-batches as devices, more and fewer."""
    costs = costs_of([[3] * depth * each] * depth)
    strategy = PipelineParallel(
        pipeline_schedule="gpipe", micro_batches=number, stages_per_device=each
    )
    network = chain(depth * each)
    plan = strategy.plan(problem(network, [1] * depth, batch_size=number))
    found = best_loop(costs, range(depth), each, number).seconds
    assert found == pytest.approx(_played(strategy, plan).step_s)


@given(
    depth=st.integers(2, 5),
    each=st.integers(1, 3),
    number=st.integers(1, 14),
    kind=st.sampled_from(KINDS),
)
def test_no_passes_wait_for_one_another(depth: int, each: int, number: int, kind: Kind) -> None:
    """Every order is drawn to its end, and every pass takes place."""
    strategy = PipelineParallel(
        pipeline_schedule=kind, micro_batches=number, stages_per_device=each
    )
    plan = strategy.plan(problem(chain(depth * each), [1] * depth, batch_size=number))
    drawn = strategy.schedule(plan, 0)
    work = [o for o in drawn if isinstance(o, Compute) and o.phase in ("forward", "backward")]
    assert len(work) == 2 * depth * each * number


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("depth", "each", "number"), [(2, 2, 4), (3, 2, 6), (4, 3, 8)])
def test_the_bubble_of_equal_stages(kind: Kind, depth: int, each: int, number: int) -> None:
    """(D - 1) / v of a micro-batch's time on a device, as Megatron-LM has it (section 2.2.2)."""
    strategy = PipelineParallel(
        pipeline_schedule=kind, micro_batches=number, stages_per_device=each
    )
    plan = strategy.plan(problem(chain(depth * each), [1] * depth, batch_size=number))
    assert (plan.depth, plan.stages_per_device) == (depth, each)
    played = _played(strategy, plan)
    assert played.step_s == pytest.approx(3 * (number * each + depth - 1))
    bubble = (depth - 1) / each
    assert idle_fraction(played) == pytest.approx(bubble / (number + bubble))


def test_who_has_which_stages() -> None:
    strategy = PipelineParallel(micro_batches=4, stages_per_device=2)
    plan = strategy.plan(problem(chain(4), batch_size=4))
    assert [stage.layers for stage in plan.stages_of(0)] == [("l0",), ("l2",)]
    assert plan.divided == {"l0": (1, 0), "l1": (0, 1), "l2": (1, 0), "l3": (0, 1)}
    assert plan.portions == (0.5, 0.5)
    assert plan.settled == {
        "pipelines": 1,
        "stages_per_device": 2,
        "micro_batches": 4,
        "pipeline_schedule": "1f1b",
    }
    assert strategy.parameters(plan) == (40, 40)
    gpipe = replace(plan, kind="gpipe")
    ends = 4 * 3 * 20  # of stages: the maps of 4 samples, and their gradients
    assert strategy.activations(gpipe) == (4 * 20 + ends, 4 * 20 + ends)
    assert strategy.activations(plan) == (5 * 10 + ends, 3 * 10 + ends)
    pairs = [o for o in strategy.schedule(plan, 0) if isinstance(o, Transfer)]
    assert sum(1 for o in pairs if (o.source, o.destination) == (0, 1)) == 4 * (2 + 1) + 1
    assert sum(1 for o in pairs if (o.source, o.destination) == (1, 0)) == 4 * (1 + 2) + 1


def test_no_more_stages_than_there_are_cuts() -> None:
    plan = PipelineParallel(stages_per_device=9).plan(problem(chain(7), (1, 1, 1)))
    assert plan.stages_per_device == 2


def test_several_stages_where_that_pays() -> None:
    """Passes that cost the same for any samples: few micro-batches, and a bubble to be filled."""
    case = measured(chain(8), (1.0, 1.0), fixed_s=8e-3)
    plan = PipelineParallel().plan(case)
    assert plan.stages_per_device > 1
    assert plan.micro_batches < 64
    strategy = PipelineParallel(stages_per_device=1)
    assert case.world is not None
    seconds, fabric = case.world.seconds((0, 1)), case.world.fabric((0, 1))
    single = simulate(strategy.schedule(strategy.plan(case), 0), seconds, fabric).step_s
    assert simulate(strategy.schedule(plan, 0), seconds, fabric).step_s < single
    slow = replace(case.world, bandwidths=dict.fromkeys(case.world.bandwidths, 2e4))
    dear = PipelineParallel().plan(replace(case, world=slow))
    assert dear.stages_per_device == 1  # what crosses more often takes longer


@pytest.mark.parametrize(
    ("optimizer", "kind", "number"), [("sgd", "gpipe", 2), ("adam", "1f1b", 3)]
)
def test_a_known_network_is_one_machines(
    crew: Crew, optimizer: str, kind: Kind, number: int
) -> None:
    """Steps of four samples and of two."""
    options = {"micro_batches": number, "pipeline_schedule": kind, "stages_per_device": 2}
    job = job_for("plain", "pipeline", options, batch_size=4, steps=2, optimizer=optimizer)
    job = replace(job, network="cifar10-full", dataset="synthetic:3x32x32:10:6")
    plan = plan_of(job, WEIGHTS)
    assert plan.settled["stages_per_device"] == 2
    expected = train_in_micro_batches(job, number)
    sent = sent_by_rank(job.strategy.schedule(plan, 0), 3)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert report.outcome.kind == "finished"
        assert_equal(report.state, expected, atol=1e-9)
        assert report.records[0]["sent_bytes"] == sent[report.rank]


def test_batches_are_normalised_by_micro_batch(crew: Crew) -> None:
    options = {"micro_batches": 3, "stages_per_device": 2}
    job = job_for("normalised", "pipeline", options, optimizer="adam")
    assert plan_of(job, (3, 5)).settled["stages_per_device"] == 2
    for report in crew.run(job, (3, 5), first_part(job)):
        assert_equal(report.state, train_in_micro_batches(job, 3, least=2), atol=1e-9)


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("branched", "gpipe"),
        ("branched", "1f1b"),
        ("overwriting", "1f1b"),
        ("part_frozen", "gpipe"),
    ],
)
def test_odd_networks_are_one_machines(crew: Crew, network: str, kind: Kind) -> None:
    options = {"micro_batches": 4, "pipeline_schedule": kind, "stages_per_device": 2}
    job = job_for(network, "pipeline", options, batch_size=7, weight_decay=0.01)
    assert plan_of(job, (3, 5)).settled["stages_per_device"] == 2
    for report in crew.run(job, (3, 5), first_part(job)):
        assert_equal(report.state, train_alone(job), atol=1e-9)


def test_several_pipelines_of_several_stages_are_one_machine(four: Crew) -> None:
    options = {"pipelines": 2, "micro_batches": 2, "stages_per_device": 2, "snapshot_every": 2}
    job = job_for("branched", "pipeline", options, optimizer="adam", weight_decay=0.01)
    plan = plan_of(job, (1, 2, 5, 4))
    assert (plan.settled["pipelines"], plan.settled["stages_per_device"]) == (2, 2)
    sent = sent_by_rank(job.strategy.schedule(plan, 0), 4)
    for report in four.run(job, (1, 2, 5, 4), first_part(job)):
        assert report.outcome.kind == "finished"
        assert_equal(report.state, train_alone(job), atol=1e-9)
        assert report.records[0]["sent_bytes"] == sent[report.rank]


@pytest.mark.parametrize(
    ("lost", "place"), [(0, "record"), (1, "record"), (1, "forward"), (1, "backward")]
)
def test_a_lost_device_is_done_without(crew: Crew, lost: int, place: str) -> None:
    """Two of two stages each become one that has all, also if one dies within a pass."""
    options = {"snapshot_every": 2, "micro_batches": 2, "stages_per_device": 2}
    job = job_for("plain", "pipeline", options)
    plan = plan_of(job, (1, 2))
    assert plan.settled["stages_per_device"] == 2
    crew.build(job)
    halt = Halt(rank=lost, place=place, step=4)
    formed = crew.form(plan, parts={0: first_part(job)}, halt=halt)
    formed.await_halt()
    formed.kill(lost)
    (report,) = formed.reports()
    assert (report.outcome.kind, report.outcome.step) == ("peer lost", 4)
    (report,) = crew.form(plan_of(job, (2,)), places=[1 - lost], first_step=4).reports()
    assert_equal(report.state, train_alone(job), atol=1e-9)

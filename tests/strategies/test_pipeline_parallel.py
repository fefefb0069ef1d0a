"""`pipeline`: who gets which layers, what a step looks like, and that it is one machine's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from convoy.cost.curve import Curve
from convoy.cost.cuts import Cut, Cuts
from convoy.cost.device import Device
from convoy.cost.fabric import Fabric
from convoy.cost.layers import LayerSize, NetworkFacts, facts_of
from convoy.cost.profile import DeviceProfile, LayerProfile
from convoy.cost.schedule import Collective, Compute, Transfer, in_a_row, sent_by_rank
from convoy.cost.simulate import simulate
from convoy.cost.world import World
from convoy.errors import UsageError
from convoy.planner import Task, predict
from convoy.strategies import Problem, Worker, make_strategy
from convoy.strategies.pipeline_drawing import (
    draw_pipelines,
    idle_fraction,
    seconds_by_stage,
)
from convoy.strategies.pipeline_orders import KINDS, Kind
from convoy.strategies.pipeline_parallel import PipelineParallel

from . import small_networks
from .harness import Crew, Halt, job_for, plan_of
from .reference import assert_equal, first_part, train_alone, train_in_micro_batches

WEIGHTS = (1, 2, 5)


def chain(count: int, *, macs: int = 100, crossing: int = 10) -> NetworkFacts:
    """Equal layers in a row."""
    layers = tuple(
        LayerSize(name=f"l{i}", parameters=(20,), activations=crossing, macs=macs)
        for i in range(count)
    )
    places = tuple(
        Cut(after=f"l{i}", crossing=f"l{i}", layers=i + 1, shape=(crossing,), gradient=True)
        for i in range(count - 1)
    )
    return NetworkFacts(
        num_parameters=20 * count, num_buffers=0, layers=layers, cuts=Cuts(places=places)
    )


def problem(
    network: NetworkFacts, weights: Sequence[float] = (1, 1), batch_size: int = 8
) -> Problem:
    workers = tuple(
        Worker(index=i, machine=f"m{i}", device="cpu", weight=w) for i, w in enumerate(weights)
    )
    return Problem(batch_size=batch_size, workers=workers, network=network)


def measured(
    network: NetworkFacts,
    speeds: Sequence[float],
    batch_size: int = 64,
    *,
    fixed_s: float = 0.0,
    accumulate_s: float = 0.0,
) -> Problem:
    """As `problem`, with a world in which a layer takes 1 ms a sample there and back, by speed,
    and `fixed_s` for each pass, whatever the samples."""
    sizes = (1, 64)
    layer_s = tuple(fixed_s + 0.5e-3 * n for n in sizes)
    whole_s = tuple(len(network.layers) * s for s in layer_s)
    profile = DeviceProfile(
        machine="m",
        device="cpu",
        hardware="a processor",
        cores=2.0,
        threads=1,
        memory_bytes=2**33,
        samples=sizes,
        load_s=(0.0, 0.0),
        forward_s=whole_s,
        backward_s=whole_s,
        update_s=0.0,
        accumulate_s=accumulate_s,
        layers=tuple(
            LayerProfile(name=layer.name, forward_s=layer_s, backward_s=layer_s)
            for layer in network.layers
        ),
    )
    ranks = range(len(speeds))
    world = World(
        devices=tuple(
            Device(machine=f"m{i}", device="cpu", host=i, profile=profile, speed=speeds[i])
            for i in ranks
        ),
        bandwidths={(a, b): 1e9 for a in ranks for b in ranks if a != b},
        latencies={(a, b): 0.0 for a in ranks for b in ranks if a != b},
    )
    return replace(problem(network, [1] * len(speeds), batch_size), world=world)


class Crossed(nn.Module):
    """Two layers, and a way around each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x)) * x.sum(1, keepdim=True)


class Looking(Crossed):
    """Its way depends on what is in its maps."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.second(x if x.sum() > 0 else -x)


def test_slow_devices_get_few_layers_and_keep_their_places() -> None:
    plan = PipelineParallel().plan(problem(chain(8), (1, 2, 5)))
    assert [len(stage.layers) for stage in plan.stages] == [1, 2, 5]
    assert [worker.index for worker in plan.problem.workers] == [0, 1, 2]
    assert plan.shares == (8, 0, 0)
    assert plan.portions == pytest.approx((1 / 8, 2 / 8, 5 / 8))
    assert plan.micro_batches == 8


def test_pipelines_side_by_side_are_equally_fast() -> None:
    """The fastest with the slowest; those in the same place have the same stage."""
    two = PipelineParallel(pipelines=2)
    plan = two.plan(measured(chain(9), (0.1, 0.2, 0.5, 0.4)))
    teams = {frozenset(w.index for w in plan.problem.workers[i : i + 2]) for i in (0, 2)}
    assert teams == {frozenset({2, 0}), frozenset({3, 1})}
    assert sorted(plan.shares) == [0, 0, 32, 32]
    fast = {worker.index: plan.stages_of(r) for r, worker in enumerate(plan.problem.workers)}
    assert fast[2] == fast[3] != fast[0] == fast[1]
    assert plan.pipelines == 2
    assert plan.divided["l8"] in {(0, 1, 0, 1), (1, 0, 1, 0)}
    assert sum(plan.portions) == pytest.approx(1)


def test_pipelines_of_ranks_of_which_nothing_is_known_are_as_they_come() -> None:
    plan = PipelineParallel(pipelines=2).plan(problem(chain(9), (5, 4, 2, 1)))
    assert [worker.index for worker in plan.problem.workers] == [0, 1, 2, 3]
    assert plan.shares == (6, 0, 2, 0)
    assert [len(stage.layers) for stage in plan.stages] == [6, 3]  # 6 at 2, or 3 at 1


def test_pipelines_stay_within_hosts_if_links_are_slow() -> None:
    """Two devices on each of two hosts."""
    apart = measured(chain(8, crossing=10**6), (1.0,) * 4)
    assert apart.world is not None
    devices = tuple(replace(d, host=i % 2) for i, d in enumerate(apart.world.devices))
    links = {(0, 0): 1e12, (1, 1): 1e12, (0, 1): 1e9, (1, 0): 1e9}
    world = replace(apart.world, devices=devices, bandwidths=links)
    plan = PipelineParallel(pipelines=2).plan(replace(apart, world=world))
    assert [worker.index % 2 for worker in plan.problem.workers] in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_gradients_of_a_stage_are_summed_over_pipelines() -> None:
    strategy = PipelineParallel(pipelines=2, micro_batches=2)
    schedule = strategy.schedule(strategy.plan(problem(chain(3), (1, 2, 1, 2))), 0)
    sums = [o for o in schedule if isinstance(o, Collective)]
    assert [(o.ranks, o.payload_bytes) for o in sums] == [((0, 2), 20 * 4), ((1, 3), 40 * 4)]
    pairs = {(o.source, o.destination) for o in schedule if isinstance(o, Transfer)}
    assert pairs == {(0, 1), (1, 0), (2, 3), (3, 2)}
    updates = [o for o in schedule if isinstance(o, Compute) and o.phase == "update"]
    assert sorted(o.rank for o in updates) == [0, 1, 2, 3]


def test_sums_travel_among_those_that_have_the_stage() -> None:
    """Two of two stages, 2,000 parameters in each, and nothing to speak of in between."""
    network = chain(2, crossing=1)
    layers = tuple(replace(layer, parameters=(2000,)) for layer in network.layers)
    network = replace(network, layers=layers, num_parameters=4000)
    case = measured(network, (1.0,) * 4)
    assert case.world is not None
    task = Task(network=network, batch_size=64)
    strategy = PipelineParallel(pipelines=2, micro_batches=1)
    found = predict(case.world, task, strategy, range(4), draws=0)
    assert found.plan is not None
    assert found.link_bytes is not None
    ranks = [worker.index for worker in found.plan.problem.workers]
    pairs = [(ranks[0], ranks[2]), (ranks[1], ranks[3])]
    large = {link for link, size in found.link_bytes.items() if size >= 8000}
    assert large == {f"m{a} -> m{b}" for pair in pairs for a, b in (pair, pair[::-1])}


def test_more_pipelines_where_more_stages_do_not_pay() -> None:
    assert PipelineParallel().plan(measured(chain(2), (1.0,) * 4)).pipelines == 2
    one_each = PipelineParallel(stages_per_device=1)
    whole = one_each.plan(measured(chain(5), (1.0,) * 4))  # 2 of 5 layers on one
    assert (whole.pipelines, [len(s.layers) for s in whole.stages]) == (2, [2, 3])


@pytest.mark.parametrize(
    ("given", "devices", "found"), [(3, 4, 2), (4, 4, 2), (2, 3, 1), (9, 6, 3), (9, 20, 5)]
)
def test_as_many_pipelines_as_can_be(given: int, devices: int, found: int) -> None:
    plan = PipelineParallel(pipelines=given).plan(problem(chain(9), (1,) * devices))
    assert plan.pipelines == found


def test_what_was_measured_decides_on_stages_places_and_micro_batches() -> None:
    one_each = PipelineParallel(stages_per_device=1)
    plan = one_each.plan(measured(chain(9), (0.5, 1.0)))
    by_worker = {
        worker.index: len(stage.layers)
        for worker, stage in zip(plan.problem.workers, plan.stages, strict=True)
    }
    assert by_worker == {0: 3, 1: 6}
    assert plan.micro_batches == 64  # a sample costs the same in any number, and links nothing
    dear = PipelineParallel().plan(measured(chain(9), (0.5, 1.0), fixed_s=2e-3))
    assert 1 < dear.micro_batches < 64


def test_gradients_are_added_from_the_second_micro_batch_on() -> None:
    """A second for those of the network, of which each stage has half; it makes them fewer."""
    strategy = PipelineParallel(micro_batches=4, pipeline_schedule="gpipe", stages_per_device=1)
    steps = []
    for accumulate_s in (0.0, 1.0):
        case = measured(chain(8), (1.0, 1.0), accumulate_s=accumulate_s)
        assert case.world is not None
        plan = strategy.plan(case)
        assert [len(stage.layers) for stage in plan.stages] == [4, 4]
        seconds, fabric = case.world.seconds((0, 1)), case.world.fabric((0, 1))
        steps.append(simulate(strategy.schedule(plan, 0), seconds, fabric).step_s)
    # of the last stage three times, and of the first once more, when its last pass is through
    assert steps[1] - steps[0] == pytest.approx(0.5 * (3 + 1))
    assert PipelineParallel().plan(case).micro_batches < 64


def test_every_stage_knows_its_cut() -> None:
    plan = PipelineParallel().plan(problem(facts_of(small_networks.branched(), (1, 6, 6)), (1, 1)))
    first, last = plan.stages
    assert first.layers == ("stem", "grouped", "pointwise")
    assert first.cut is not None
    assert (first.cut.after, first.cut.shape) == ("cat", (6, 6, 6))
    assert last.layers == ("twice", "classify")
    assert last.cut is None
    assert plan.divided == {
        **dict.fromkeys(("stem", "grouped", "pointwise"), (1, 0)),
        **dict.fromkeys(("twice", "classify"), (0, 1)),
    }


def test_a_step_drawn() -> None:
    """Targets go ahead; passes in order; the loss comes back."""
    network = chain(3)
    strategy = PipelineParallel(micro_batches=2, pipeline_schedule="gpipe")
    plan = strategy.plan(problem(network, (1, 2), batch_size=3))
    drawn = []
    for operation in strategy.schedule(plan, 0):
        if isinstance(operation, Compute):
            o = operation
            drawn.append(f"{o.phase} {o.layer} r{o.rank} {o.samples} {o.part:g} {o.after}")
        elif isinstance(operation, Transfer):
            t = operation
            drawn.append(f"{t.source} > {t.destination} {t.payload_bytes} {t.after}")
    assert drawn == [
        "load  r0 3 1 ()",
        "0 > 1 24 (0,)",
        "forward l0 r0 2 1 (0,)",
        "0 > 1 80 (2, 1)",
        "forward l0 r0 1 1 (2,)",
        "0 > 1 40 (4, 3)",
        "forward l1 r1 2 1 (3, 1)",
        "forward l2 r1 2 1 (6,)",
        "forward l1 r1 1 1 (7, 5)",
        "forward l2 r1 1 1 (8,)",
        "backward l2 r1 2 1 (9,)",
        "backward l1 r1 2 1 (10,)",
        "1 > 0 80 (11,)",
        "backward l2 r1 1 1 (11,)",
        "backward l1 r1 1 1 (13,)",
        "accumulate  r1 0 0.666667 (14,)",
        "1 > 0 40 (15, 12)",
        "backward l0 r0 2 1 (4, 12)",
        "backward l0 r0 1 1 (17, 16)",
        "accumulate  r0 0 0.333333 (18,)",
        "1 > 0 4 (15, 16)",
        "update  r0 0 0.333333 (19, 5, 20)",
        "update  r1 0 0.666667 (15, 20)",
    ]
    assert sent_by_rank(strategy.schedule(plan, 0), 2) == [144, 124]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stages", "number"), [(2, 2), (3, 6), (4, 16)])
def test_the_bubble_of_equal_stages(kind: Kind, stages: int, number: int) -> None:
    """(S - 1) / (M + S - 1) of the time, as GPipe and 1F1B have it."""
    strategy = PipelineParallel(pipeline_schedule=kind, micro_batches=number)
    plan = strategy.plan(problem(chain(stages), [1] * stages, batch_size=number))
    hosts = tuple(range(stages))
    capacity = dict.fromkeys(hosts, math.inf)

    def seconds(compute: Compute) -> float:
        return {"forward": 1.0, "backward": 2.0}.get(compute.phase, 0.0)

    fabric = Fabric(hosts=hosts, up=capacity, down=capacity)
    played = simulate(strategy.schedule(plan, 0), seconds, fabric)
    assert played.step_s == pytest.approx(3 * (number + stages - 1))
    assert idle_fraction(played) == pytest.approx((stages - 1) / (number + stages - 1))
    several = simulate(in_a_row(strategy.schedule(plan, i) for i in range(3)), seconds, fabric)
    assert several.step_s == pytest.approx(3 * played.step_s)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_by_stage_takes_as_long_as_by_layer(kind: Kind, each: int) -> None:
    """Over links that have much to do, and take some of the devices' time."""
    case = measured(chain(9, crossing=2000), (0.5, 1.0), 16, fixed_s=1e-3)
    assert case.world is not None
    world = replace(case.world, bandwidths=dict.fromkeys(case.world.bandwidths, 1e7))
    options = {"pipeline_schedule": kind, "stages_per_device": each, "micro_batches": 4}
    strategy = PipelineParallel(**options)  # type: ignore[arg-type]
    plan = strategy.plan(replace(case, world=world))
    assert plan.stages_per_device == each
    picks = [worker.index for worker in plan.problem.workers]
    moving = (Curve((1, 10**6), (1e-8, 1e-2)),) * 2
    seconds, fabric = world.seconds(picks), replace(world.fabric(picks), move_cpu=moving)
    by_layer = simulate(strategy.schedule(plan, 0), seconds, fabric).step_s
    drawn = (plan.problem, plan.stages, (16,), plan.micro_batches, plan.kind)
    coarse = draw_pipelines(*drawn, by_layer=False)
    by_stage = simulate(coarse, seconds_by_stage(seconds, plan.stages), fabric).step_s
    assert by_stage == pytest.approx(by_layer)
    assert len(coarse) < len(strategy.schedule(plan, 0))


def test_a_slower_order_where_memory_does_not_suffice_for_the_faster() -> None:
    """Over a slow link gpipe is ahead, which holds the maps of all micro-batches."""
    case = measured(chain(9, crossing=2000), (0.5, 1.0), 64, fixed_s=1e-3)
    assert case.world is not None
    slow = replace(case.world, bandwidths=dict.fromkeys(case.world.bandwidths, 2e6))
    strategy = PipelineParallel(stages_per_device=1, micro_batches=32)
    plan = strategy.plan(replace(case, world=slow))
    assert plan.kind == "gpipe"
    needed = [strategy.peak_bytes(replace(plan, kind=kind)) for kind in ("1f1b", "gpipe")]
    assert max(needed[0]) < max(needed[1])
    devices = tuple(
        replace(d, profile=replace(d.profile, memory_bytes=max(needed[0]))) for d in slow.devices
    )
    tight = replace(case, world=replace(slow, devices=devices))
    assert strategy.plan(tight).kind == "1f1b"


def test_one_forward_one_backward_holds_fewer_maps() -> None:
    turns = PipelineParallel(micro_batches=8)
    plan = turns.plan(problem(chain(2)))
    assert plan.kind == "1f1b"
    moved = 8 * 10 * 2
    assert turns.activations(plan) == (20 + moved, 10 + moved)
    assert turns.activations(replace(plan, kind="gpipe")) == (80 + moved, 80 + moved)
    assert turns.parameters(plan) == (20, 20)


@pytest.mark.parametrize(
    ("network", "shape", "weights", "said"),
    [
        (nn.Linear(4, 2), (4,), (1, 1), "cannot be cut .* it is one layer. Use --strategy data"),
        (Crossed(), (4,), (1, 1), "cannot be cut .* more than a single tensor of maps is alive"),
        (Looking(), (4,), (1, 1), "cannot be cut .* torch.fx cannot follow its forward pass"),
        (
            small_networks.branched(),
            (1, 6, 6),
            (1,) * 5,
            "5 devices cannot each have a stage .* 4 at most, .* at most 4 devices for each",
        ),
    ],
)
def test_what_cannot_be_cut(
    network: nn.Module, shape: tuple[int, ...], weights: tuple[float, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        PipelineParallel().plan(problem(facts_of(network, shape), weights))


@pytest.mark.parametrize(
    "options",
    [{"pipeline_schedule": "zigzag"}, {"micro_batches": 0}, {"micro_batches": "many"}]
    + [{"snapshot_every": 0}, {"pipelines": 0}, {"stages_per_device": 0}],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", "-")):
        make_strategy("pipeline", options)


@pytest.mark.parametrize(
    ("network", "optimizer", "kind"),
    [
        ("cifar10-full", "sgd", "gpipe"),
        ("cifar10-full", "adam", "1f1b"),
        ("resnet18", "sgd", "1f1b"),
    ],
)
def test_known_networks_are_one_machines(
    crew: Crew, network: str, optimizer: str, kind: Kind
) -> None:
    options = {"micro_batches": 2, "pipeline_schedule": kind}
    job = job_for("plain", "pipeline", options, batch_size=4, steps=2, optimizer=optimizer)
    size = "16x16" if network == "resnet18" else "32x32"
    job = replace(job, network=network, dataset=f"synthetic:3x{size}:10:6")
    expected = train_in_micro_batches(job, 2, least=2 if network == "resnet18" else 1)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert report.outcome.kind == "finished"
        assert_equal(report.state, expected, atol=1e-9)


@pytest.mark.parametrize("weights", [(1,), (3, 5), WEIGHTS], ids=str)
def test_batches_are_normalised_by_micro_batch(crew: Crew, weights: tuple[int, ...]) -> None:
    """Whatever the number of ranks; a short batch of two is not cut."""
    job = job_for("normalised", "pipeline", {"micro_batches": 3}, optimizer="adam")
    expected = train_in_micro_batches(job, 3, least=2)
    for report in crew.run(job, weights, first_part(job)):
        assert_equal(report.state, expected, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["overwriting", "tied", "severed", "part_frozen"])
def test_odd_networks_are_one_machines(crew: Crew, network: str, kind: Kind) -> None:
    """A prime batch; micro-batches of three and two samples."""
    options = {"micro_batches": 3, "pipeline_schedule": kind}
    job = job_for(network, "pipeline", options, batch_size=7, weight_decay=0.01)
    plan = plan_of(job, WEIGHTS)
    expected = train_alone(job)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert_equal(report.state, expected, atol=1e-9)
        sent = sent_by_rank(job.strategy.schedule(plan, 0), 3)[report.rank]
        assert report.records[0]["sent_bytes"] == sent


def test_channels_last_is_the_same(crew: Crew) -> None:
    options = {"micro_batches": 2}
    job = job_for("image_normalised", "pipeline", options, memory_format="channels-last")
    expected = train_in_micro_batches(job, 2, least=2)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert_equal(report.state, expected, atol=1e-9)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_stage_is_taken_over(crew: Crew, lost: int) -> None:
    """By the others, from the last snapshot: the network is cut anew."""
    job = job_for("plain", "pipeline", {"snapshot_every": 2})
    crew.build(job)
    halt = Halt(rank=lost, place="record", step=4)
    formed = crew.form(plan_of(job, WEIGHTS), parts={0: first_part(job)}, halt=halt)
    formed.await_halt()
    formed.kill(lost)
    for report in formed.reports():
        assert (report.outcome.kind, report.outcome.step) == ("peer lost", 4)
        assert_equal(report.state, train_alone(job, 4), atol=1e-9)
    places = [place for place in range(3) if place != lost]
    for report in crew.form(plan_of(job, (2, 5)), places=places, first_step=4).reports():
        assert (report.outcome.kind, report.outcome.step) == ("finished", 7)
        assert_equal(report.state, train_alone(job), atol=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("network", ["plain", "branched"])
def test_pipelines_side_by_side_are_one_machine(four: Crew, network: str, optimizer: str) -> None:
    """Of every third step's two samples the slower pipeline gets none."""
    options = {"pipelines": 2, "micro_batches": 2, "snapshot_every": 2}
    job = job_for(network, "pipeline", options, optimizer=optimizer, weight_decay=0.01)
    weights = (9, 9, 1, 1) if network == "plain" else (1, 2, 5, 4)
    plan, expected = plan_of(job, weights), train_alone(job)
    sent = sent_by_rank(job.strategy.schedule(plan, 0), 4)
    for report in four.run(job, weights, first_part(job)):
        assert report.outcome.kind == "finished"
        assert_equal(report.state, expected, atol=1e-9)
        assert [report.records[step]["sent_bytes"] for step in (0, 1, 3)] == [sent[report.rank]] * 3


def test_two_pipelines_become_one_of_three(four: Crew) -> None:
    job = job_for("plain", "pipeline", {"snapshot_every": 2, "pipelines": 2})
    four.build(job)
    halt = Halt(rank=3, place="record", step=4)
    formed = four.form(plan_of(job, (1, 2, 5, 4)), parts={0: first_part(job)}, halt=halt)
    formed.await_halt()
    formed.kill(3)
    for report in formed.reports():
        assert (report.outcome.kind, report.outcome.step) == ("peer lost", 4)
        assert_equal(report.state, train_alone(job, 4), atol=1e-9)
    for report in four.form(plan_of(job, WEIGHTS), places=[0, 1, 2], first_step=4).reports():
        assert (report.outcome.kind, report.outcome.step) == ("finished", 7)
        assert_equal(report.state, train_alone(job), atol=1e-9)


def test_batches_normalised_in_parts_are_not_one_machines() -> None:
    with_norm = replace(chain(4), batch_norm_channels=(8,))
    assert PipelineParallel(micro_batches=4).plan(problem(chain(4))).exact
    assert not PipelineParallel(micro_batches=4).plan(problem(with_norm)).exact
    for asked in ({"micro_batches": 1}, {}, {"pipelines": 2}):  # the others plan so
        plan = PipelineParallel(**asked).plan(problem(with_norm, (1,) * 4))  # type: ignore[arg-type]
        assert plan.exact
        assert (plan.micro_batches, plan.pipelines) == (1, 1)


def test_fewer_samples_than_pipelines() -> None:
    assert PipelineParallel(pipelines=3).plan(problem(chain(9), (1,) * 6, 2)).pipelines == 2

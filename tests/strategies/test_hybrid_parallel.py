"""`hybrid`: who gets which neurons, what a step looks like, and that it is one machine's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from convoy.cost.layers import LayerSize, NetworkFacts, facts_of
from convoy.cost.memory import peak_bytes
from convoy.cost.schedule import Collective, Compute, Transfer, sent_by_rank, sent_bytes
from convoy.errors import UsageError
from convoy.strategies import Problem, Worker, make_strategy
from convoy.strategies.dense_shares import rounds
from convoy.strategies.hybrid_parallel import HybridParallel

from .harness import Crew, Halt, job_for, plan_of
from .reference import assert_equal, first_part, train_alone

WEIGHTS = (1, 2, 5)


def facts(network: nn.Module, shape: tuple[int, ...] = (1, 6, 6)) -> NetworkFacts:
    return facts_of(network, shape)


def problem(
    network: NetworkFacts, weights: tuple[float, ...] = (1, 1), batch_size: int = 8
) -> Problem:
    workers = tuple(
        Worker(index=i, machine=f"m{i}", device="cpu", weight=w) for i, w in enumerate(weights)
    )
    return Problem(batch_size=batch_size, workers=workers, network=network)


def dense(*widths: int) -> nn.Module:
    """A flat image through dense layers of these widths."""
    pairs = zip((36, *widths), widths, strict=False)
    return nn.Sequential(nn.Flatten(), *(nn.Linear(i, o) for i, o in pairs))


def test_what_is_split() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.once, self.frozen = (
                nn.Linear(36, 36),
                nn.Linear(36, 5),
                nn.Linear(5, 3),
            )
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Any:
            return self.frozen(self.once(self.twice(self.twice(x.flatten(1)))))

    neurons = {layer.name: layer.neurons for layer in facts(Mixed()).layers}
    assert neurons == {"twice": 0, "once": 5, "frozen": 0}


def test_neurons_and_samples_go_by_speed() -> None:
    plan = HybridParallel(dense_above=0).plan(problem(facts(dense(80, 16)), WEIGHTS))
    assert plan.shares == (1, 2, 5)
    assert {layer.name: layer.neurons for layer in plan.layers} == {
        "1": (10, 20, 50),
        "2": (2, 4, 10),
    }


def test_the_larger_ones_are_split_where_that_saves_bytes() -> None:
    """8 samples of 36 + 80 / 3 elements are less than 36 * 80 + 80 gradients; of 80 + 3 / 3, and
    80 * 3 + 3, they are not."""
    plan = HybridParallel().plan(problem(facts(dense(80, 3)), WEIGHTS))
    assert [layer.name for layer in plan.layers] == ["1"]
    assert plan.kept == {"2": "its gradients cost less than its maps would"}
    told = HybridParallel(dense_above=1000).plan(problem(facts(dense(80, 3)), WEIGHTS))
    assert [layer.name for layer in told.layers] == ["1"]
    assert told.kept == {"2": "it has no more than 1000 weights"}


def test_a_step_drawn() -> None:
    """Own samples first, those of the other while they travel; gradients of weights at the end."""
    layers = (
        LayerSize(name="conv", parameters=(40,), activations=64, inputs=16),
        LayerSize(
            name="fc",
            parameters=(6, 384),
            activations=6,
            inputs=64,
            neurons=6,
            input_gradient=True,
        ),
    )
    network = NetworkFacts(num_parameters=430, num_buffers=0, layers=layers)
    drawn: dict[str, list[str]] = {}
    for exchange in ("turns", "gather"):
        strategy = HybridParallel(exchange=exchange)  # type: ignore[arg-type]
        plan = strategy.plan(problem(network, (1, 2), batch_size=6))
        lines = drawn[exchange] = []
        for operation in strategy.schedule(plan, 0):
            match operation:
                case Compute(rank=1) as o:
                    lines.append(f"{o.phase} {o.layer} {o.samples} {o.part:.3g} {o.portion:g}")
                case Transfer() as t:
                    lines.append(f"{t.source} > {t.destination} {t.payload_bytes}")
                case Collective() as c:
                    lines.append(f"sum {c.payload_bytes}")
    assert drawn["turns"] == [
        *("load  4 1 1", "forward conv 4 1 1"),
        *("0 > 1 512", "1 > 0 1024"),  # 2 and 4 samples of 64 elements of 4 bytes
        "0 > 1 32",  # 4 samples' 2 neurons
        *("forward fc 4 0.667 1", "forward fc 2 0.667 1"),
        "1 > 0 32",
        "replica  4 1 1",
        *("0 > 1 32", "1 > 0 32"),
        "0 > 1 1024",
        *("backward fc 4 0.667 0.5", "backward fc 2 0.667 0.5"),
        "1 > 0 512",
        "backward fc 6 0.667 0.5",
        "backward conv 4 1 1",
        "sum 160",
        "update  0 0.698 1",  # 40 + 390 * 4 / 6 of 430
    ]
    schedule = strategy.schedule(plan, 0)
    computed = [o for o in schedule if isinstance(o, Compute) and o.phase == "backward"]
    of_weights = [o for o in computed if o.layer == "fc"][-1]  # while what is below travels
    assert all(isinstance(schedule[before], Compute) for before in of_weights.after)
    together = [line for line in drawn["gather"] if " fc " in line]
    assert together == [
        "forward fc 6 0.667 1",
        "backward fc 6 0.667 0.5",
        "backward fc 6 0.667 0.5",
    ]


def test_fewer_bytes_and_less_memory_than_data() -> None:
    """By hand: 2 ranks, 8 samples, 36 inputs and 80 outputs of 4 bytes."""
    network = facts(dense(80))
    split, data = HybridParallel(), make_strategy("data", {})
    plan, whole = split.plan(problem(network)), data.plan(problem(network))
    assert sent_by_rank(data.schedule(whole, 0), 2) == [2960 * 4] * 2
    # no gradient of images is wanted
    assert sent_by_rank(split.schedule(plan, 0), 2) == [4 * (4 * 36 + 2 * 4 * 40)] * 2
    assert split.parameters(plan) == (1480, 1480)
    assert split.copies(plan) == (True, False)

    def peak(parameters: int, maps: int) -> int:
        return peak_bytes(network, 0, optimizer_states=1, parameters=parameters, activations=maps)

    # parameters, gradients, momentum; all of them once, but without maps
    assert peak(2960, 10_000) - peak(1480, 10_000) == 4 * 3 * 1480
    assert peak(2960, 0) == peak(1480, 0)


@pytest.mark.parametrize(
    ("network", "options", "said"),
    [
        (nn.Conv2d(1, 3, 6), {}, "no dense layer to split .* Use --strategy data"),
        (dense(3), {"dense_above": 108}, "more than 108 weights: the largest, 1, has 108"),
    ],
)
def test_what_cannot_be_split(network: nn.Module, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        HybridParallel(**options).plan(problem(facts(network)))


@pytest.mark.parametrize(
    "options",
    [{"exchange": "ring"}, {"snapshot_every": 0}, {"dense_above": -1}, {"dense_above": "most"}],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", "-")):
        make_strategy("hybrid", options)


def test_rounds_begin_with_ones_own() -> None:
    assert rounds(1, 3, in_turns=True) == [[1], [2], [0]]
    assert rounds(1, 3, in_turns=False) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("network", "shape", "steps"),
    [("cifar10-full", "3x32x32", 2), ("resnet18", "3x16x16", 1), ("lenet", "1x28x28", 2)],
)
def test_known_networks_are_one_machines(crew: Crew, network: str, shape: str, steps: int) -> None:
    job = job_for("plain", "hybrid", batch_size=4, steps=steps, weight_decay=0.01)
    job = replace(job, network=network, dataset=f"synthetic:{shape}:10:6")
    expected = train_alone(job)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert report.outcome.kind == "finished"
        assert_equal(report.state, expected, atol=1e-9)


@pytest.mark.parametrize("exchange", ["turns", "gather"])
def test_nothing_but_split_layers(crew: Crew, exchange: str) -> None:
    """No gradient is exchanged, and none of images is asked for."""
    job = job_for("dense", "hybrid", {"dense_above": 0, "exchange": exchange})
    plan, expected = plan_of(job, WEIGHTS), train_alone(job)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert_equal(report.state, expected, atol=1e-9)
        sent = sent_bytes(job.decided.schedule(plan, 0), report.rank)
        assert report.records[0]["sent_bytes"] == sent > 0


def test_without_the_first_rank_and_a_checkpoint_they_begin_anew(crew: Crew) -> None:
    """What it kept a copy of is lost with it."""
    job = job_for("plain", "hybrid", {"dense_above": 0})
    undisturbed = crew.run(job, (1,))[0].state
    crew.build(job)
    formed = crew.form(plan_of(job, WEIGHTS), halt=Halt(rank=0, place="backward", step=4))
    formed.await_halt()
    formed.kill(0)
    assert [report.outcome.step for report in formed.reports()] == [None, None]
    for report in crew.form(plan_of(job, WEIGHTS[1:]), places=[1, 2]).reports():
        assert [record["step"] for record in report.records] == list(range(7))
        assert_equal(report.state, undisturbed, atol=1e-9)


def test_a_module_that_was_given_is_begun_with_anew(crew: Crew) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))
    job = replace(job_for("dense", "hybrid", {"dense_above": 0}), network=network)
    workers = [problem(facts(network), weights).workers for weights in ((1,), WEIGHTS, WEIGHTS[1:])]
    alone, three, two = (
        job.decided.plan(replace(problem(facts(network)), workers=w, element_bytes=8))
        for w in workers
    )
    crew.build(job)
    undisturbed = crew.form(alone).reports()[0].state
    crew.build(job)
    formed = crew.form(three, halt=Halt(rank=0, place="record", step=4))
    formed.await_halt()
    formed.kill(0)
    assert [report.outcome.step for report in formed.reports()] == [None, None]
    for report in crew.form(two, places=[1, 2]).reports():
        assert_equal(report.state, undisturbed, atol=1e-9)


def test_a_layer_with_two_names(crew: Crew) -> None:
    job = job_for("twice_named", "hybrid", {"dense_above": 0})
    expected = train_alone(job)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert_equal(report.state, expected, atol=1e-9)


def test_other_layers_are_split_when_a_rank_is_lost(crew: Crew) -> None:
    job = job_for("three_dense", "hybrid", {"snapshot_every": 2}, optimizer="adam")
    plans = [plan_of(job, weights) for weights in (WEIGHTS, WEIGHTS[:2])]
    assert [list(plan.divided) for plan in plans] == [["1", "3"], ["1"]]
    crew.build(job)
    halt = Halt(rank=2, place="record", step=4)
    formed = crew.form(plans[0], parts={0: first_part(job)}, halt=halt)
    formed.await_halt()
    formed.kill(2)
    first, second = formed.reports()
    assert (first.outcome.step, second.outcome.step) == (4, None)
    for report in crew.form(plans[1], first_step=4).reports():
        assert (report.outcome.kind, report.outcome.step) == ("finished", 7)
        assert_equal(report.state, train_alone(job), atol=1e-9)

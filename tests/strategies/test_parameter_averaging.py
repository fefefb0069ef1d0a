"""`averaging` against a simulation of local SGD in one process."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from convoy.cost.layers import NetworkFacts
from convoy.cost.schedule import Collective, Compute
from convoy.datasets import open_dataset
from convoy.strategies import Problem, Worker
from convoy.strategies.parameter_averaging import ParameterAveraging

from .harness import Crew, Halt, job_for, plan_of
from .reference import assert_equal, first_network, first_part, local_sgd, train_alone

WEIGHTS = (1, 2, 5)
LAST = 6  # of seven steps; an average always ends the run


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.0}, {"momentum": 0.9, "weight_decay": 0.01}, {"optimizer": "adam"}],
    ids=["sgd", "momentum", "adam"],
)
@pytest.mark.parametrize(
    ("average_every", "average_after"),
    [(1, range(7)), (2, {1, 3, 5, LAST}), (4, {3, LAST}), ("end", {LAST}), (100, {LAST})],
    ids=str,
)
def test_it_is_local_sgd_with_weighted_averages(
    crew: Crew, average_every: int | str, average_after: Container[int], settings: dict[str, Any]
) -> None:
    options = {"average_every": average_every}
    job = job_for("image_normalised", "averaging", options, **settings)
    expected = local_sgd(job, WEIGHTS, average_after)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        but = ("num_batches_tracked",) if report.rank else ()  # each counts its own
        assert_equal(report.state, expected, atol=1e-9, but=but)


def test_the_average_at_the_end_is_of_all_the_way(crew: Crew) -> None:
    """Equal shares of full batches: training alone thrice, and a plain mean."""
    job = job_for("plain", "averaging", {"average_every": "end"}, batch_size=9, steps=4)
    expected = local_sgd(job, (3, 3, 3), {3})
    report, *_ = crew.run(job, (1, 1, 1), first_part(job))
    assert_equal(report.state, expected, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("average_every", [2, "end"])
def test_the_first_steps_are_those_of_data(
    crew: Crew, average_every: int | str, optimizer: str
) -> None:
    options = {"average_every": average_every, "sync_first": 4}
    settings = {"optimizer": optimizer, "weight_decay": 0.01}
    job = job_for("plain", "averaging", options, steps=4, **settings)
    part, expected = first_part(job), train_alone(job)
    reports = crew.run(job, WEIGHTS, part)
    same = crew.run(job_for("plain", "data", steps=4, **settings), WEIGHTS, part)
    for report, as_data in zip(reports, same, strict=True):
        assert_equal(report.state, expected, atol=1e-9)
        assert_equal(report.state, as_data.state, atol=1e-12)
        losses = [record["loss"] for record in report.records]
        assert losses == pytest.approx([record["loss"] for record in as_data.records], abs=1e-12)


def test_local_steps_follow_the_synchronous_ones(crew: Crew) -> None:
    options = {"average_every": 2, "sync_first": 3}
    job = job_for("plain", "averaging", options)
    expected = local_sgd(job, WEIGHTS, {4, LAST}, sync_first=3)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert_equal(report.state, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("num_ranks", "sync", "local", "average"),
    [
        # 197 parameters and 14 running statistics of 4 bytes, times 2 (n - 1) / n.
        (2, [788, 788], [0, 0], [844, 844]),
        (3, [1051, 1051, 1050], [0, 0, 0], [1126, 1125, 1125]),
    ],
)
def test_bytes_by_hand(
    crew: Crew, num_ranks: int, sync: list[int], local: list[int], average: list[int]
) -> None:
    options = {"average_every": 2, "sync_first": 1}
    job = job_for("image_normalised", "averaging", options, precision="fp32", momentum=0.0)
    reports = crew.run(job, WEIGHTS[:num_ranks])
    sent = [[report.records[step]["sent_bytes"] for report in reports] for step in range(7)]
    assert sent == [sync, local, average, local, average, local, average]


def test_a_rank_works_for_an_average_before_it_travels() -> None:
    facts = NetworkFacts(num_parameters=7, num_buffers=0)
    workers = tuple(Worker(index=i, machine="m", device="cpu") for i in range(2))
    every_second = ParameterAveraging(average_every=2)
    plan = every_second.plan(Problem(batch_size=4, workers=workers, network=facts))
    alone, averaged = (every_second.schedule(plan, step) for step in range(2))
    assert averaged[: len(alone)] == alone
    first, second, reduction = averaged[len(alone) :]
    assert [(o.phase, o.rank) for o in (first, second) if isinstance(o, Compute)] == [
        ("average", 0),
        ("average", 1),
    ]
    assert isinstance(reduction, Collective)
    assert reduction.after == (len(alone), len(alone) + 1)


def test_averages_after() -> None:
    every_third = ParameterAveraging(average_every=3, sync_first=2)
    assert [s for s in range(12) if every_third.averages_after(s)] == [4, 7, 10]
    assert not any(ParameterAveraging(average_every="end").averages_after(s) for s in range(99))


def test_the_network_is_judged_as_the_average_it_would_be(crew: Crew) -> None:
    """In the middle of a stretch alone; `test_it_is_local_sgd...` has that it disturbs nothing."""
    job = job_for("image_normalised", "averaging", {"average_every": "end"})
    reports = crew.run(job, WEIGHTS, first_part(job))
    test = open_dataset(job.dataset).test
    images, labels = test.batch(torch.arange(len(test)))
    for epoch, steps in enumerate((3, 6, 7)):
        state = local_sgd(job, WEIGHTS, {steps - 1}, num_steps=steps)
        network = first_network(job)
        network.load_state_dict(
            {n.removeprefix("model/"): t for n, t in state.items() if n.startswith("model/")}
        )
        with torch.no_grad():
            loss = F.cross_entropy(network.eval()(images.double()), labels, reduction="sum")
        sums = [report.evaluations[epoch] for report in reports]
        assert sum(s["loss_sum"] for s in sums) == pytest.approx(loss.item(), abs=1e-9)


def test_a_lost_peer_takes_back_to_the_last_average(crew: Crew) -> None:
    job = job_for("image_normalised", "averaging", {"average_every": 2})
    crew.build(job)
    formed = crew.form(
        plan_of(job, WEIGHTS),
        parts={0: first_part(job)},
        halt=Halt(rank=0, place="record", step=4),
    )
    formed.await_halt()
    formed.kill(0)
    expected = local_sgd(job, WEIGHTS, {1, 3}, num_steps=4)
    for report in formed.reports():
        assert (report.outcome.kind, report.outcome.step) == ("peer lost", 4)
        assert_equal(report.state, expected, atol=1e-9, but=("num_batches_tracked",))


def test_a_crew_that_regroups_averages_first(crew: Crew) -> None:
    job = job_for("image_normalised", "averaging", {"average_every": "end"})
    crew.build(job)
    formed = crew.form(plan_of(job, WEIGHTS), parts={0: first_part(job)}, stop_before=4)
    expected = local_sgd(job, WEIGHTS, {3}, num_steps=4)
    for report in formed.reports():
        assert (report.outcome.kind, report.outcome.step) == ("stopped", 4)
        assert_equal(report.state, expected, atol=1e-9, but=("num_batches_tracked",))

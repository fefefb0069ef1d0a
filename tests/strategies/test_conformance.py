"""What every strategy must keep to, over real processes. A new strategy adds its rows.

Unless a case says otherwise, three ranks share batches of 8 as 1:2:5. Every third step has two
samples only, of which the first rank gets none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from convoy.cost.schedule import sent_by_link, sent_bytes

from .harness import Crew, Halt, job_for, plan_of
from .reference import assert_equal, first_part, train_alone

WEIGHTS = (1, 2, 5)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A strategy, configured, and what it promises."""

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    exact_with: Mapping[str, Any] | None = None
    """Settings under which any ranks compute what one machine does; None: under none."""
    networks: tuple[str, ...] = ()
    """For which networks that holds."""
    loses: int = 0
    """Steps done and lost with a peer that dies in step 4."""
    keeps_apart: tuple[str, ...] = ("num_batches_tracked",)
    """Endings of tensors that ranks do not share: here, of batches that each has counted."""
    keep: tuple[int, ...] = (0, 1)
    """Survivors that then have what to go on from."""
    stops: int = 2
    """The rank that is stopped in the middle of a pass, while rank 2 is killed."""

    def __str__(self) -> str:
        return " ".join([self.strategy, *(f"{k}={v}" for k, v in self.options.items())])


ANY_NETWORK = ("plain", "branched", "normalised")
ROWS = [
    Row(strategy="single", exact_with={}, networks=ANY_NETWORK),
    Row(strategy="data", exact_with={}, networks=ANY_NETWORK),
    Row(
        strategy="data",
        options={"batch_norm": "local"},
        exact_with={},
        networks=("plain", "branched"),
        keeps_apart=("running_mean", "running_var", "num_batches_tracked"),
    ),
    Row(strategy="data", options={"wire": "bf16"}),
    Row(
        strategy="averaging",
        options={"average_every": 1},
        exact_with={"momentum": 0.0, "optimizer": "sgd"},
        networks=("plain", "branched"),
    ),
    Row(strategy="averaging", options={"average_every": 3}, loses=1),
    Row(
        strategy="averaging",
        options={"average_every": "end", "sync_first": 2},
        loses=2,
    ),
    Row(strategy="filter", exact_with={}, networks=ANY_NETWORK, loses=1, stops=0),
    Row(
        strategy="filter",
        options={"fuse": "no", "snapshot_every": 2},
        exact_with={},
        networks=ANY_NETWORK,
        stops=0,
    ),
    Row(
        strategy="filter",
        options={"resident": "no"},
        exact_with={},
        networks=ANY_NETWORK,
        loses=1,
        stops=0,
    ),
    Row(strategy="filter", options={"wire": "bf16"}, loses=1, stops=0),
    Row(strategy="hybrid", exact_with={}, networks=ANY_NETWORK, loses=1, keep=(0,)),
    Row(
        strategy="hybrid",
        options={"exchange": "gather", "dense_above": 0, "snapshot_every": 2},
        exact_with={},
        networks=ANY_NETWORK,
        keep=(0,),
    ),
    Row(strategy="pipeline", exact_with={}, networks=("plain", "branched"), loses=1),
    Row(
        strategy="pipeline",
        options={"pipeline_schedule": "1f1b", "snapshot_every": 2},
        exact_with={},
        networks=("plain", "branched"),
    ),
]
SENDING = [row for row in ROWS if row.strategy != "single"]
every_row = pytest.mark.parametrize("row", ROWS, ids=str)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@every_row
def test_one_rank_is_plain_pytorch(crew: Crew, row: Row, optimizer: str) -> None:
    job = job_for("normalised", row.strategy, row.options, optimizer=optimizer, weight_decay=0.01)
    (report,) = crew.run(job, weights=(1,), part=first_part(job))
    assert report.outcome.kind == "finished"
    assert_equal(report.state, train_alone(job), atol=1e-12)
    assert [record["sent_bytes"] for record in report.records] == [0] * 7


@pytest.mark.parametrize(
    ("row", "network", "optimizer"),
    [
        pytest.param(row, network, optimizer, id=f"{row}-{network}-{optimizer}")
        for row in ROWS
        if row.exact_with is not None
        for network in row.networks
        for optimizer in ("sgd", "adam")
        if row.exact_with.get("optimizer", optimizer) == optimizer
    ],
)
def test_unequal_ranks_are_one_machine(crew: Crew, row: Row, network: str, optimizer: str) -> None:
    assert row.exact_with is not None
    settings = {"weight_decay": 0.01, "optimizer": optimizer, **row.exact_with}
    job = job_for(network, row.strategy, row.options, **settings)
    expected = train_alone(job)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert report.outcome.kind == "finished"
        assert_equal(report.state, expected, atol=1e-9)


@pytest.mark.parametrize("row", [row for row in ROWS if row.exact_with == {}], ids=str)
def test_mixed_precision_is_near_one_machine_s(crew: Crew, row: Row) -> None:
    """Ranks round other sums to bfloat16: that is little beside what training has changed."""
    job = job_for("plain", row.strategy, row.options, precision="bf16", steps=3)
    part, expected = first_part(job), train_alone(job)
    for report in crew.run(job, WEIGHTS, part):
        for name, first in part.tensors.items():
            learnt = float((expected[name] - first).abs().max())
            off = float((report.state[name] - expected[name]).abs().max())
            assert off < 0.1 * learnt, name


@every_row
def test_ranks_agree_and_see_every_sample_once(crew: Crew, row: Row) -> None:
    job = job_for("image_normalised", row.strategy, row.options, steps=6)
    reports = crew.run(job, WEIGHTS, first_part(job))
    for report in reports:
        assert report.outcome.kind == "finished"
        assert report.outcome.step == 6
        assert [record["step"] for record in report.records] == list(range(6))
        assert_equal(report.state, reports[0].state, atol=0.0, but=row.keeps_apart)
    for step in range(6):
        records = [report.records[step] for report in reports]
        spans = [range(r["first"], r["first"] + r["samples"]) for r in records]
        first = step % 3 * 8
        assert [p for span in spans for p in span] == list(range(first, min(first + 8, 18)))
        assert all((r["loss"] is None) == (r["samples"] == 0) for r in records)
    for epoch in range(2):  # 18 samples to train with, 4 to test with
        parts = [report.evaluations[epoch] for report in reports]
        assert {part["step"] for part in parts} == {3 * epoch + 2}
        assert sum(part["samples"] for part in parts) == 4


@pytest.mark.parametrize(
    ("num_ranks", "precision", "network"),
    [
        (2, "fp32", "plain"),
        (3, "fp64", "plain"),
        (3, "fp32", "image_normalised"),
        (3, "bf16", "image_normalised"),
    ],
)
@every_row
def test_bytes_sent_are_those_in_the_schedule(
    crew: Crew, row: Row, num_ranks: int, precision: str, network: str
) -> None:
    job = job_for(network, row.strategy, row.options, precision=precision, momentum=0.0)
    plan = plan_of(job, WEIGHTS[:num_ranks])
    reports = crew.run(job, WEIGHTS[:num_ranks], first_part(job))
    assert len(reports) == len(plan.shares)
    for report in reports:
        for step in (0, 1, 3, 4):  # full batches; the last step may bring one more average
            schedule, record = job.strategy.schedule(plan, step), report.records[step]
            links = sent_by_link(schedule).items()
            expected = {to: size for (rank, to), size in links if rank == report.rank}
            assert record["sent_to"] == expected, f"step {step}"
            assert record["sent_bytes"] == sent_bytes(schedule, report.rank)


@every_row
def test_a_pause_changes_no_bit(crew: Crew, row: Row) -> None:
    """Held at a moment when ranks stand in different steps, and resumed from a checkpoint."""
    job = job_for("image_normalised", row.strategy, row.options)
    plan, part = plan_of(job, WEIGHTS), first_part(job)
    undisturbed = crew.run(job, WEIGHTS, part)
    last = len(plan.shares) - 1

    crew.build(job)
    halt = Halt(rank=last, place="record", step=3)
    formed = crew.form(plan, parts={0: part}, halt=halt)
    formed.await_halt()
    begun = formed.hold()
    assert begun[last] == 3
    boundary = max(begun) + 1
    formed.release(boundary)
    formed.go_on()
    paused = formed.reports()
    assert {report.outcome.kind for report in paused} == {"stopped"}
    assert {report.records[-1]["step"] for report in paused} == {boundary - 1}

    saved = {r.rank: r.checkpoints[-1] for r in paused if r.checkpoints}
    saved = {rank: kept for rank, kept in saved.items() if kept[0] == boundary}
    shared = saved[0][2]
    assert set(saved) == ({0} if shared else {report.rank for report in paused})

    crew.build(job)
    parts = {rank: kept[1] for rank, kept in saved.items()}
    source = 0 if shared else None
    resumed = crew.form(plan, first_step=boundary, parts=parts, source_rank=source).reports()
    for report, before, expected in zip(resumed, paused, undisturbed, strict=True):
        but = row.keeps_apart if shared and report.rank else ()
        assert_equal(report.state, expected.state, atol=0.0, but=but)
        losses = [record["loss"] for record in before.records + report.records]
        assert losses == [record["loss"] for record in expected.records]


@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("row", SENDING, ids=str)
def test_survivors_of_a_lost_peer_go_on(crew: Crew, row: Row, place: str) -> None:
    job = job_for("plain", row.strategy, row.options, **(row.exact_with or {}))
    part, back_to = first_part(job), 4 - row.loses
    crew.build(job)
    formed = crew.form(
        plan_of(job, WEIGHTS), parts={0: part}, halt=Halt(rank=row.stops, place=place, step=4)
    )
    formed.await_halt()
    formed.kill(2)
    if row.stops != 2:
        formed.go_on()
    left = formed.reports()
    assert [report.outcome.kind for report in left] == ["peer lost", "peer lost"]
    steps = [back_to if rank in row.keep else None for rank in range(2)]
    assert [report.outcome.step for report in left] == steps
    assert all(report.outcome.detail for report in left)
    for rank in row.keep:
        assert_equal(left[rank].state, left[0].state, atol=0.0)

    formed = crew.form(plan_of(job, WEIGHTS[:2]), first_step=back_to, source_rank=row.keep[-1])
    ended = formed.reports()
    assert [report.outcome.kind for report in ended] == ["finished", "finished"]
    assert_equal(ended[0].state, ended[1].state, atol=0.0)
    for report in ended:
        seen = [record["step"] for record in report.records]
        assert seen == list(range(back_to, 7))
    if row.exact_with is not None:
        assert_equal(left[0].state, train_alone(job, back_to), atol=1e-9)
        assert_equal(ended[0].state, train_alone(job), atol=1e-9)


def test_first_weights_depend_on_the_seed_alone(crew: Crew) -> None:
    """Without a part to begin with, as in a fresh run."""
    states = []
    for weights in ((1,), WEIGHTS):
        job = job_for("plain", "data", steps=1, lr=1e-12)
        states.append(crew.run(job, weights)[0].state)
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=1e-9)

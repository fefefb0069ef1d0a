"""`data`: bytes by hand, bfloat16 on the wire, and whatever its conformance does not show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convoy.datasets import open_dataset
from convoy.runtime.formation import Part
from convoy.state import Tensors

from .harness import Crew, job_for, plan_of
from .reference import (
    assert_equal,
    batches,
    first_network,
    first_part,
    largest_remainder,
    train_alone,
)

WEIGHTS = (1, 2, 5)


@pytest.mark.parametrize(
    ("network", "wire", "num_ranks", "sent"),
    [
        # 243 parameters of 4 bytes; each of n ranks sends 2 (n - 1) / n of them.
        ("plain", "fp32", 2, [972, 972]),
        ("plain", "fp32", 3, [1296, 1296, 1296]),
        # 40 + 76 + 10 + 330 + 21, and 6 that are never used: gradients of zero.
        ("branched", "fp32", 2, [1932, 1932]),
        # Of 2 bytes: 2 * 2 * 486 = 1944 bytes among three.
        ("plain", "bf16", 3, [648, 648, 648]),
        # 197 parameters, and (4 C + 1) float64 for 4 and 3 channels: 788 + 136 + 104 = 1028
        # bytes, so 4112 among three.
        ("image_normalised", "fp32", 2, [1028, 1028]),
        ("image_normalised", "fp32", 3, [1371, 1371, 1370]),
    ],
)
def test_bytes_by_hand(
    crew: Crew, network: str, wire: str, num_ranks: int, sent: list[int]
) -> None:
    job = job_for(network, "data", {"wire": wire}, precision="fp32", steps=3)
    reports = crew.run(job, WEIGHTS[:num_ranks])
    for step in range(3):  # the last is a short one
        assert [report.records[step]["sent_bytes"] for report in reports] == sent


def test_bfloat16_on_the_wire_is_near_but_not_equal(crew: Crew) -> None:
    """bfloat16 keeps 8 bits, so a sum over three ranks is off by 2^-7 at most; here the whole
    way that the weights have gone is off by no more than that."""
    ends: dict[str, Tensor] = {}
    for wire in ("fp32", "bf16"):
        job = job_for("plain", "data", {"wire": wire}, momentum=0.0)
        ends[wire] = flat(crew.run(job, WEIGHTS, first_part(job))[0].state)
    way = (ends["fp32"] - flat(first_part(job).tensors)).norm()
    error = (ends["bf16"] - ends["fp32"]).norm()
    assert 0 < error < 2**-7 * way


def flat(state: Tensors) -> Tensor:
    return torch.cat([state[name].flatten() for name in sorted(state)])


def test_samples_are_augmented_alike_whoever_takes_them(crew: Crew) -> None:
    ends = []
    for weights in ((1,), WEIGHTS):
        job = job_for("plain", "data", augment="flip-crop")
        ends.append(crew.run(job, weights, first_part(job))[0].state)
    assert_equal(ends[1], ends[0], atol=1e-9)
    plain = crew.run(job_for("plain", "data"), (1,), first_part(job))[0].state
    assert not torch.equal(flat(plain), flat(ends[0]))


def test_ranks_evaluate_as_one_machine(crew: Crew) -> None:
    job = job_for("normalised", "data", steps=3)
    reports = crew.run(job, WEIGHTS, first_part(job))
    network = first_network(job)
    network.load_state_dict(
        {n.removeprefix("model/"): t for n, t in train_alone(job).items() if "model/" in n}
    )
    test = open_dataset(job.dataset).test
    images, labels = test.batch(torch.arange(len(test)))
    with torch.no_grad():
        logits = network.eval()(images.double())
    sums = [report.evaluations[0] for report in reports]
    loss = F.cross_entropy(logits, labels, reduction="sum").item()
    assert sum(s["loss_sum"] for s in sums) == pytest.approx(loss, abs=1e-9)
    assert sum(s["correct"] for s in sums) == int((logits.argmax(1) == labels).sum())


def test_losses_are_those_of_each_ranks_samples(crew: Crew) -> None:
    job = job_for("plain", "data", steps=3)
    reports = crew.run(job, WEIGHTS, first_part(job))
    inputs, targets = next(batches(job))
    losses = F.cross_entropy(first_network(job)(inputs), targets, reduction="none")
    for report, part in zip(reports, losses.split([1, 2, 5]), strict=True):
        assert report.records[0]["loss"] == pytest.approx(part.mean().item(), abs=1e-12)
    assert [report.records[2]["loss"] is None for report in reports] == [True, False, False]


def test_a_frozen_layer_stays_as_it_is(crew: Crew) -> None:
    job = job_for("part_frozen", "data", weight_decay=0.01)
    part = first_part(job)
    reports = crew.run(job, WEIGHTS, part)
    assert_equal(reports[0].state, train_alone(job), atol=1e-9)
    assert torch.equal(reports[0].state["model/0.weight"], part.tensors["model/0.weight"])
    plan = plan_of(job, WEIGHTS)
    assert plan.problem.network.num_parameters == 36 * 3 + 3


def test_local_statistics_are_those_of_a_ranks_own_samples(crew: Crew) -> None:
    """A stand-in for no samples is not among them. Weights stand still, so that any process
    can tell what each rank's normalisations saw."""
    job = job_for("image_normalised", "data", {"batch_norm": "local"}, lr=1e-300)
    reports = crew.run(job, WEIGHTS, first_part(job))
    for rank, report in enumerate(reports):
        network = first_network(job)
        for inputs, _ in batches(job):
            mine = inputs.split(largest_remainder(len(inputs), WEIGHTS))[rank]
            if len(mine):
                network(mine)
        expected = Part(tensors={f"model/{n}": b for n, b in network.named_buffers()})
        for name, buffer in expected.tensors.items():
            torch.testing.assert_close(report.state[name], buffer, rtol=0, atol=1e-12)


def test_stopping_and_going_on_in_the_same_processes(crew: Crew) -> None:
    """Other shares from there on, and other ranks: still what one machine computes."""
    job = job_for("normalised", "data")
    crew.build(job)
    plan, part = plan_of(job, (1, 1, 1)), first_part(job)
    stopped = crew.form(plan, parts={0: part}, stop_before=4).reports()
    assert [(r.outcome.kind, r.outcome.step) for r in stopped] == [("stopped", 4)] * 3
    assert_equal(stopped[2].state, train_alone(job, 4), atol=1e-9)
    ended = crew.form(plan_of(job, (3, 1)), places=(2, 0), first_step=4).reports()
    assert [r.outcome.kind for r in ended] == ["finished", "finished"]
    for report in ended:
        assert_equal(report.state, train_alone(job), atol=1e-9)


def test_a_pause_changes_no_bit_of_several_buckets(crew: Crew) -> None:
    """Gradients are summed in the order of their buckets, in the first step as in any other."""
    job = job_for("wide", "data")
    plan, part = plan_of(job, WEIGHTS), first_part(job)
    undisturbed = crew.run(job, WEIGHTS, part)
    crew.build(job)
    crew.form(plan, parts={0: part}, stop_before=3).reports()
    for report in crew.form(plan, first_step=3).reports():
        assert_equal(report.state, undisturbed[0].state, atol=0.0)

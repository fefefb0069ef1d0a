"""`filter`: who gets which filters, what a step looks like, and that it is one machine's."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convoy.cost.layers import LayerSize, NetworkFacts, facts_of
from convoy.cost.schedule import Compute, Transfer
from convoy.errors import UsageError
from convoy.strategies import Problem, Worker, make_strategy
from convoy.strategies.filter_parallel import FilterParallel, FilterPlan
from convoy.strategies.filter_shares import _finish_together

from . import small_networks
from .harness import Crew, job_for
from .reference import assert_equal, first_part, train_alone

WEIGHTS = (1, 2, 5)


def facts(network: nn.Module, shape: tuple[int, ...] = (1, 6, 6)) -> NetworkFacts:
    return facts_of(network, shape)


def problem(network: NetworkFacts, weights: tuple[float, ...] = (1, 1)) -> Problem:
    workers = tuple(
        Worker(index=i, machine=f"m{i}", device="cpu", weight=w) for i, w in enumerate(weights)
    )
    return Problem(batch_size=8, workers=workers, network=network)


@given(st.data())
def test_no_other_division_ends_earlier(data: st.DataObject) -> None:
    ranks = data.draw(st.integers(2, 3))
    filters = data.draw(st.integers(ranks, 7))
    steps = st.lists(st.integers(0, 9), min_size=filters, max_size=filters)
    tables = [[*itertools.accumulate([0, *data.draw(steps)]), 999] for _ in range(ranks)]
    found = _finish_together(filters, [table.__getitem__ for table in tables])
    assert sum(found) == filters
    assert found[0] >= 1

    def last(division: tuple[int, ...]) -> int:
        return max(table[n] for table, n in zip(tables, division, strict=True))

    every = itertools.product(range(filters + 1), repeat=ranks)
    best = min(last(d) for d in every if sum(d) == filters and d[0] >= 1)
    assert last(found) == best


def test_filters_go_by_speed_and_the_first_rank_has_the_batch() -> None:
    network = nn.Sequential(nn.Conv2d(3, 80, 3), nn.ReLU(), nn.Conv2d(80, 16, 3))
    plan = FilterParallel().plan(problem(facts(network, (3, 8, 8)), (1, 2, 5)))
    assert plan.shares == (8, 0, 0)
    assert [layer.filters for layer in plan.layers] == [(10, 20, 50), (2, 4, 10)]
    assert [layer.tail for layer in plan.layers] == [("1",), ()]
    assert plan.portions == pytest.approx((1 / 8, 2 / 8, 5 / 8))


def test_tails_are_what_acts_on_each_channel_alone() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),  # 0 to 3
        *(nn.Conv2d(4, 4, 1), nn.Dropout(), nn.ReLU()),  # what is random stays
        *(nn.Conv2d(4, 4, 1), nn.LocalResponseNorm(2)),  # and what looks across channels
        *(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    )
    tails = {layer.name: layer.tail for layer in facts(network).layers if layer.filters}
    assert tails == {"0": ("1", "2", "3"), "4": (), "7": ()}


def test_what_two_layers_read_is_sent_as_it_is() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.pool = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)

        def forward(self, x: Any) -> Any:
            x = self.relu(self.conv(x))
            return self.pool(x).mean() + x.mean()

    (conv, *_) = facts(Forked()).layers
    assert conv.tail == ("relu",)


def test_a_step_drawn() -> None:
    """Maps there, own part meanwhile, maps back; gradients of maps before those of filters."""
    layers = (
        LayerSize(name="a", parameters=(40,), activations=64, inputs=16, filters=4),
        LayerSize(
            name="b", parameters=(60,), activations=8, inputs=64, filters=2, input_gradient=True
        ),
        LayerSize(name="fc", parameters=(10,), activations=3, inputs=8),
    )
    network = NetworkFacts(num_parameters=110, num_buffers=0, layers=layers)
    strategy = FilterParallel()
    plan = strategy.plan(problem(network))
    drawn = []
    for operation in strategy.schedule(plan, 0):
        if isinstance(operation, Compute):
            o = operation
            drawn.append(f"{o.phase} {o.layer} r{o.rank} {o.part:g} {o.portion:g}")
        elif isinstance(operation, Transfer):
            drawn.append(f"{operation.source} > {operation.destination} {operation.payload_bytes}")
    assert drawn == [
        "load  r0 1 1",
        "0 > 1 576",  # 64 + 8 * 16 * 4
        "forward a r1 0.5 1",
        "1 > 0 1024",  # 8 * 64 * 4 / 2
        "forward a r0 0.5 1",
        "0 > 1 2112",
        "forward b r1 0.5 1",
        "1 > 0 128",
        "forward b r0 0.5 1",
        "forward fc r0 1 1",
        "backward fc r0 1 1",
        "0 > 1 192",
        "backward b r1 0.5 0.5",
        "1 > 0 2048",
        "backward b r1 0.5 0.5",
        "backward b r0 0.5 1",
        "0 > 1 1088",
        "backward a r1 0.5 1",
        "backward a r0 0.5 1",
        "0 > 1 64",
        "update  r0 0.545455 1",  # 10 + 100 / 2 of 110
        "update  r1 0.454545 1",
    ]


@pytest.mark.parametrize(
    ("network", "weights", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), (1, 1), "no convolution whose filters"),
        (small_networks.plain(), (1,) * 5, "5 devices cannot share .* the largest has 4"),
    ],
)
def test_what_cannot_be_divided(network: nn.Module, weights: tuple[float, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FilterParallel().plan(problem(facts(network), weights))


@pytest.mark.parametrize("options", [{"fuse": "maybe"}, {"snapshot_every": 0}, {"wire": "int8"}])
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", "-")):
        make_strategy("filter", options)


def test_nobody_has_nothing_to_do() -> None:
    plan = FilterParallel().plan(problem(facts(small_networks.plain()), (1000, 1, 1000)))
    assert isinstance(plan, FilterPlan)
    assert all(any(layer.filters[rank] for layer in plan.layers) for rank in range(3))


@pytest.mark.parametrize(
    ("network", "size", "steps"), [("cifar10-full", "32x32", 3), ("resnet18", "16x16", 1)]
)
def test_known_networks_are_one_machines(crew: Crew, network: str, size: str, steps: int) -> None:
    job = job_for("plain", "filter", batch_size=4, steps=steps, weight_decay=0.01)
    job = replace(job, network=network, dataset=f"synthetic:3x{size}:10:6")
    expected = train_alone(job)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert report.outcome.kind == "finished"
        assert_equal(report.state, expected, atol=1e-9)


def test_channels_last_is_the_same(crew: Crew) -> None:
    job = job_for("image_normalised", "filter", memory_format="channels-last")
    expected = train_alone(job)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        assert_equal(report.state, expected, atol=1e-9)


def test_half_the_bytes_cost_little_accuracy(crew: Crew) -> None:
    job = job_for("plain", "filter", {"wire": "bf16"}, precision="fp32")
    expected = train_alone(job)
    for report in crew.run(job, WEIGHTS, first_part(job)):
        for name, tensor in report.state.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0.05, atol=0.05)

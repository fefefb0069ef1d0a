from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from convoy.runtime.layout import FORMATS, fastest_layout, laid_out, set_layout


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 9, 2)
    )


def images(count: int = 4) -> tuple[Tensor, Tensor]:
    return torch.arange(count * 75.0).view(count, 3, 5, 5) / 100, torch.arange(count) % 2


def choose(model: nn.Module, inputs: Tensor, targets: Tensor, **changes: object) -> str:
    options = {
        "lay_out": lambda layout: set_layout(model, layout),
        "autocast": contextlib.nullcontext,
        "agree": lambda times: times,
    } | changes
    return fastest_layout(model, inputs, targets, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "strides"), [("contiguous", (75, 25, 5, 1)), ("channels-last", (75, 1, 15, 3))]
)
def test_images_are_laid_out(layout: str, strides: tuple[int, ...]) -> None:
    inputs, _ = images()
    placed = laid_out(inputs, layout)
    assert placed.stride() == strides
    assert torch.equal(placed, inputs)


def test_what_is_not_images_is_left_as_it_is() -> None:
    rows = torch.zeros(2, 3)
    assert laid_out(rows, "channels-last") is rows
    assert choose(nn.Linear(3, 2), rows, torch.tensor([0, 1])) == "contiguous"


def test_filters_are_laid_out_in_place() -> None:
    model = network()
    filters, before = model[0].weight, model[0].weight.clone()
    for layout, memory_format in FORMATS.items():
        set_layout(model, layout)
        assert model[0].weight is filters
        assert filters.is_contiguous(memory_format=memory_format)
        assert torch.equal(filters, before)


def test_trying_leaves_no_trace_but_the_layout() -> None:
    model = network()
    model[1].eval()  # a mode of its own, which is to stay
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    parameters = dict(model.named_parameters())
    random = torch.get_rng_state()
    assert choose(model, *images()) in FORMATS
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_running_statistics_stay() -> None:
    model = network()
    model[1].running_mean.fill_(3.0)
    choose(model, *images())
    assert model[1].num_batches_tracked == 0
    assert model[1].running_mean.tolist() == [3.0] * 4


@pytest.mark.parametrize(
    ("slowest", "chosen"), [([2.0, 1.0], "channels-last"), ([1.0, 2.0], "contiguous")]
)
def test_the_slowest_ranks_times_decide(slowest: list[float], chosen: str) -> None:
    asked: list[list[float]] = []

    def agree(times: list[float]) -> list[float]:
        asked.append(times)
        return slowest

    assert choose(network(), *images(), agree=agree) == chosen
    ((first, second),) = asked
    assert first > 0
    assert second > 0


def test_what_is_timed_is_what_will_be_run() -> None:
    entered = 0

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        nonlocal entered
        entered += 1
        with torch.autocast("cpu", torch.bfloat16):
            yield

    choose(network(), *images(), autocast=autocast)
    assert entered >= 4  # a first time and at least one more, in both layouts

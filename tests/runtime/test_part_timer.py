"""Which convolutions' parts are timed, and that nothing else comes of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from convoy.runtime import part_timer
from convoy.runtime.part_timer import time_filters


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 8, 3, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 2),
        nn.Conv2d(4, 1, 1),
        nn.Conv2d(1, 16, 3, padding="same", padding_mode="reflect", dilation=2),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


IMAGES = torch.linspace(-1, 1, 3 * 100).view(3, 1, 10, 10)


def measured(model: nn.Module, seconds: float = 60.0) -> dict[str, dict[str, float]]:
    return time_filters(model, IMAGES, contextlib.nullcontext, seconds)


@pytest.fixture
def model() -> nn.Module:
    model = network()
    model(IMAGES)
    return model


def test_convolutions_whose_filters_can_be_divided(model: nn.Module) -> None:
    """None that is grouped, transposed or has one filter only; those with most work first."""
    found = measured(model)
    assert list(found) == ["2", "7", "0"]
    for parts in found.values():
        assert list(parts) == ["0.25", "0.5", "0.75"]
        assert all(0 < part < math.inf for part in parts.values())


def test_no_time_no_figures(model: nn.Module) -> None:
    assert measured(model, seconds=-1.0) == {}
    assert measured(nn.Sequential(nn.Flatten(), nn.Linear(100, 2))) == {}


def test_the_network_is_as_before(model: nn.Module) -> None:
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    measured(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_parts_are_those_of_all_filters(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that takes as long per filter has the part's own share of the time."""
    asked: list[int] = []

    def seconds(layer: nn.Conv2d, filters: int, *_: object) -> float:
        asked.append(filters)
        return filters / 100

    monkeypatch.setattr(part_timer, "_seconds", seconds)
    found = measured(model)
    assert found["2"] == found["7"] == {"0.25": 0.25, "0.5": 0.5, "0.75": 0.75}
    assert found["0"] == {"0.25": 0.5, "0.5": 0.5, "0.75": 1.0}  # of two, at least one
    assert asked == [8, 2, 4, 6, 16, 4, 8, 12, 2, 1, 1, 2]


def test_in_the_precision_and_the_layout_of_the_run(model: nn.Module) -> None:
    entered = 0

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        nonlocal entered
        entered += 1
        with torch.autocast("cpu", torch.bfloat16):
            yield

    images = IMAGES.expand(-1, 1, -1, -1).contiguous(memory_format=torch.channels_last)
    assert set(time_filters(model, images, autocast, 60.0)) == {"0", "2", "7"}
    assert entered >= 3 * 4 * 3

"""A surveyor at work in this process, on a network that takes no time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from convoy.runtime import surveyor as module
from convoy.runtime.formation import Job
from convoy.runtime.layout import FORMATS
from convoy.runtime.settings import TrainSettings
from convoy.runtime.step_statistics import deciles, mean_of
from convoy.runtime.surveyor import Orders, Surveyor
from convoy.strategies import Batch, make_strategy
from convoy.strategies.batch_norm import CrewBatchNorm


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


@pytest.fixture
def surveyor(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Surveyor, nn.Module]]:
    """One that is prepared, and its network."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(module, "keep_freed_memory", lambda: None)  # of the whole process
    monkeypatch.setattr(module, "STRETCH_S", 0.001)
    threads = torch.get_num_threads()
    model = network()
    job = Job(
        settings=TrainSettings(batch_size=8, lr=0.5, weight_decay=0.1, memory_format="contiguous"),
        strategy=make_strategy("data", {}),
        network=model,
        dataset="synthetic:1x6x6:3:18",
    )
    made = Surveyor("127.0.0.1", "cpu", 1)
    about = made.prepare(job)
    assert about["pid"] == os.getpid()
    assert about["memory_bytes"] > 2**28
    assert about["versions"] == {"torch": torch.__version__.partition("+")[0]}
    yield made, made._trainee.model  # a copy of what was given
    torch.set_num_threads(threads)


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_a_survey_leaves_the_network_as_it_was(surveyor: tuple[Surveyor, nn.Module]) -> None:
    """But for what it has seen of images: running statistics."""
    made, model = surveyor
    before, classes = parameters(model), [type(m) for m in model.modules()]

    layouts = made.layouts(4)
    assert set(layouts) == set(FORMATS)
    assert all(s > 0 for s in layouts.values())

    sizes = (2, 4, 40)  # more than there are images
    steps = made.steps(Orders(layout="contiguous", samples=sizes, seconds=0.5))
    assert steps.samples == sizes[: len(steps.samples)]
    assert set(steps.seconds) == {"load", "forward", "backward", "update"}
    for times in (*steps.seconds.values(), steps.replica_s):
        assert len(times) == len(steps.samples)
        assert all(0 <= s < 10 for s in times)
    assert list(steps.variation) == sorted(steps.variation)
    assert len(steps.variation) == 10
    assert not dist.is_initialized()

    of_state = made.state(0.01)
    assert of_state.keys() == {"average_s", "accumulate_s"}
    assert all(0 < seconds < 10 for seconds in of_state.values())
    assert not dist.is_initialized()

    layers = made.layers((2, 4), 0.01)
    assert list(layers) == ["0", "1", "2", "3", "4"]
    assert all(len(f) == len(b) == 2 for f, b in layers.values())
    assert all(s > 0 for f, _ in layers.values() for s in f)
    assert list(made.filters(2, 10.0)) == ["0"]

    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_sizes_for_which_there_is_no_time_are_left_out(
    surveyor: tuple[Surveyor, nn.Module],
) -> None:
    """The smallest, a quarter and half of the largest are always measured."""
    made, _ = surveyor
    steps = made.steps(Orders(layout="channels-last", samples=(1, 2, 5, 10, 15, 20), seconds=0.0))
    assert steps.samples == (1, 5, 10)
    assert all(len(times) == 3 for times in steps.seconds.values())


def test_a_network_is_timed_alone_as_it_is_alone(
    surveyor: tuple[Surveyor, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in a crew with the batch normalisation of one, which takes longer."""
    made, model = surveyor
    seen: set[tuple[bool, type]] = set()
    loss = made._trainee.loss

    def watched(which: nn.Module, batch: Batch) -> Tensor:
        seen.add((which is model, type(model[1])))
        return loss(which, batch)

    with made._replica() as replica:
        monkeypatch.setattr(made._trainee, "loss", watched)
        for which in (replica, model, replica, model):
            made._step(2, which)
    assert seen == {(True, nn.BatchNorm2d), (False, CrewBatchNorm)}


def test_a_step_that_fails_leaves_no_group(
    surveyor: tuple[Surveyor, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, model = surveyor

    def fail(*_: Any) -> float:
        raise ValueError("out of memory")

    monkeypatch.setattr(made, "_stretch", fail)
    with pytest.raises(ValueError, match="out of memory"):
        made.steps(Orders(layout="contiguous", samples=(2,), seconds=0.1))
    assert not dist.is_initialized()
    assert type(model[1]) is nn.BatchNorm2d


def phases(total: float) -> dict[str, float]:
    return {"load": 0.0, "forward": total / 4, "backward": total / 2, "update": total / 4}


def test_means_leave_extremes_out() -> None:
    steps = [phases(s) for s in (4.0,) * 8 + (0.0, 4000.0)]
    assert mean_of(steps) == phases(4.0)
    assert mean_of([phases(1.0), phases(3.0)]) == phases(2.0)
    assert mean_of([phases(1.0)]) == phases(1.0)


def test_variation_is_in_deciles_of_the_mean() -> None:
    assert deciles([[phases(2.0)] * 9]) == (1.0,) * 10
    assert deciles([[phases(2.0)]]) == (1.0,)
    spread = deciles([[phases(float(s)) for s in range(1, 102)]])
    assert spread == pytest.approx([(6 + 10 * i) / 51 for i in range(10)])
    assert math.fsum(spread) == pytest.approx(10)


def test_a_network_that_cannot_learn_from_one_image(
    surveyor: tuple[Surveyor, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single value has no variance, and is left to what two take."""
    made, model = surveyor
    model.insert(4, nn.BatchNorm1d(64))
    steps = made.steps(Orders(layout="contiguous", samples=(1, 2), seconds=0.3))
    assert steps.samples == (2,)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        made.steps(Orders(layout="contiguous", samples=(1,), seconds=0.3))

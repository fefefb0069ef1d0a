"""Algorithms of a rank's convolutions: those asked for, or what is fastest here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from convoy.api.requests import job_of
from convoy.errors import UsageError
from convoy.kernels import tuner
from convoy.kernels.layers import ChosenConv2d
from convoy.kernels.passes import ByPass
from convoy.kernels.tuner import Where
from convoy.runtime import conv_choice
from convoy.runtime.training import Trainee

ON = {"workers": 1, "threads_per_worker": 1, "strategy": "single", "batch_size": 8}
SMALL = "synthetic:3x16x16:10"


def trainee(**options: Any) -> Trainee:
    job = job_of("cifar10-quick", SMALL, ON | options)
    return Trainee(job, torch.device("cpu"), 1)


FOUND = {
    "conv1": ByPass("pipelined", "torch", "lowering"),
    "conv2": ByPass("torch", "torch", "torch"),
    "conv3": ByPass("lowering", "lowering", "lowering"),
}
LAST = {"conv2": ByPass("torch-contiguous", "torch", "torch")}
EXPECTED = {
    "contiguous": {"conv1": "pipelined/torch/lowering", "conv3": "lowering"},
    "channels-last": {"conv2": "torch-contiguous/torch/torch"},
}


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the tuner finds for some layers, by layout, and what whole passes take."""
    told: dict[str, Any] = {"seconds": {"torch": 1.0, "auto": 0.9}, "whole passes": []}
    monkeypatch.setattr(tuner.pooch, "os_cache", lambda _name: tmp_path)

    def found(_shapes: Any, where: Where, _kept: Any, **_: Any) -> dict[str, ByPass]:
        return LAST if where.last else FOUND

    def turns_of(works: Any, *_: Any, **_more: Any) -> dict[str, list[float]]:
        for name, work in works.items():
            work()
            told["whole passes"].append(name)
        return {name: [seconds] * 3 for name, seconds in told["seconds"].items()}

    monkeypatch.setattr(conv_choice, "tuned", found)
    monkeypatch.setattr(conv_choice, "turns_of", turns_of)
    return told


def algorithms(model: torch.nn.Module) -> dict[str, str]:
    return {n: m.algorithm for n, m in model.named_modules() if isinstance(m, ChosenConv2d)}


def test_what_was_asked_for_is_used_in_any_layout() -> None:
    one = trainee(conv_algorithm="lowering")
    for layout in ("contiguous", "channels-last"):
        one.arrangement.lay_out(layout)
        assert algorithms(one.model) == dict.fromkeys(("conv1", "conv2", "conv3"), "lowering")


def test_the_fastest_is_used_in_the_layout_it_was_timed_in(choices: dict[str, Any]) -> None:
    one, plain = trainee(conv_algorithm="auto"), trainee()
    assert algorithms(one.model) == {}
    for layout in ("contiguous", "channels-last", "contiguous"):
        assert one.arrangement.algorithms(layout) == EXPECTED[layout]
        one.arrangement.lay_out(layout)
        assert algorithms(one.model) == EXPECTED[layout]
    for ours, torchs in zip(one.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, torchs)
        assert ours.stride() == torchs.stride()
        assert ours.grad is None


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_only_the_layout_that_is_asked_for_is_timed(choices: dict[str, Any], layout: str) -> None:
    asked = trainee(conv_algorithm="auto", memory_format=layout)
    for name, expected in EXPECTED.items():
        assert asked.arrangement.algorithms(name) == (expected if name == layout else {})


def test_what_is_slower_as_a_whole_is_not_taken(choices: dict[str, Any]) -> None:
    choices["seconds"] = {"torch": 1.0, "auto": 0.995}
    for _ in range(2):
        one = trainee(conv_algorithm="auto")
        assert one.arrangement.algorithms("contiguous") == {}
        assert len(choices["whole passes"]) == 4  # two layouts, and the second time none
        choices["seconds"] = {"torch": 1.0, "auto": 0.5}  # which is not asked any more


def test_what_is_faster_as_a_whole_is_kept(choices: dict[str, Any]) -> None:
    for _ in range(2):
        one = trainee(conv_algorithm="auto")
        assert one.arrangement.algorithms("contiguous") == EXPECTED["contiguous"]
        assert len(choices["whole passes"]) == 4
        choices["seconds"] = {"torch": 1.0, "auto": 2.0}
    trainee(conv_algorithm="auto", batch_size=4)  # another amount of work
    assert len(choices["whole passes"]) == 8


def test_with_bfloat16(choices: dict[str, Any]) -> None:
    one = trainee(conv_algorithm="auto", precision="bf16")
    assert one.arrangement.algorithms("contiguous") == {}
    with pytest.raises(UsageError, match="--precision bf16 expected torch or auto"):
        trainee(conv_algorithm="direct", precision="bf16")


def test_it_trains_as_with_torch() -> None:
    found = []
    for algorithm in ("torch", "pipelined"):
        one = trainee(conv_algorithm=algorithm, precision="fp64", lr=0.1)
        one.arrangement.lay_out("contiguous")
        for step in range(4):
            inputs, targets = one.fetch(torch.arange(8) + 8 * step)
            F.cross_entropy(one.model(inputs), targets).backward()
            one.optimizer.step()
            one.optimizer.zero_grad()
        found.append(one.model.state_dict())
    torchs, ours = found
    first = trainee(precision="fp64").model.state_dict()
    for name, tensor in torchs.items():
        assert not torch.equal(tensor, first[name])
        torch.testing.assert_close(ours[name], tensor, rtol=1e-11, atol=1e-11)
    assert any(not torch.equal(ours[name], tensor) for name, tensor in torchs.items())

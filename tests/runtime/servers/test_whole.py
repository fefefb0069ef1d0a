"""A training state as shards' parts, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.runtime.optimization import make_optimizer
from convoy.runtime.servers.whole import (
    average_buffers,
    network_in,
    parts_of,
    whole_of,
)
from convoy.runtime.settings import TrainSettings
from convoy.state import Tensors, load, pack
from convoy.strategies.parameter_shards import Pieces, divide

OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "sgd", "momentum": 0.9},
    *({"optimizer": name} for name in ("adagrad", "adam", "adamax", "adadelta")),
]
NAMES = ["sgd", "momentum", "adagrad", "adam", "adamax", "adadelta"]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 7)
        ).double()


def trained(settings: dict[str, Any], steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    optimizer = make_optimizer(model, TrainSettings(**settings))
    images = torch.randn(
        6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    return model, optimizer


def pieces_of(model: nn.Module, num_shards: int) -> tuple[Pieces, ...]:
    return divide({name: tuple(p.shape) for name, p in model.named_parameters()}, num_shards)


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=NAMES)
@pytest.mark.parametrize("num_shards", [1, 3, 6])
def test_parts_make_the_whole_again(settings: dict[str, Any], num_shards: int) -> None:
    model, optimizer = trained(settings)
    whole = pack(model, optimizer)
    pieces = pieces_of(model, num_shards)
    states = parts_of(whole, pieces, [5] * num_shards)
    assert [state.version for state in states] == [5] * num_shards
    assert_same(whole_of(network().state_dict() | buffers(model), pieces, states), whole)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_buffers())


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=NAMES)
def test_a_run_goes_on_with_another_number_of_shards(settings: dict[str, Any]) -> None:
    model, optimizer = trained(settings)
    whole = pack(model, optimizer)
    for num_shards in (4, 2, 5):
        pieces = pieces_of(model, num_shards)
        states = parts_of(whole, pieces, range(num_shards))
        whole = whole_of(model.state_dict(), pieces, states)
    assert_same(whole, pack(model, optimizer))


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=NAMES)
def test_another_strategy_can_load_what_shards_had(settings: dict[str, Any]) -> None:
    model, optimizer = trained(settings)
    pieces = pieces_of(model, 3)
    states = parts_of(pack(model, optimizer), pieces, [0] * 3)
    other = network()
    again = make_optimizer(other, TrainSettings(**settings))
    load(other, again, whole_of(model.state_dict(), pieces, states))
    assert_same(pack(other, again), pack(model, optimizer))


def test_a_run_that_begins_has_no_state_of_an_optimizer() -> None:
    model = network()
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    states = parts_of(tensors, pieces_of(model, 2), [0, 0])
    assert [state.optimizer for state in states] == [{}, {}]


def test_the_whole_is_a_copy_and_leaves_its_base_alone() -> None:
    model, optimizer = trained({"optimizer": "adam"})
    pieces, base = pieces_of(model, 2), network().state_dict()
    before = {name: tensor.clone() for name, tensor in base.items()}
    states = parts_of(pack(model, optimizer), pieces, [0, 0])
    whole = whole_of(base, pieces, states)
    for tensor in whole.values():
        tensor.zero_()
    assert_same(dict(base), before)
    assert all(bool(state.weights.any()) for state in states)


def test_counts_of_updates_are_those_of_the_tensor_that_has_most() -> None:
    model, optimizer = trained({"optimizer": "adam"})
    whole = pack(model, optimizer)
    whole["optimizer/0.weight/step"] = torch.tensor(9.0)
    (state,) = parts_of(whole, pieces_of(model, 1), [0])
    assert state.optimizer["step"].item() == 9
    assert state.optimizer["step"].dim() == 0


def test_buffers_are_averaged_by_weight_and_counts_are_the_largest() -> None:
    known = [
        ({"mean": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)}, 1.0),
        ({"mean": torch.tensor([5.0, 6.0]), "count": torch.tensor(8)}, 3.0),
    ]
    found = average_buffers(known)
    assert found["mean"].tolist() == [4.0, 5.0]
    assert found["count"].item() == 8
    assert found["count"].dtype == torch.int64
    assert known[0][0]["mean"].tolist() == [1.0, 2.0]


def test_buffers_that_a_device_does_not_have_are_those_of_the_others() -> None:
    known = [
        ({"mean": torch.tensor([1.0]), "count": torch.tensor(3)}, 1.0),
        ({"other": torch.tensor([7.0])}, 1.0),
        ({"mean": torch.tensor([5.0])}, 1.0),
    ]
    found = average_buffers(known)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "mean": [3.0],
        "count": 3,
        "other": [7.0],
    }


def test_the_network_in_a_state() -> None:
    model, optimizer = trained({"optimizer": "adam"})
    assert_same(network_in(pack(model, optimizer)), dict(model.state_dict()))

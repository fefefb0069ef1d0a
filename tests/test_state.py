from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convoy.errors import CheckpointError
from convoy.runtime.optimization import make_optimizer
from convoy.runtime.settings import OPTIMIZERS, TrainSettings
from convoy.state import Tensors, broken, copy_of, load, merge, pack


def network(seed: int, *, channels_last: bool = False, filters: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, filters, 3),
            nn.BatchNorm2d(filters),
            nn.Flatten(),
            nn.Linear(4 * filters, 3),
        )
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(5, 2, 4, 4, generator=generator)
    labels = torch.randint(3, (5,), generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def trained(
    settings: TrainSettings, *, steps: int, channels_last: bool = False
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(0, channels_last=channels_last)
    optimizer = make_optimizer(model, settings)
    for number in range(steps):
        step(model, optimizer, number)
    return model, optimizer


def assert_same(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        assert tensor.dtype == other[name].dtype, name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_the_same_bits(name: str, channels_last: bool) -> None:
    settings = TrainSettings(optimizer=name, weight_decay=0.01)
    model, optimizer = trained(settings, steps=3, channels_last=channels_last)
    saved = copy_of(pack(model, optimizer), "cpu")
    assert any(key.startswith("optimizer/3.weight/") for key in saved)

    other = network(1, channels_last=channels_last)
    successor = make_optimizer(other, settings)
    step(other, successor, 77)  # it has a state of its own, which is to go
    load(other, successor, saved)
    assert_same(pack(other, successor), saved)
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, successor, number)
    assert_same(pack(other, successor), pack(model, optimizer))


def test_the_layout_of_parameters_and_their_moments_is_kept() -> None:
    settings = TrainSettings(optimizer="adam")
    model, optimizer = trained(settings, steps=1)
    saved = copy_of(pack(model, optimizer))
    other = network(1, channels_last=True)
    successor = make_optimizer(other, settings)
    load(other, successor, saved)
    filters = other[0].weight
    assert filters.is_contiguous(memory_format=torch.channels_last)
    moments = successor.state[filters]["exp_avg"]
    assert moments.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moments, saved["optimizer/0.weight/exp_avg"])


def test_a_momentum_not_yet_there_goes_when_loading() -> None:
    model, optimizer = trained(TrainSettings(), steps=0)
    nothing_yet = copy_of(pack(model, optimizer))
    assert not any(name.startswith("optimizer/") for name in nothing_yet)
    step(model, optimizer, 0)
    load(model, optimizer, nothing_yet)
    assert_same(pack(model, optimizer), nothing_yet)
    assert not optimizer.state


def test_frozen_and_shared_parameters_and_buffers() -> None:
    model, optimizer = trained(TrainSettings(momentum=0.5), steps=1)
    model[3].bias.requires_grad_(False)
    tied = nn.Sequential(model[3], model[3])
    packed = pack(tied, optimizer)
    assert torch.equal(packed["model/0.weight"], packed["model/1.weight"])
    saved = copy_of(packed)
    load(tied, optimizer, saved)
    assert_same(pack(tied, optimizer), saved)
    assert "model/1.num_batches_tracked" in pack(model, optimizer)


def test_packing_does_not_copy_but_copying_does() -> None:
    model, optimizer = trained(TrainSettings(), steps=1, channels_last=True)
    live = pack(model, optimizer)
    copies = copy_of(live)
    assert live["model/0.weight"].data_ptr() == model[0].weight.data_ptr()
    places = {tensor.data_ptr() for tensor in live.values()}
    assert places.isdisjoint(tensor.data_ptr() for tensor in copies.values())
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in copies.values())
    before = {name: tensor.clone() for name, tensor in copies.items()}
    step(model, optimizer, 5)
    assert_same(copies, before)


def test_loading_copies() -> None:
    settings = TrainSettings(optimizer="adam")
    model, optimizer = trained(settings, steps=2)
    saved = copy_of(pack(model, optimizer))
    before = {name: tensor.clone() for name, tensor in saved.items()}
    load(model, optimizer, saved)
    step(model, optimizer, 2)
    assert_same(saved, before)


def test_a_state_of_another_network() -> None:
    settings = TrainSettings(optimizer="adam")
    model, optimizer = trained(settings, steps=1)
    saved = copy_of(pack(model, optimizer))
    wider = network(0, filters=4)
    successor = make_optimizer(wider, settings)
    before = copy_of(pack(wider, successor))
    with pytest.raises(CheckpointError) as caught:
        load(wider, successor, saved)
    # 0.weight, 0.bias and the four of batch normalisation differ in shape, and 3.weight.
    assert "0.bias, 0.weight, 1.bias, 1.running_mean ... missing or" in str(caught.value)
    assert "--network" in str(caught.value)
    assert_same(pack(wider, successor), before)


def test_a_tensor_too_few_or_too_many() -> None:
    model, optimizer = trained(TrainSettings(), steps=1)
    saved = copy_of(pack(model, optimizer))
    fewer = {name: tensor for name, tensor in saved.items() if name != "model/3.bias"}
    more = saved | {"model/extra": torch.zeros(1)}
    for tensors, named in ((fewer, "3.bias"), (more, "extra")):
        with pytest.raises(CheckpointError, match=re.escape(f"network: {named} missing")):
            load(model, optimizer, tensors)


def test_merging_is_the_weighted_mean() -> None:
    parts = [
        {
            "model/w": torch.tensor([value, 1.0], dtype=torch.float64),
            "model/steps": torch.tensor(count),
            "optimizer/w/step": torch.tensor(float(count)),
            "model/counts": torch.tensor([count, count]),
        }
        for value, count in ((1.0, 7), (5.0, 8), (9.0, 9))
    ]
    merged = merge(parts, [1, 1, 2])
    assert merged["model/w"].tolist() == [0.25 * 1 + 0.25 * 5 + 0.5 * 9, 1.0]
    assert merged["model/w"].dtype == torch.float64
    # Counts are alike on all ranks, but for those that trained on other numbers of batches.
    assert merged["model/steps"] == 7
    assert merged["optimizer/w/step"] == 7.0
    assert merged["model/counts"].tolist() == [7, 7]


def test_a_merged_state_is_a_copy() -> None:
    parts = [{"a": torch.ones(2), "n": torch.tensor(1)} for _ in range(2)]
    merged = merge(parts, [3, 1])
    for name in ("a", "n"):
        merged[name].zero_()
        assert all(part[name].all() for part in parts)


def test_a_rank_without_samples_does_not_count() -> None:
    merged = merge([{"a": torch.tensor([4.0])}, {"a": torch.tensor([8.0])}], [0, 5])
    assert merged["a"].item() == 8.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_tensor_that_is_not_finite_is_named(value: float) -> None:
    tensors = {"a": torch.ones(2), "count": torch.tensor(1), "b": torch.ones(2), "c": torch.ones(1)}
    assert broken(tensors) is None
    tensors["b"][1] = tensors["c"][0] = value
    assert broken(tensors) == "b"

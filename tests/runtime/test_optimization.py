from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from convoy.runtime.optimization import CUSTOMARY_LR, base_lr, lr_at, make_optimizer
from convoy.runtime.settings import OPTIMIZERS, TrainSettings

CLASSES = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}


def rates(settings: TrainSettings, num_steps: int, steps_per_epoch: int = 10) -> list[float]:
    return [
        lr_at(step, settings=settings, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
        for step in range(num_steps)
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_is_torchs_own(name: str) -> None:
    settings = TrainSettings(optimizer=name, lr=0.25, weight_decay=0.125, momentum=0.5)
    optimizer = make_optimizer(nn.Linear(2, 3), settings)
    assert type(optimizer) is CLASSES[name]
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.125)
    if name == "sgd":
        assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.5, False, 0)
    else:  # everything else is as torch has it
        theirs = CLASSES[name]([nn.Parameter(torch.zeros(1))]).defaults
        changed = {"lr", "weight_decay"}
        assert {k: group[k] for k in theirs if k not in changed} == {
            k: v for k, v in theirs.items() if k not in changed
        }


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    (group,) = make_optimizer(model, TrainSettings()).param_groups
    assert group["params"] == [model.weight]


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"sgd"}))
def test_customary_rates_are_torchs(name: str) -> None:
    theirs = CLASSES[name]([nn.Parameter(torch.zeros(1))]).defaults["lr"]
    assert CUSTOMARY_LR[name] == theirs
    assert base_lr(TrainSettings(optimizer=name)) == theirs
    assert base_lr(TrainSettings(optimizer=name, lr=3.0)) == 3.0


def test_constant() -> None:
    assert rates(TrainSettings(lr=0.5), 4) == [0.5] * 4


def test_steps_fall_every_so_many_epochs() -> None:
    settings = TrainSettings(lr=1.0, lr_schedule="step", lr_step_epochs=2, lr_gamma=0.5)
    assert rates(settings, 8, steps_per_epoch=2) == [1.0] * 4 + [0.5] * 4


def test_steps_fall_every_third_of_the_run_by_themselves() -> None:
    settings = TrainSettings(lr=1.0, lr_schedule="step", lr_gamma=0.25)
    assert rates(settings, 7) == [1.0] * 3 + [0.25] * 3 + [0.0625]
    assert rates(settings, 1) == [1.0]


def test_cosine_from_the_base_rate_to_nothing() -> None:
    settings = TrainSettings(lr=2.0, lr_schedule="cosine")
    found = [
        lr_at(step, settings=settings, num_steps=8, steps_per_epoch=10) for step in (0, 2, 4, 6, 8)
    ]
    half = math.sqrt(0.5)
    assert found == pytest.approx([2.0, 1 + half, 1.0, 1 - half, 0.0], abs=1e-15)
    assert lr_at(100, settings=settings, num_steps=8, steps_per_epoch=10) == 0.0  # and stays there


def test_cosine_begins_after_the_warm_up() -> None:
    settings = TrainSettings(lr=1.0, lr_schedule="cosine", warmup=4)
    found = rates(settings, 12)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[8] == pytest.approx(0.5)  # half of the 8 steps that are left
    assert found[4:] == sorted(found[4:], reverse=True)


def test_warm_up_rises_in_equal_parts() -> None:
    assert rates(TrainSettings(lr=1.0, warmup=5), 7) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert rates(TrainSettings(lr=1.0, warmup=0), 2) == [1.0, 1.0]


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_a_warm_up_longer_than_the_run(schedule: str) -> None:
    settings = TrainSettings(lr=1.0, warmup=10, lr_schedule=schedule, lr_step_epochs=9)
    assert rates(settings, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])

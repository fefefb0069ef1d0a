"""Where networks can be cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.cost.layers import facts_of


class Skip(nn.Module):
    """Two convolutions with a way around, and a function between that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.more, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(self.stem(x), 2)
        x = x + self.more(torch.relu(self.body(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_a_cut_is_where_a_single_tensor_is_alive_and_thin() -> None:
    stem, mean = facts_of(Skip(), (1, 6, 6)).cuts.places
    assert (stem.layers, stem.shape, stem.after) == (1, (4, 3, 3), "max_pool2d")
    assert (mean.layers, mean.shape, mean.after) == (3, (4,), "mean")
    assert stem.elements == 36
    assert stem.gradient


def test_what_is_used_where() -> None:
    network = Skip()
    cuts = facts_of(network, (1, 6, 6)).cuts
    assert dict(cuts.users) == {
        f"{name}.{kind}": before
        for name, before in (("stem", 0), ("body", 1), ("more", 1), ("head", 2))
        for kind in ("weight", "bias")
    }
    tied = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    tied[2].weight = tied[0].weight
    users = dict(facts_of(tied, (4,)).cuts.users)
    assert users["2.weight"] == users["0.weight"] == 0
    assert users["1.running_mean"] == users["1.num_batches_tracked"] == 0
    assert users["3.bias"] == 1


def test_no_gradient_comes_back_to_what_is_not_trained() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    first, second = facts_of(network, (4,)).cuts.places
    assert not first.gradient
    assert second.gradient


def test_layers_of_one_parameter_stay_together() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    tied[2].weight = tied[0].weight
    assert [cut.layers for cut in facts_of(tied, (4,)).cuts.places] == [3]
    twice = nn.Linear(4, 4)
    again = nn.Sequential(nn.Linear(4, 4), twice, nn.Tanh(), twice, nn.Linear(4, 2))
    assert [cut.layers for cut in facts_of(again, (4,)).cuts.places] == [1, 3]


def test_what_has_no_parameters_may_stand_on_both_sides() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2))
    assert [cut.layers for cut in facts_of(network, (4,)).cuts.places] == [1, 2, 3]


class Odd(nn.Module):
    """Between its layers goes what no stage can be sent."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second, self.way = nn.Linear(4, 4), nn.Linear(4, 2), way

    def forward(self, images: Tensor) -> Any:
        x = self.first(images)
        if self.way == "whole numbers":
            return self.second((x > 0).long().float() * x)
        if self.way == "the transposed":
            return self.second(x.t().contiguous().t())
        if self.way == "two":
            return self.second(x) * images.sum(1, keepdim=True)
        if self.way == "what is in it":
            return self.second(x if x.sum() > 0 else -x)
        return self.second(x)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("two", "more than a single tensor"),
        ("what is in it", "torch.fx cannot follow its forward pass"),
    ],
)
def test_why_there_is_none(way: str, said: str) -> None:
    cuts = facts_of(Odd(way), (4,)).cuts
    assert not cuts.places
    assert said in cuts.reason


def test_only_maps_cross() -> None:
    (numbers,) = facts_of(Odd("whole numbers"), (4,)).cuts.places
    assert numbers.after == "mul"
    (rows,) = facts_of(Odd("the transposed"), (4,)).cuts.places
    assert rows.after == "t_1"


def test_one_layer() -> None:
    cuts = facts_of(nn.Linear(4, 2), (4,)).cuts
    assert not cuts.places
    assert cuts.reason == "it is one layer"
    assert facts_of(nn.Sequential(nn.Linear(4, 2)), (4,)).cuts == cuts


def test_nobody_has_looked() -> None:
    assert facts_of(nn.Linear(4, 2)).cuts.reason == "nobody has traced its layers"


def test_a_network_that_makes_tensors_on_the_host() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return self.second(self.first(x) + torch.ones(4))

    assert [cut.layers for cut in facts_of(Host(), (4,)).cuts.places] == [1]

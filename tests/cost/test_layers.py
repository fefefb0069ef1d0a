"""Facts read off networks."""

from __future__ import annotations

import torch
from torch import nn

from convoy import networks
from convoy.cost.layers import NetworkFacts, facts_of


def test_a_convolution_and_its_normalisation() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    assert facts_of(network) == NetworkFacts(
        num_parameters=3 * 8 * 25 + 8 + 2 * 8 + 8 * 2 + 2,
        num_buffers=2 * 8,  # not the number of batches, which is an integer
        batch_norm_channels=(8,),
    )


def test_shared_parameters_count_once() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert facts_of(network).num_parameters == 40
    network[2].weight = network[0].weight
    assert facts_of(network).num_parameters == 24
    twice = nn.Sequential(network[0], nn.ReLU(), network[0])
    assert facts_of(twice).num_parameters == 20


def test_a_shared_normalisation_keeps_one_set_of_statistics() -> None:
    norm = nn.BatchNorm1d(4)
    facts = facts_of(nn.Sequential(norm, nn.ReLU(), norm))
    assert (facts.num_parameters, facts.num_buffers) == (8, 8)


def test_frozen_parameters_do_not_count() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    assert facts_of(network).num_parameters == 10


def test_normalisations_in_order_of_modules() -> None:
    network = nn.ModuleDict(
        {
            "last": nn.BatchNorm3d(2),
            "first": nn.Sequential(nn.BatchNorm1d(5), nn.GroupNorm(1, 7), nn.InstanceNorm2d(9)),
            "middle": nn.BatchNorm2d(3, affine=False, momentum=None),
        }
    )
    facts = facts_of(network)
    assert facts.batch_norm_channels == (2, 5, 3)
    assert facts.num_parameters == 2 * 2 + 2 * 5 + 2 * 7
    assert facts.num_buffers == 2 * (2 + 5 + 3)


def test_buffers_that_are_not_saved_count_too() -> None:
    """An average covers them, whatever a state_dict leaves out."""
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.ones(3, 5), persistent=False)
    assert facts_of(network).num_buffers == 15


def test_nothing_is_allocated() -> None:
    with torch.device("meta"):
        network = networks.build("vgg16", input_shape=(3, 224, 224), num_classes=1000)
    assert facts_of(network) == NetworkFacts(num_parameters=138_357_544, num_buffers=0)

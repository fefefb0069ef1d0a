"""Facts read off networks."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convoy import networks
from convoy.cost.layers import NetworkFacts, facts_of, layers_of, totals_of
from convoy.errors import UsageError


def test_a_convolution_and_its_normalisation() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    assert facts_of(network) == NetworkFacts(
        num_parameters=3 * 8 * 25 + 8 + 2 * 8 + 8 * 2 + 2,
        num_buffers=2 * 8,  # not the number of batches, which is an integer
        batch_norm_channels=(8,),
        shapes=(
            *(("0.weight", (8, 3, 5, 5)), ("0.bias", (8,)), ("1.weight", (8,)), ("1.bias", (8,))),
            *(("3.weight", (2, 8)), ("3.bias", (2,))),
        ),
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
    facts = facts_of(network)
    assert replace(facts, shapes=()) == NetworkFacts(num_parameters=138_357_544, num_buffers=0)
    assert sum(math.prod(shape) for _, shape in facts.shapes) == facts.num_parameters
    assert facts.shapes[0] == ("conv1_1.weight", (64, 3, 3, 3))


GOOGLENET = """7x7 150528 1843968 9408 802816; 3x3 200704 1806336 110592 602112
3x3 75264 677376 110592 100352; 5x5 12544 313600 12800 25088; 3x3 100352 903168 221184 150528
5x5 25088 627200 76800 75264; 3x3 18816 169344 179712 40768; 5x5 3136 78400 19200 9408
3x3 21952 197568 225792 43904; 5x5 4704 117600 38400 12544; 3x3 25088 225792 294912 50176
5x5 4704 117600 38400 12544; 3x3 28224 254016 373248 56448; 5x5 6272 156800 51200 12544
3x3 31360 282240 460800 62720; 5x5 6272 156800 102400 25088; 3x3 7840 70560 460800 15680
5x5 1568 39200 102400 6272; 3x3 9408 84672 663552 18816; 5x5 2352 58800 153600 6272"""
"""Kernel, input, lowered, weight, output of its convolutions above 1x1 (Sakiyama et al.)."""


def on_meta(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return networks.build(name, input_shape=shape, num_classes=num_classes)


def test_googlenet_as_published() -> None:
    found = [
        f"{'x'.join(map(str, layer.kernel))} {layer.input} {layer.lowered} {layer.weight} "
        f"{layer.output}"
        for layer in layers_of(on_meta("googlenet", (3, 224, 224), 1000), (3, 224, 224))
        if layer.lowered and layer.kernel and layer.kernel[0] > 1
    ]
    assert found == GOOGLENET.replace("\n", "; ").split("; ")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet5", (1, 32, 32)),
        ("cifar10-full", (3, 32, 32)),
        ("expression", (1, 48, 48)),
        ("alexnet", (3, 224, 224)),
        ("googlenet", (3, 224, 224)),
        ("vgg16", (3, 224, 224)),
        ("resnet18", (3, 32, 32)),
        ("resnet50", (3, 64, 64)),
    ],
)
def test_work_as_torch_counts_it(name: str, shape: tuple[int, int, int]) -> None:
    """torch's FlopCounterMode, over a forward and a backward pass of the whole network."""
    network = on_meta(name, shape, 10)
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.zeros(2, *shape, device="meta"))
        forward = counter.get_total_flops()
        logits.sum().backward()
    totals = totals_of(layers_of(network, shape))
    assert 2 * 2 * totals["macs"] == forward
    assert 2 * 2 * totals["backward_macs"] == counter.get_total_flops() - forward
    assert totals["parameter_bytes"] == 4 * facts_of(network).num_parameters


def test_a_convolution_in_full() -> None:
    network = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2, dtype=torch.float64)
    (layer,) = layers_of(nn.Sequential(network), (4, 9, 11))
    assert (layer.name, layer.type, layer.kernel) == ("0", "Conv2d", (3, 5))
    assert layer.output_shape == (6, 5, 5)
    assert (layer.input, layer.output, layer.weight) == (4 * 99, 6 * 25, 6 * 2 * 15)
    assert layer.lowered == 25 * 4 * 15
    assert layer.macs == 6 * 25 * 2 * 15
    assert layer.backward_macs == layer.macs  # nobody needs the gradient of the image
    assert layer.parameter_bytes == 8 * (6 * 2 * 15 + 6)
    assert layer.activation_bytes == 8 * 6 * 25


def test_a_transposed_convolution_does_the_work_of_the_one_it_undoes() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2))
    (layer,) = layers_of(network, (6, 5, 5))
    assert layer.output_shape == (4, 11, 11)
    assert (layer.macs, layer.lowered) == (6 * 25 * 2 * 9, None)


class Branches(nn.Module):
    """A skip, one layer called twice, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.unused = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x)) + x
        x = self.act(self.conv(x))
        return self.last(x.flatten(1))


def test_layers_in_the_order_of_execution() -> None:
    found = layers_of(Branches(), (2, 2, 2))
    assert [layer.name for layer in found] == ["conv", "act", "conv#2", "act#2", "last"]
    assert [layer.parameter_bytes for layer in found] == [4 * 38, 0, 0, 0, 4 * 27]
    assert [layer.backward_macs // layer.macs for layer in found if layer.macs] == [1, 2, 2]


class Curious(nn.Module):
    """Looks into its tensors, so it cannot run without content."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 1:
            x = x - 1
        return self.layer(x.flatten(1))


def test_a_network_that_looks_into_its_tensors() -> None:
    (layer,) = layers_of(Curious(), (1, 2, 2))
    assert (layer.macs, layer.output_shape) == (8, (2,))


def test_the_network_is_as_before() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)).eval()
    before = copy.deepcopy(network.state_dict())
    state = torch.random.get_rng_state()
    layers_of(network, (1, 5, 5))
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not network[0]._forward_hooks


def test_images_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="images of 3x8x8 do not go through this network"):
        layers_of(nn.Conv2d(1, 2, 3), (3, 8, 8))

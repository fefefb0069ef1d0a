"""First weights keep signals at a usable size, which is what they are for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convoy.networks import build
from convoy.networks.initial import caffe_xavier, he_normal
from convoy.networks.layers import in_a_row


def make(name: str, shape: tuple[int, int, int], num_classes: int = 10) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(name, input_shape=shape, num_classes=num_classes)
    assert isinstance(network, nn.Sequential)
    return network


def test_he_normal() -> None:
    network = in_a_row(
        {
            "conv": nn.Conv2d(32, 64, 5, groups=2),
            "middle": nn.Linear(300, 400),
            "last": nn.Linear(400, 200, bias=False),
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        he_normal(network, last="last", linear=("middle",))
    deviations = [layer.weight.std().item() for layer in network]
    # A group's fan-in is its own: 16 of 32 channels.
    expected = [math.sqrt(2 / (16 * 25)), math.sqrt(1 / 300), 0.01]
    assert deviations == pytest.approx(expected, rel=0.03)
    assert not network[0].bias.any()
    assert not network[1].bias.any()


def test_caffe_xavier() -> None:
    """[-sqrt(3 / fan-in), +sqrt(3 / fan-in)], whatever the fan-out."""
    network = nn.Sequential(nn.Conv2d(8, 300, 5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        caffe_xavier(network)
    assert network[0].weight.abs().max().item() == pytest.approx(math.sqrt(3 / 200), rel=0.01)
    assert not network[0].bias.any()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cifar10-quick", (3, 32, 32)),
        ("cifar10-full", (3, 32, 32)),
        ("expression", (1, 48, 48)),
        ("googlenet", (3, 64, 64)),
    ],
)
def test_signals_neither_die_nor_explode(name: str, shape: tuple[int, int, int]) -> None:
    """With Caffe's fillers the last features of cifar10-full would be below 1e-4 here."""
    network = make(name, shape).eval()
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = network[:-1](x)
        loss = F.cross_entropy(network(x), torch.arange(8))
    assert 0.05 < features.square().mean().sqrt() < 20
    assert loss == pytest.approx(math.log(10), abs=0.7)


@pytest.mark.parametrize("name", ["lenet5", "lenet", "cifar10-quick", "cifar10-full"])
def test_a_few_steps_learn(name: str) -> None:
    """Noisy copies of four smooth pictures. torch's own first weights take twice the steps."""
    network = make(name, (1, 16, 16), 4)
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(16) % 4
    pictures = F.interpolate(torch.randn(4, 1, 4, 4, generator=generator), 16, mode="bilinear")
    x = pictures[targets] / pictures.std()
    x = x + 0.3 * torch.randn(x.shape, generator=generator)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2

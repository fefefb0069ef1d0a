"""Fewer filters before a cut: what is left fits, computes the same, and starts as it should."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.errors import UnknownNameError, UsageError
from convoy.networks import build, names, narrow_weights, published_for
from convoy.networks.maps import maps_of
from convoy.networks.narrowed import Narrowing, cut_at, narrowed_as_trained, parse

SHAPE = (3, 32, 32)


def make(name: str | Callable[..., nn.Module], shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(name, input_shape=shape, num_classes=10)


def images(number: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(1))


def refused(name: str, text: str, shape: tuple[int, int, int] = SHAPE) -> None:
    with pytest.raises(UsageError, match=re.escape(text)), torch.device("meta"):
        build(name, input_shape=shape, num_classes=10)


def as_trained(network: nn.Module, cut: str, filters: int) -> nn.Module:
    narrowing = Narrowing(network="it", cut=cut, filters=filters)
    return narrowed_as_trained(network, narrowing, SHAPE).eval()


@pytest.mark.parametrize("filters", [1, 4, 8, 12, 16, 20, 24, 28, 32])
def test_cifar10_full_at_pool2(filters: int) -> None:
    """conv2 has 5x5x32 weights and a bias for each filter, conv3 5x5 weights for each, times 64."""
    network = make(f"cifar10-full@pool2:{filters}")
    first = 5 * 5 * 3 * 32 + 32
    second = filters * (5 * 5 * 32 + 1)
    third = 64 * (5 * 5 * filters + 1)
    dense = 10 * (64 * 4 * 4 + 1)
    assert sum(p.numel() for p in network.parameters()) == first + second + third + dense
    assert network(images(2)).shape == (2, 10)
    shapes = maps_of(network, SHAPE).shapes
    assert shapes["pool2"] == (filters, 8, 8)
    assert network.training


def test_a_narrowed_network_is_the_one_that_is_built_so() -> None:
    narrow, built = make("marques:50:500@pool1:20"), make("marques:20:500")
    assert [(n, p.shape) for n, p in narrow.named_parameters()] == [
        (n, p.shape) for n, p in built.named_parameters()
    ]
    assert repr(narrow) == repr(built)


def test_all_filters_are_the_full_network() -> None:
    full, narrow = make("cifar10-full"), make("cifar10-full@pool2:32")
    for name, tensor in full.state_dict().items():
        assert torch.equal(narrow.state_dict()[name], tensor), name


def test_first_weights_keep_he_s_variance() -> None:
    """Of 2 / fan-in: conv3's was 32 x 25 and is 8 x 25; conv2's is what it was."""
    full, narrow = make("cifar10-full"), make("cifar10-full@pool2:8")
    assert torch.equal(narrow.conv2.weight, full.conv2.weight[:8])
    assert torch.equal(narrow.conv2.bias, full.conv2.bias[:8])
    assert narrow.conv3.weight.std().item() == pytest.approx(math.sqrt(2 / (8 * 25)), rel=0.03)
    assert torch.equal(narrow.conv3.weight, full.conv3.weight[:, :8] * 2)
    assert torch.equal(narrow.ip1.weight, full.ip1.weight)


def test_signals_keep_their_size() -> None:
    narrow, built = make("marques:50:500@pool2:40").eval(), make("marques:50:500").eval()
    with torch.no_grad():
        spread = built(images(64)).std().item()
        assert narrow(images(64)).std().item() == pytest.approx(spread, rel=0.3)


def test_narrowed_twice() -> None:
    network = make("cifar10-full@pool2:16@pool1:4")
    assert (network.conv1.out_channels, network.conv2.in_channels) == (4, 4)
    assert (network.conv2.out_channels, network.conv3.in_channels) == (16, 16)


def test_on_no_device() -> None:
    """Whoever counts and traces gets what whoever trains gets, without its memory."""
    with torch.device("meta"):
        bare = build("caffenet@pool2:16", input_shape=(3, 67, 67), num_classes=10)
    assert {p.device.type for p in bare.parameters()} == {"meta"}
    live = make("caffenet@pool2:16", (3, 67, 67))
    assert [p.shape for p in bare.parameters()] == [p.shape for p in live.parameters()]


CUTS = {
    "lenet5": ("squash5", (1, 32, 32), 12),
    "lenet": ("pool1", (1, 28, 28), 4),
    "cifar10-quick": ("pool2", SHAPE, 5),
    "cifar10-full": ("norm1", SHAPE, 7),
    "marques:6:8": ("pool2", SHAPE, 3),
    "chavan:3-8-12-10": ("pool1", SHAPE, 3),
    "expression": ("pool2", (1, 24, 24), 11),
    "caffenet": ("pool1", (3, 67, 67), 6),
    "alexnet": ("pool1", (3, 63, 63), 5),
    "googlenet": ("pool2", (3, 32, 32), 9),
    "vgg16": ("pool2", SHAPE, 9),
    "resnet18": ("stage1.block2.body.relu1", SHAPE, 5),
    "resnet50": ("stage2.block1.body.relu2", SHAPE, 5),
}
NOT_THERE = {
    "lenet5": ("s2", (1, 32, 32), "made by s2 (Subsampling), not a Conv2d"),
    "googlenet": ("inception_3a", (3, 32, 32), "meet in it"),
    "resnet18": ("relu1", SHAPE, "they meet those of stage1.block1.body.conv2 in stage1.block1"),
    "resnet50": ("relu1", SHAPE, "stage1.block1.shortcut.conv, stage1.block1.body.conv1"),
}
"""Where the zoo's networks cannot be narrowed, and what is said."""


def test_the_cases_leave_no_network_out() -> None:
    heads = {name.partition(":")[0] for name in names()}
    # resnet152 is resnet50 with more of the same blocks, and takes seconds.
    assert {name.partition(":")[0] for name in CUTS} == heads - {"resnet152"}


@pytest.mark.parametrize("name", CUTS)
def test_every_network_somewhere(name: str) -> None:
    cut, shape, filters = CUTS[name]
    with torch.device("meta"):
        full = build(name, input_shape=shape, num_classes=10)
        narrow = build(f"{name}@{cut}:{filters}", input_shape=shape, num_classes=10)
        assert narrow(torch.empty(3, *shape)).shape == (3, 10)
    found, was = maps_of(narrow, shape).shapes[cut], maps_of(full, shape).shapes[cut]
    assert found == (filters, *was[1:])
    assert was[0] > filters


@pytest.mark.parametrize("name", ["lenet5", "googlenet", "resnet18"])
def test_where_it_cannot_be(name: str) -> None:
    cut, shape, text = NOT_THERE[name]
    refused(f"{name}@{cut}:1", text, shape)
    refused(f"{name}@{cut}:1", "Layers where it can be: ", shape)


def test_a_projection_takes_maps_beside_the_block() -> None:
    """resnet50's stem goes into two convolutions, and nowhere else: it can be narrowed."""
    with torch.device("meta"):
        network = build("resnet50@relu1:8", input_shape=SHAPE, num_classes=10)
    assert network.get_submodule("stage1.block1.body.conv1").in_channels == 8
    assert network.get_submodule("stage1.block1.shortcut.conv").in_channels == 8
    assert network.norm1.num_features == 8


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cifar10-full@pool2", "malformed: expected NAME@CUT:F"),
        ("cifar10-full@pool2:many", "malformed: expected NAME@CUT:F"),
        ("@pool2:8", "malformed: expected NAME@CUT:F"),
        ("cifar10-full@pool2:0", "conv2 has 32 filters; expected a number from 1 to 32"),
        ("cifar10-full@pool2:-3", "conv2 has 32 filters; expected a number from 1 to 32"),
        ("cifar10-full@pool2:33", "conv2 has 32 filters; expected a number from 1 to 32"),
        ("cifar10-full@ip1:3", "made by ip1 (Linear), not a Conv2d. Layers where it can be: conv1"),
        ("cifar10-full@norm2.maen:3", "unknown layer of cifar10-full 'norm2.maen'"),
        ("cifar10-ful@pool2:3", "unknown network 'cifar10-ful'"),
        ("caffenet@pool1:15", "expected a multiple of 2"),
    ],
)
def test_refusals(name: str, text: str) -> None:
    refused(name, text, (3, 67, 67) if name.startswith("caffenet") else SHAPE)


def test_the_nearest_layer_is_offered() -> None:
    with pytest.raises(UnknownNameError, match=r"Nearest: pool2"):
        make("cifar10-full@pol2:3")


def test_parsing() -> None:
    assert parse("marques:50:500") is None
    found = parse("package.module:make@layer2.0.act:8")
    assert found == Narrowing(network="package.module:make", cut="layer2.0.act", filters=8)
    assert str(found) == "package.module:make@layer2.0.act:8"


def test_published_as_the_full_one() -> None:
    assert published_for("cifar10-full@pool2:8") == published_for("cifar10-full")
    with pytest.raises(UnknownNameError, match="unknown network 'cifar'"):
        published_for("cifar@pool2:8")


def test_trained_weights_with_all_filters() -> None:
    trained = {n: torch.randn_like(t) for n, t in make("cifar10-full").state_dict().items()}
    narrow = narrow_weights("cifar10-full@pool2:32", trained, input_shape=SHAPE, num_classes=10)
    assert narrow.keys() == trained.keys()
    assert all(torch.equal(narrow[name], trained[name]) for name in trained)


def test_filters_that_are_zero_are_not_missed() -> None:
    full = make("cifar10-full").eval()
    dead = [0, 3, 17, 31]
    with torch.no_grad():
        full.conv2.weight[dead] = 0
        full.conv2.bias[dead] = 0
        before = full(images(4))
        tensors = full.state_dict()
        name = "cifar10-full@pool2:28"
        narrow = make(name).eval()
        narrow.load_state_dict(narrow_weights(name, tensors, input_shape=SHAPE, num_classes=10))
        torch.testing.assert_close(narrow(images(4)), before, atol=1e-6, rtol=1e-6)
        assert all(torch.equal(tensors[key], value) for key, value in full.state_dict().items())


def test_the_filters_with_the_largest_norms_stay_in_order() -> None:
    full = make("marques:6:8")
    with torch.no_grad():
        full.conv1.weight[:] = 1e-3
        full.conv1.weight[4], full.conv1.weight[1] = 0.5, -0.7
    tensors = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    kept = narrow_weights("marques:6:8@relu1:2", tensors, input_shape=SHAPE, num_classes=10)
    assert torch.equal(kept["conv1.weight"], tensors["conv1.weight"][[1, 4]])
    assert torch.equal(kept["conv2.weight"], tensors["conv2.weight"][:, [1, 4]])


def test_each_group_keeps_as_many() -> None:
    """The largest four are all of the second group, which takes but two of them."""
    full = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(), nn.LazyLinear(2)
    )
    full(images(1))
    weight = full[0].weight.detach()
    weight[:] = torch.tensor([0.1, 0.4, 0.2, 0.3, 5, 6, 8, 7])[:, None, None, None]
    before = full[2].weight.detach().clone()
    expected = weight[[1, 3, 6, 7]].clone()
    narrow = as_trained(full, "1", 4)
    assert torch.equal(narrow[0].weight, expected)
    assert torch.equal(narrow[2].weight[:2], before[:2, [1, 3]])
    assert torch.equal(narrow[2].weight[2:], before[2:, [2, 3]])
    assert narrow(images(2)).shape == (2, 2)


class Mobile(nn.Module):
    """Everything that treats channels alone, between a convolution and two who take its maps."""

    def __init__(self, pairs: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.PReLU(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.pairs = pairs
        self.flat_norm = nn.BatchNorm1d(6 * 4)
        self.one, self.two = nn.Linear(24, 10), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pairs(F.relu(self.depthwise(self.act(self.norm(self.conv(x))))))
        parts = F.adaptive_max_pool2d(x, 2).flatten(1)
        y: Tensor = self.one(self.flat_norm(parts)) + self.two(x.mean((2, 3)))
        return y


def test_all_that_treats_channels_alone_is_cut_with_them() -> None:
    full = make(lambda: Mobile(pairs=nn.Identity())).eval()
    for module in full.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    dead = [1, 2, 4]
    with torch.no_grad():
        full.conv.weight[dead] *= 1e-3  # the least: these go
        full.one.weight.view(10, 6, 4)[:, dead] = 0
        full.two.weight[:, dead] = 0
        before = full(images(3))
        narrow = as_trained(full, "depthwise", 3)
        torch.testing.assert_close(narrow(images(3)), before, atol=1e-6, rtol=1e-6)
    assert (narrow.depthwise.groups, narrow.norm.num_features) == (3, 3)
    assert narrow.act.weight.shape == (3,)
    assert narrow.flat_norm.running_var.shape == (12,)


def test_groups_of_a_normalisation_stay_whole() -> None:
    network = Mobile(pairs=nn.GroupNorm(3, 6))
    cut = cut_at(network, "it", "act", SHAPE)
    assert (cut.convolution, cut.filters, cut.multiple) == ("conv", 6, 3)
    assert set(cut.takers) == {
        *("norm", "act", "depthwise", "pairs", "flat_norm", "one", "two"),
    }
    with torch.no_grad():
        network.conv.weight[[0, 2, 5]] *= 1e-3
    narrow = as_trained(network, "act", 3)  # one of each pair
    assert (narrow.pairs.num_groups, narrow.pairs.num_channels) == (3, 3)
    assert narrow(images(2)).shape == (2, 10)


class Odd(nn.Module):
    """One thing after another that keeps the filters of `conv` from being fewer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(5, 10)
        self.gamma = nn.Parameter(torch.ones(4, 1, 1)) if kind == "scaled" else None
        self.other = nn.Conv2d(3, 4, 1)
        self.rows = nn.Linear(32, 32)
        if kind == "shared":
            self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "scaled":
            y = y * self.gamma
        elif self.kind == "added":
            y = y + self.other(x)
        elif self.kind == "joined":
            y = torch.cat([y[:, :2], self.other(x)[:, :2]], 1)
        elif self.kind == "shuffled":
            y = y.view(len(y), 2, 2, 32, 32).transpose(1, 2).flatten(1, 2)
        elif self.kind == "last channels":
            y = y.permute(0, 2, 3, 1).permute(0, 3, 1, 2)
        elif self.kind == "rows":
            y = self.rows(y)
        elif self.kind == "looked at" and bool(y.sum() > 1e9):
            y = y * 2
        elif self.kind == "counted":
            y = y + torch.ones(1, 4, 1, 1)
        elif self.kind == "shared":
            y = y * self.other(x).mean()
        z: Tensor = self.head(self.pool(self.after(y)).flatten(1))
        return z


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("scaled", "has weights of its own for them"),
        ("added", "they meet those of other in the network"),
        ("joined", "in the network"),
        ("shuffled", "does not keep them apart"),
        ("last channels", "permute in the network does not keep them apart"),
        ("rows", "rows looks along rows of maps"),
        ("counted", "with other filters in conv, an image of 3x32x32 does not go through"),
        ("shared", "shares its weights"),
    ],
)
def test_what_is_in_the_way(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        as_trained(Odd(kind), "conv", 2)


def test_a_network_that_looks_into_its_tensors() -> None:
    assert as_trained(Odd("looked at"), "conv", 2)(images(2)).shape == (2, 10)


def test_a_layer_that_is_called_again() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()
            self.head = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.two(self.relu(self.one(x))))
            y: Tensor = self.head(x.mean((2, 3)))
            return y

    with pytest.raises(UsageError, match="it is called several times, and the maps of one, two"):
        cut_at(Twice(), "twice", "relu", SHAPE)
    assert cut_at(Twice(), "twice", "two", SHAPE).takers == ("head",)


def test_looking_leaves_a_network_as_it_was() -> None:
    network = make("resnet18", (3, 16, 16))
    network.stage1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    maps_of(network, (3, 16, 16))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())

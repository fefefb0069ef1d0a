"""What every network does: logits of the right shape, gradients everywhere, traceable."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.networks import build, names

SMALL = [
    ("lenet5", (1, 28, 28)),
    ("lenet5", (3, 37, 40)),
    ("lenet", (1, 28, 28)),
    ("cifar10-quick", (3, 32, 32)),
    ("cifar10-full", (3, 32, 32)),
    ("marques:4:6", (3, 32, 32)),
    ("chavan:3-8-12-7", (1, 8, 8)),
    ("expression", (1, 24, 24)),
    ("caffenet", (3, 39, 39)),
    ("alexnet", (3, 63, 63)),
    ("googlenet", (3, 32, 32)),
    ("vgg16", (3, 32, 32)),
    ("resnet18", (3, 16, 16)),
    ("resnet50", (3, 16, 16)),
    ("resnet50", (3, 65, 65)),
]
"""Each at a size that computes quickly; 7 classes."""

ANYWHERE = [
    ("lenet5", [(1, 8, 8), (1, 32, 32), (3, 33, 64), (2, 5, 100)]),
    ("lenet", [(1, 32, 32), (3, 32, 32), (3, 17, 29)]),
    ("cifar10-quick", [(1, 8, 8), (1, 28, 28), (3, 64, 48)]),
    ("cifar10-full", [(1, 8, 8), (1, 28, 28), (3, 64, 48)]),
    ("marques:50:500", [(3, 32, 32), (1, 28, 28), (3, 19, 90)]),
    ("chavan:5-50-100-7", [(1, 28, 28), (3, 32, 32), (3, 7, 50)]),
    ("expression", [(1, 48, 48), (3, 64, 50)]),
    ("caffenet", [(3, 227, 227), (3, 224, 224), (3, 128, 160), (1, 64, 64)]),
    ("alexnet", [(3, 227, 227), (3, 224, 224), (3, 128, 160), (1, 64, 64)]),
    ("googlenet", [(3, 224, 224), (3, 64, 96), (1, 32, 32)]),
    ("vgg16", [(3, 224, 224), (3, 64, 96), (1, 32, 32)]),
    ("resnet18", [(3, 224, 224), (3, 64, 64), (3, 65, 65), (1, 8, 8)]),
    ("resnet50", [(3, 224, 224), (3, 64, 200), (1, 28, 28)]),
    ("resnet152", [(3, 224, 224), (3, 32, 32)]),
]


def make(name: str, shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(name, input_shape=shape, num_classes=7)


def images(number: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _same_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        yield


def test_the_cases_leave_nothing_out() -> None:
    heads = {name.partition(":")[0] for name in names()}
    assert {name.partition(":")[0] for name, _ in ANYWHERE} == heads
    # resnet152 is resnet50 with more of the same blocks, and takes seconds.
    assert {name.partition(":")[0] for name, _ in SMALL} == heads - {"resnet152"}


@pytest.mark.parametrize(("name", "shapes"), ANYWHERE)
def test_logits_for_images_of_many_sizes(name: str, shapes: list[tuple[int, int, int]]) -> None:
    for shape in shapes:
        with torch.device("meta"):
            network = make(name, shape)
            assert network(torch.empty(3, *shape)).shape == (3, 7)
            assert network.training


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_one_network(name: str, shape: tuple[int, int, int]) -> None:
    """Several properties in one test, since building the large ones takes a second each."""
    network = make(name, shape)
    check_evaluation(network, shape)
    check_tracing(network, shape)
    check_gradients(network, shape)


def check_evaluation(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Finite, the same again, image by image, and not all alike; an empty batch is one too."""
    network.eval()
    x = images(3, shape)
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (3, 7)
        assert logits.isfinite().all()
        assert torch.equal(network(x), logits)
        torch.testing.assert_close(network(x[1:2]), logits[1:2], atol=1e-4, rtol=1e-4)
        assert logits.std(dim=0).min() > 0
        assert network(x[:0]).shape == (0, 7)


def check_tracing(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """torch.fx sees every layer, and the trace computes the same."""
    traced = torch.fx.symbolic_trace(network)
    x = images(2, shape)
    with torch.no_grad():
        assert torch.equal(traced(x), network(x))
    seen = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    fx_leaves = {
        name
        for name, module in network.named_modules()
        if type(module).__module__.startswith("torch.nn") and not list(module.children())
    }
    assert seen == fx_leaves


def check_gradients(network: nn.Module, shape: tuple[int, int, int]) -> None:
    network.train()
    F.cross_entropy(network(images(4, shape)), torch.tensor([0, 1, 2, 6])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("name", "shape"),
    [("googlenet", (3, 64, 64)), ("resnet18", (3, 32, 32)), ("vgg16", (3, 32, 32))],
)
def test_between_layers_only_sums_and_concatenations(
    name: str, shape: tuple[int, int, int]
) -> None:
    """What is a layer is a module: whoever traces finds nothing hidden in functions."""
    with torch.device("meta"):
        traced = torch.fx.symbolic_trace(make(name, shape))
    kinds = {node.op for node in traced.graph.nodes}
    called = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert kinds <= {"placeholder", "call_module", "call_function", "output"}
    assert called <= {torch.cat, operator.add}


@pytest.mark.parametrize("name", ["expression", "cifar10-full"])
def test_training_repeats_under_the_same_seed(name: str) -> None:
    shape = (1, 48, 48)
    network = make(name, shape)
    x = images(2, shape)
    has_dropout = any(isinstance(layer, nn.Dropout) for layer in network.modules())
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(network(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) is not has_dropout


@pytest.mark.parametrize("name", ["lenet5", "lenet", "cifar10-full", "resnet18"])
def test_weights_come_from_the_callers_seed(name: str) -> None:
    first, again, other = (make(name, (1, 28, 28), seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_layers_have_the_names_that_cuts_use() -> None:
    def children(name: str, shape: tuple[int, int, int]) -> list[str]:
        with torch.device("meta"):
            return [child for child, _ in make(name, shape).named_children()]

    assert children("cifar10-full", (3, 32, 32)) == [
        *("conv1", "pool1", "relu1", "norm1", "conv2", "relu2", "pool2", "norm2"),
        *("conv3", "relu3", "pool3", "flatten", "ip1"),
    ]
    assert children("resnet18", (3, 224, 224)) == [
        *("conv1", "norm1", "relu1", "pool1", "stage1", "stage2", "stage3", "stage4"),
        *("pool", "flatten", "fc"),
    ]

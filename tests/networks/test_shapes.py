"""Sizes by arithmetic: they are what torch makes of them, and what is too small is refused."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convoy.errors import UsageError
from convoy.networks import build
from convoy.networks.layers import WithinChannelNorm, caffe_average_pool, caffe_max_pool
from convoy.networks.shapes import flat_size, map_shape
from convoy.networks.spec import Spec

SMALLEST = [
    ("lenet", 13),
    ("cifar10-quick", 8),
    ("cifar10-full", 8),
    ("marques:2:3", 16),
    ("chavan:3-2-4-5", 4),
    ("chavan:5-2-4-5", 6),
    ("expression", 24),
    ("caffenet", 39),
    ("alexnet", 63),
    ("googlenet", 31),
    ("vgg16", 32),
    ("lenet5", 1),
    ("resnet18", 1),
]


def on_meta(name: str, shape: tuple[int, int, int], num_classes: int = 5) -> nn.Sequential:
    with torch.device("meta"):
        network = build(name, input_shape=shape, num_classes=num_classes)
    assert isinstance(network, nn.Sequential)
    return network


@pytest.mark.parametrize(("name", "side"), SMALLEST)
def test_the_smallest_image_fits(name: str, side: int) -> None:
    for shape in ((3, side, side), (1, side, side + 3), (2, side + 2, side)):
        network = on_meta(name, shape)
        assert network(torch.empty(2, *shape, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(("name", "side"), [(name, side) for name, side in SMALLEST if side > 1])
def test_a_smaller_image_is_refused(name: str, side: int) -> None:
    for shape in ((3, side - 1, side - 1), (3, side - 1, side + 9), (3, side + 9, side - 1)):
        got, least = "x".join(map(str, shape)), f"3x{side}x{side}"
        text = f"network '{name}': an input of {got} is too small; the smallest it takes is {least}"
        with pytest.raises(UsageError, match=re.escape(text)):
            on_meta(name, shape)


@pytest.mark.parametrize(("name", "side"), [(name, side) for name, side in SMALLEST if side > 1])
def test_a_smaller_image_is_refused_for_a_reason(name: str, side: int) -> None:
    network = on_meta(name, (3, side, side))
    names = [child for child, _ in network.named_children()]
    features = network[: names.index("pool5" if name == "googlenet" else "flatten")]
    features(torch.empty(1, 3, side, side, device="meta"))
    with pytest.raises(RuntimeError):
        features(torch.empty(1, 3, side - 1, side - 1, device="meta"))


LAYERS = st.one_of(
    st.builds(
        lambda kernel, stride, padding: nn.Conv2d(1, 1, kernel, stride, padding),
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        st.integers(1, 4),
        st.integers(0, 2),
    ),
    st.builds(nn.MaxPool2d, st.integers(2, 4), st.integers(1, 4)),
    st.builds(caffe_max_pool, st.just(3), st.integers(1, 3)),
    st.builds(caffe_average_pool, st.just(3), st.integers(1, 3)),
    st.builds(WithinChannelNorm, st.just(3), alpha=st.just(1.0), beta=st.just(0.5)),
    st.builds(nn.ReLU),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(LAYERS, max_size=4), st.integers(1, 20), st.integers(1, 20))
def test_arithmetic_agrees_with_torch(layers: list[nn.Module], height: int, width: int) -> None:
    spec = Spec(name="any", input_shape=(1, height, width), num_classes=2)
    image = torch.empty(1, 1, height, width, device="meta")
    try:
        expected = tuple(nn.Sequential(*layers).to("meta")(image).shape[1:])
    except RuntimeError:
        with pytest.raises(UsageError, match="too small"):
            map_shape(spec, layers)
    else:
        assert map_shape(spec, layers) == expected
        assert flat_size(spec, layers) == expected[0] * expected[1] * expected[2]


def test_no_layers_leave_the_image() -> None:
    spec = Spec(name="any", input_shape=(3, 4, 5), num_classes=2)
    assert map_shape(spec, []) == (3, 4, 5)


def sizes_of(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Channels, height and width that each top-level layer puts out."""
    sizes: dict[str, tuple[int, ...]] = {}
    x = torch.empty(1, *shape, device="meta")
    for name, layer in network.named_children():
        x = layer(x)
        sizes[name] = tuple(x.shape[1:])
    return sizes


def test_googlenet_as_in_table_one() -> None:
    """Szegedy et al. 2015, table 1, 'output size'."""
    table = {
        "conv1": (64, 112, 112),
        "pool1": (64, 56, 56),
        "conv2": (192, 56, 56),
        "pool2": (192, 28, 28),
        "inception_3a": (256, 28, 28),
        "inception_3b": (480, 28, 28),
        "pool3": (480, 14, 14),
        "inception_4a": (512, 14, 14),
        "inception_4b": (512, 14, 14),
        "inception_4c": (512, 14, 14),
        "inception_4d": (528, 14, 14),
        "inception_4e": (832, 14, 14),
        "pool4": (832, 7, 7),
        "inception_5a": (832, 7, 7),
        "inception_5b": (1024, 7, 7),
        "pool5": (1024, 1, 1),
        "classifier": (1000,),
    }
    shape = (3, 224, 224)
    sizes = sizes_of(on_meta("googlenet", shape, 1000), shape)
    assert {name: sizes[name] for name in table} == table


@pytest.mark.parametrize(("side", "conv1"), [(227, 55), (224, 54)])
def test_caffenet_rounds_up(side: int, conv1: int) -> None:
    sizes = sizes_of(on_meta("caffenet", (3, side, side)), (3, side, side))
    assert [sizes[name][1] for name in ("conv1", "pool1", "conv2", "pool2", "conv5", "pool5")] == [
        *(conv1, 27, 27, 13, 13, 6)
    ]


@pytest.mark.parametrize(("side", "conv1"), [(227, 56), (224, 55)])
def test_alexnet_sizes(side: int, conv1: int) -> None:
    sizes = sizes_of(on_meta("alexnet", (3, side, side)), (3, side, side))
    assert [sizes[name][1] for name in ("conv1", "pool1", "pool2", "pool5")] == [conv1, 27, 13, 6]


def test_cifar10_networks_pool_as_caffe() -> None:
    """Rounding up: 32, 16, 8, 4; rounding down would give 15, 7, 3."""
    for name in ("cifar10-quick", "cifar10-full"):
        sizes = sizes_of(on_meta(name, (3, 32, 32)), (3, 32, 32))
        assert [sizes[f"pool{i}"][1] for i in (1, 2, 3)] == [16, 8, 4]


def test_lenet5_sizes() -> None:
    """Section II.B: 28x28, 14x14, 10x10, 5x5 and single units."""
    for shape in ((1, 28, 28), (1, 32, 32)):
        sizes = sizes_of(on_meta("lenet5", shape), shape)
        found = [sizes[name] for name in ("c1", "s2", "c3", "s4", "c5")]
        assert found == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1)]
    assert "pad" not in sizes


def test_residual_stems() -> None:
    """Up to 64 on a side maps stay large (32 -> 32, 16, 8, 4); above, He et al.'s table 1."""
    small = sizes_of(on_meta("resnet50", (3, 32, 32)), (3, 32, 32))
    assert [small[f"stage{i}"] for i in (1, 2, 3, 4)] == [
        *((256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4))
    ]
    large = sizes_of(on_meta("resnet50", (3, 224, 224)), (3, 224, 224))
    assert large["conv1"] == (64, 112, 112)
    assert [large[f"stage{i}"][1] for i in (1, 2, 3, 4)] == [56, 28, 14, 7]

"""Parameter counts against published figures, and against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convoy.networks import build

PUBLISHED = [
    # examples/mnist/lenet_train_test.prototxt: 520 + 25,050 + 400,500 + 5,010.
    ("lenet", (1, 28, 28), 10, 431_080),
    # examples/cifar10: conv 2,432 + 25,632 + 51,264, then 65,600 + 650, or 10,250.
    ("cifar10-quick", (3, 32, 32), 10, 145_578),
    ("cifar10-full", (3, 32, 32), 10, 89_578),
    # github.com/atulapra/Emotion-detection, as Keras' summary() counts it.
    ("expression", (1, 48, 48), 7, 2_345_607),
    # BVLC reference CaffeNet: the size of bvlc_reference_caffenet.caffemodel.
    ("caffenet", (3, 227, 227), 1000, 60_965_224),
    ("caffenet", (3, 224, 224), 1000, 60_965_224),
    # num_params in torchvision's tables of weights.
    ("alexnet", (3, 224, 224), 1000, 61_100_840),
    ("alexnet", (3, 227, 227), 1000, 61_100_840),
    ("vgg16", (3, 224, 224), 1000, 138_357_544),
    ("resnet18", (3, 224, 224), 1000, 11_689_512),
    ("resnet50", (3, 224, 224), 1000, 25_557_032),
    ("resnet152", (3, 224, 224), 1000, 60_192_808),
    # Netscope's count for models/bvlc_googlenet/deploy.prototxt.
    ("googlenet", (3, 224, 224), 1000, 6_998_552),
]


def on_meta(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build(name, input_shape=shape, num_classes=num_classes)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("name", "shape", "num_classes", "published"), PUBLISHED)
def test_as_published(
    name: str, shape: tuple[int, int, int], num_classes: int, published: int
) -> None:
    assert count(on_meta(name, shape, num_classes)) == published


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 32, 32), (1, 8, 8)])
def test_lenet5_layer_by_layer(shape: tuple[int, int, int]) -> None:
    """LeCun et al. 1998, section II.B, gives each of these counts, and 60,000 in all."""
    network = on_meta("lenet5", shape, 10)
    counts = {name: count(layer) for name, layer in network.named_children() if count(layer)}
    classifier = counts.pop("output")
    assert counts == {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert sum(counts.values()) == 60_000
    assert classifier == 85 * 10


def test_googlenet_with_auxiliary_classifiers() -> None:
    """13,378,280 is what two auxiliary classifiers make of it (the figure usually given).

    Each averages 14x14 maps to 4x4, has 128 1x1 filters, 1,024 dense units and the classes
    (Szegedy et al. 2015, section 5), on the 512 channels of 4a and the 528 of 4d.
    """
    network = on_meta("googlenet", (3, 224, 224), 1000)
    channels = [network.get_submodule(f"inception_{place}").out_channels for place in ("4a", "4d")]
    assert channels == [512, 528]
    heads = [(c * 128 + 128) + (4 * 4 * 128 * 1024 + 1024) + (1024 * 1000 + 1000) for c in channels]
    assert count(network) + sum(heads) == 13_378_280


@pytest.mark.parametrize(("k1", "k2"), [(50, 500), (150, 800), (300, 1000), (500, 1500)])
def test_marques_in_closed_form(k1: int, k2: int) -> None:
    """32 -> 28 -> 14 -> 10 -> 5: the sizes of Marques, Falcao & Alexandre, on CIFAR-10."""
    expected = k1 * (3 * 25 + 1) + k2 * (k1 * 25 + 1) + 10 * (k2 * 5 * 5 + 1)
    assert count(on_meta(f"marques:{k1}:{k2}", (3, 32, 32), 10)) == expected


def test_chavan_in_closed_form() -> None:
    """28 -> 24 -> 12."""
    expected = 50 * (25 + 1) + 100 * (50 * 12 * 12 + 1) + 10 * (100 + 1)
    assert count(on_meta("chavan:5-50-100-10", (1, 28, 28), 10)) == expected


def test_expression_in_closed_form() -> None:
    """48 -> 46 -> 44 -> 22 -> 20 -> 10 -> 8 -> 4."""
    convolutions = 32 * (9 + 1) + 64 * (32 * 9 + 1) + 128 * (64 * 9 + 1) + 128 * (128 * 9 + 1)
    dense = 1024 * (128 * 4 * 4 + 1) + 7 * (1024 + 1)
    assert convolutions + dense == 2_345_607


def test_small_residual_networks_differ_in_the_stem_alone() -> None:
    """3x3 instead of 7x7 over three channels, 64 filters."""
    for name in ("resnet18", "resnet50"):
        large, small = on_meta(name, (3, 65, 65), 10), on_meta(name, (3, 64, 64), 10)
        assert count(large) - count(small) == 64 * 3 * (7 * 7 - 3 * 3)

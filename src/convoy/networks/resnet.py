"""Residual networks: ResNet-18, -50 and -152.

Source: K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition",
CVPR 2016 (arXiv:1512.03385), table 1: 11,689,512, 25,557,032 and 60,192,808 parameters with
1,000 classes, for images larger than 64 on both sides.

Two things are as practice, not as the paper's table, has them. A bottleneck's stride is in its
3x3 convolution (as in torchvision; counts are the same, accuracy is a little better). And
images of up to 64 on a side get the stem of section 4.2, a 3x3 convolution of stride 1 and no
pooling: the ImageNet stem would leave a CIFAR image 8x8 before the first block.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from convoy.networks.initial import he_normal
from convoy.networks.layers import in_a_row
from convoy.networks.spec import Spec

LARGEST_SMALL_SIDE = 64
"""Images with a side of at most this get the stem for small ones."""


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)); both have one shape. Source: figure 2, option B."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


def resnet18(spec: Spec) -> nn.Module:
    """8 basic blocks."""
    return _resnet(spec, (2, 2, 2, 2), _basic, expansion=1)


def resnet50(spec: Spec) -> nn.Module:
    """16 bottleneck blocks."""
    return _resnet(spec, (3, 4, 6, 3), _bottleneck, expansion=4)


def resnet152(spec: Spec) -> nn.Module:
    """50 bottleneck blocks."""
    return _resnet(spec, (3, 8, 36, 3), _bottleneck, expansion=4)


_Body = Callable[[int, int, int], nn.Sequential]
"""(input channels, width, stride) to what stands beside the shortcut."""


def _resnet(spec: Spec, depths: tuple[int, ...], body: _Body, *, expansion: int) -> nn.Module:
    """A stem, four stages of `depths` blocks (stage1.block1, ...) and a dense layer."""
    layers, channels = _stem(spec), 64
    for stage, depth in enumerate(depths, 1):
        width, blocks = 64 * 2 ** (stage - 1), {}
        for block in range(1, depth + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            shortcut = _shortcut(channels, width * expansion, stride)
            blocks[f"block{block}"] = Residual(body(channels, width, stride), shortcut)
            channels = width * expansion
        layers[f"stage{stage}"] = in_a_row(blocks)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, spec.num_classes)
    return he_normal(in_a_row(layers), last="fc")


def _stem(spec: Spec) -> dict[str, nn.Module]:
    if min(spec.sides) <= LARGEST_SMALL_SIDE:
        return {
            "conv1": _conv(spec.channels, 64, 3),
            "norm1": nn.BatchNorm2d(64),
            "relu1": nn.ReLU(),
        }
    return {
        "conv1": _conv(spec.channels, 64, 7, stride=2),
        "norm1": nn.BatchNorm2d(64),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(3, stride=2, padding=1),
    }


def _basic(channels: int, width: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions (figure 5, left)."""
    return in_a_row(
        {
            "conv1": _conv(channels, width, 3, stride),
            "norm1": nn.BatchNorm2d(width),
            "relu1": nn.ReLU(),
            "conv2": _conv(width, width, 3),
            "norm2": nn.BatchNorm2d(width),
        }
    )


def _bottleneck(channels: int, width: int, stride: int) -> nn.Sequential:
    """1x1 down to `width`, 3x3, and 1x1 up to four times that (figure 5, right)."""
    return in_a_row(
        {
            "conv1": _conv(channels, width, 1),
            "norm1": nn.BatchNorm2d(width),
            "relu1": nn.ReLU(),
            "conv2": _conv(width, width, 3, stride),
            "norm2": nn.BatchNorm2d(width),
            "relu2": nn.ReLU(),
            "conv3": _conv(width, 4 * width, 1),
            "norm3": nn.BatchNorm2d(4 * width),
        }
    )


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity, or where shapes differ a 1x1 projection (section 3.3, option B)."""
    if stride == 1 and channels == out_channels:
        return nn.Identity()
    conv = _conv(channels, out_channels, 1, stride)
    return in_a_row({"conv": conv, "norm": nn.BatchNorm2d(out_channels)})


def _conv(channels: int, filters: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias, which the batch normalisation after it would take out again."""
    return nn.Conv2d(channels, filters, kernel, stride, padding=kernel // 2, bias=False)

"""Layers that torch does not have, and how layers are put in a row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def in_a_row(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """`layers`, one after the other, under their names."""
    return nn.Sequential(OrderedDict(layers))


def caffe_max_pool(kernel: int, stride: int) -> nn.MaxPool2d:
    """Caffe's max pooling: a last window that overhangs the image still counts.

    Source: Caffe, src/caffe/layers/pooling_layer.cpp (ceil where others round down).
    """
    return nn.MaxPool2d(kernel, stride, ceil_mode=True)


def caffe_average_pool(kernel: int, stride: int) -> nn.AvgPool2d:
    """Caffe's average pooling: as its max pooling, and the mean is over what lies in the image.

    torch's ceil_mode divides by the same count. Source: as for `caffe_max_pool`.
    """
    return nn.AvgPool2d(kernel, stride, ceil_mode=True)


class WithinChannelNorm(nn.Module):
    """Local response normalisation over a square of the same channel, as Caffe computes it.

        y = x (1 + alpha mean(x²))^-beta

    where the mean is over `size` x `size` pixels around x's, pixels outside the image
    counting as 0. [N, C, H, W] to the same.

    Source: Caffe, src/caffe/layers/lrn_layer.cpp, WITHIN_CHANNEL (which ignores k). It
    differs from Krizhevsky's own (cuda-convnet, 'rnorm') in taking the mean, not the sum.
    """

    def __init__(self, size: int, *, alpha: float, beta: float) -> None:
        super().__init__()
        assert size % 2 == 1, "the square has a middle"
        self.size, self.alpha, self.beta = size, alpha, beta
        self.mean = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=True)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = 1 + self.alpha * self.mean(x * x)
        return x * scale.pow(-self.beta)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}"

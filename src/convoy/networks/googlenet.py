"""GoogLeNet as BVLC trained it: 6,998,552 parameters for 3x224x224 and 1,000 classes.

Source: C. Szegedy et al., "Going deeper with convolutions", CVPR 2015 (arXiv:1409.4842),
table 1; Caffe, models/bvlc_googlenet/train_val.prototxt. 5x5 convolutions where the table says
5x5, response normalisation, no batch normalisation.

The two auxiliary classifiers that training may add at `inception_4a` and `inception_4d` (with
them it is 13,378,280 parameters) are left out: a network here is a function from images to one
set of logits, and He's initialisation does what they were there for, which is to let gradients
reach the lower layers (section 5).

The last pooling averages whole maps, 7x7 in the paper, so that images of other sizes fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convoy.networks.initial import he_normal
from convoy.networks.layers import caffe_max_pool, in_a_row
from convoy.networks.shapes import map_shape
from convoy.networks.spec import Spec

_Widths = tuple[int, int, int, int, int, int]
"""Filters: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj (table 1's columns)."""

_INCEPTION_3: dict[str, _Widths] = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
}
_INCEPTION_4: dict[str, _Widths] = {
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
}
_INCEPTION_5: dict[str, _Widths] = {
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches over the same maps, side by side in the channels of the result.

    [N, in_channels, H, W] to [N, out_channels, H, W]. Source: figure 2 (b).
    """

    def __init__(self, in_channels: int, widths: _Widths) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, project = widths
        self.out_channels = one + three + five + project
        self.branch_1x1 = in_a_row({"conv": nn.Conv2d(in_channels, one, 1), "relu": nn.ReLU()})
        self.branch_3x3 = _reduced(in_channels, reduce3, three, 3)
        self.branch_5x5 = _reduced(in_channels, reduce5, five, 5)
        self.branch_pool = in_a_row(
            {
                "pool": nn.MaxPool2d(3, stride=1, padding=1),
                "project": nn.Conv2d(in_channels, project, 1),
                "relu": nn.ReLU(),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch_1x1, self.branch_3x3, self.branch_5x5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


def googlenet(spec: Spec) -> nn.Module:
    """Three convolutions, nine inception modules and one dense layer."""
    stem: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, 64, 7, stride=2, padding=3),
        "relu1": nn.ReLU(),
        "pool1": caffe_max_pool(3, 2),
        "norm1": nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        "conv2_reduce": nn.Conv2d(64, 64, 1),
        "relu2_reduce": nn.ReLU(),
        "conv2": nn.Conv2d(64, 192, 3, padding=1),
        "relu2": nn.ReLU(),
        "norm2": nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        "pool2": caffe_max_pool(3, 2),
    }
    pool3, pool4 = caffe_max_pool(3, 2), caffe_max_pool(3, 2)
    # Nothing else changes the maps' sides, so these say whether the image is large enough.
    map_shape(spec, [*stem.values(), pool3, pool4])
    inception_3, channels = _modules(192, _INCEPTION_3)
    inception_4, channels = _modules(channels, _INCEPTION_4)
    inception_5, channels = _modules(channels, _INCEPTION_5)
    classifier: dict[str, nn.Module] = {
        "pool5": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "drop5": nn.Dropout(0.4),
        "classifier": nn.Linear(channels, spec.num_classes),
    }
    network = in_a_row(
        stem
        | inception_3
        | {"pool3": pool3}
        | inception_4
        | {"pool4": pool4}
        | inception_5
        | classifier
    )
    return he_normal(network, last="classifier")


def _reduced(in_channels: int, reduced: int, filters: int, kernel: int) -> nn.Sequential:
    """A 1x1 convolution to fewer channels before a dear one, each rectified."""
    return in_a_row(
        {
            "reduce": nn.Conv2d(in_channels, reduced, 1),
            "relu_reduce": nn.ReLU(),
            "conv": nn.Conv2d(reduced, filters, kernel, padding=kernel // 2),
            "relu": nn.ReLU(),
        }
    )


def _modules(in_channels: int, table: dict[str, _Widths]) -> tuple[dict[str, nn.Module], int]:
    """The table's modules, and how many channels the last one puts out."""
    modules: dict[str, nn.Module] = {}
    for name, widths in table.items():
        module = Inception(in_channels, widths)
        modules[name], in_channels = module, module.out_channels
    return modules, in_channels

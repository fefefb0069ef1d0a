"""VGG-16: 138,357,544 parameters for 3x224x224 and 1,000 classes.

Source: K. Simonyan and A. Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015 (arXiv:1409.1556), table 1, configuration D.
"""

from __future__ import annotations

from torch import nn

from convoy.networks.initial import he_normal
from convoy.networks.layers import in_a_row
from convoy.networks.shapes import flat_size
from convoy.networks.spec import Spec

_FILTERS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Of the 3x3 convolutions before each pooling."""


def vgg16(spec: Spec) -> nn.Module:
    """Thirteen 3x3 convolutions in five groups (`conv1_1` to `conv5_3`) and three dense layers."""
    features: dict[str, nn.Module] = {}
    channels = spec.channels
    for group, widths in enumerate(_FILTERS, 1):
        for place, filters in enumerate(widths, 1):
            features[f"conv{group}_{place}"] = nn.Conv2d(channels, filters, 3, padding=1)
            features[f"relu{group}_{place}"] = nn.ReLU()
            channels = filters
        features[f"pool{group}"] = nn.MaxPool2d(2)
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "fc6": nn.Linear(flat_size(spec, features.values()), 4096),
        "relu6": nn.ReLU(),
        "drop6": nn.Dropout(0.5),
        "fc7": nn.Linear(4096, 4096),
        "relu7": nn.ReLU(),
        "drop7": nn.Dropout(0.5),
        "fc8": nn.Linear(4096, spec.num_classes),
    }
    return he_normal(in_a_row(features | classifier), last="fc8")

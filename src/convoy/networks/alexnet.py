"""AlexNet in one tower: 61,100,840 parameters for 3x224x224 (or 227) and 1,000 classes.

Source: A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks",
2014 (arXiv:1404.5997), in the sizes of torchvision's `alexnet`. torchvision pools any image's
maps to 6x6 before the dense layers; here `fc6` is as large as the image makes it, which is
the same for 224 and 227.
"""

from __future__ import annotations

from torch import nn

from convoy.networks.initial import he_normal
from convoy.networks.layers import in_a_row
from convoy.networks.shapes import flat_size
from convoy.networks.spec import Spec


def alexnet(spec: Spec) -> nn.Module:
    """Five convolutions and three dense layers; no groups, no normalisation."""
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, 64, 11, stride=4, padding=2),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(3, 2),
        "conv2": nn.Conv2d(64, 192, 5, padding=2),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(3, 2),
        "conv3": nn.Conv2d(192, 384, 3, padding=1),
        "relu3": nn.ReLU(),
        "conv4": nn.Conv2d(384, 256, 3, padding=1),
        "relu4": nn.ReLU(),
        "conv5": nn.Conv2d(256, 256, 3, padding=1),
        "relu5": nn.ReLU(),
        "pool5": nn.MaxPool2d(3, 2),
    }
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "drop6": nn.Dropout(0.5),
        "fc6": nn.Linear(flat_size(spec, features.values()), 4096),
        "relu6": nn.ReLU(),
        "drop7": nn.Dropout(0.5),
        "fc7": nn.Linear(4096, 4096),
        "relu7": nn.ReLU(),
        "fc8": nn.Linear(4096, spec.num_classes),
    }
    return he_normal(in_a_row(features | classifier), last="fc8")

"""A small network for facial expressions: 2,345,607 parameters for 1x48x48 and 7 classes.

Source: Atul Balaji, "Emotion detection using deep learning",
https://github.com/atulapra/Emotion-detection (src/emotions.py), trained on FER-2013; it is
widely copied and reports 63.2 % on that data set. Keras starts from Glorot's uniform weights,
this from He's (see `initial`).
"""

from __future__ import annotations

from torch import nn

from convoy.networks.initial import he_normal
from convoy.networks.layers import in_a_row
from convoy.networks.shapes import flat_size
from convoy.networks.spec import Spec


def expression(spec: Spec) -> nn.Module:
    """Four 3x3 convolutions without padding and 1,024 dense units, with dropout."""
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, 32, 3),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(32, 64, 3),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "drop2": nn.Dropout(0.25),
        "conv3": nn.Conv2d(64, 128, 3),
        "relu3": nn.ReLU(),
        "pool3": nn.MaxPool2d(2),
        "conv4": nn.Conv2d(128, 128, 3),
        "relu4": nn.ReLU(),
        "pool4": nn.MaxPool2d(2),
        "drop4": nn.Dropout(0.25),
    }
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "fc5": nn.Linear(flat_size(spec, features.values()), 1024),
        "relu5": nn.ReLU(),
        "drop5": nn.Dropout(0.5),
        "fc6": nn.Linear(1024, spec.num_classes),
    }
    return he_normal(in_a_row(features | classifier), last="fc6")

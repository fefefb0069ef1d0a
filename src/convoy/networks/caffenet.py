"""BVLC's reference CaffeNet: 60,965,224 parameters for 3x227x227 and 1,000 classes.

Source: Caffe, models/bvlc_reference_caffenet/train_val.prototxt. It is AlexNet as Krizhevsky,
Sutskever & Hinton published it (NIPS 2012: two towers, hence groups), except that it pools
before it normalises.
"""

from __future__ import annotations

from torch import nn

from convoy.networks.initial import he_normal
from convoy.networks.layers import caffe_max_pool, in_a_row
from convoy.networks.shapes import flat_size
from convoy.networks.spec import Spec


def caffenet(spec: Spec) -> nn.Module:
    """Five convolutions, three of them in two groups, and three dense layers.

    At 3x224x224, too, 6x6 maps reach `fc6`: Caffe's poolings round up.
    """
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, 96, 11, stride=4),
        "relu1": nn.ReLU(),
        "pool1": caffe_max_pool(3, 2),
        "norm1": nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        "conv2": nn.Conv2d(96, 256, 5, padding=2, groups=2),
        "relu2": nn.ReLU(),
        "pool2": caffe_max_pool(3, 2),
        "norm2": nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        "conv3": nn.Conv2d(256, 384, 3, padding=1),
        "relu3": nn.ReLU(),
        "conv4": nn.Conv2d(384, 384, 3, padding=1, groups=2),
        "relu4": nn.ReLU(),
        "conv5": nn.Conv2d(384, 256, 3, padding=1, groups=2),
        "relu5": nn.ReLU(),
        "pool5": caffe_max_pool(3, 2),
    }
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

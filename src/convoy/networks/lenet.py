"""Caffe's LeNet: 431,080 parameters for 1x28x28 and 10 classes.

Source: Caffe, examples/mnist/lenet_train_test.prototxt. Only `ip1` is rectified;
between the convolutions, max pooling alone is not linear.
"""

from __future__ import annotations

from torch import nn

from convoy.networks.initial import caffe_xavier
from convoy.networks.layers import caffe_max_pool, in_a_row
from convoy.networks.shapes import flat_size
from convoy.networks.spec import Spec


def lenet(spec: Spec) -> nn.Module:
    """Two 5x5 convolutions, each with 2x2 max pooling, and 500 dense units.

    Its own initialisation (xavier) depends on no pixel scale and is kept.
    """
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, 20, 5),
        "pool1": caffe_max_pool(2, 2),
        "conv2": nn.Conv2d(20, 50, 5),
        "pool2": caffe_max_pool(2, 2),
    }
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "ip1": nn.Linear(flat_size(spec, features.values()), 500),
        "relu1": nn.ReLU(),
        "ip2": nn.Linear(500, spec.num_classes),
    }
    return caffe_xavier(in_a_row(features | classifier))

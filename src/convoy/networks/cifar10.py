"""Caffe's two networks for CIFAR-10: quick (145,578 parameters) and full (89,578).

Source: Caffe, examples/cifar10/cifar10_{quick,full}_train_test.prototxt, after A. Krizhevsky's
cuda-convnet (layers-80sec.cfg, layers-18pct.cfg). Counts are for 3x32x32 and 10 classes.

Caffe's gaussian fillers are replaced (see `initial`). What its solver sets per layer (biases
at twice the learning rate, a weight decay 250 times as strong on full's `ip1`) belongs to the
optimizer and is not part of the network.
"""

from __future__ import annotations

from torch import nn

from convoy.networks.initial import he_normal
from convoy.networks.layers import (
    WithinChannelNorm,
    caffe_average_pool,
    caffe_max_pool,
    in_a_row,
)
from convoy.networks.shapes import flat_size
from convoy.networks.spec import Spec


def cifar10_quick(spec: Spec) -> nn.Module:
    """Three convolutions and two dense layers, with no rectifier between the dense ones."""
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, 32, 5, padding=2),
        "pool1": caffe_max_pool(3, 2),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(32, 32, 5, padding=2),
        "relu2": nn.ReLU(),
        "pool2": caffe_average_pool(3, 2),
        "conv3": nn.Conv2d(32, 64, 5, padding=2),
        "relu3": nn.ReLU(),
        "pool3": caffe_average_pool(3, 2),
    }
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "ip1": nn.Linear(flat_size(spec, features.values()), 64),
        "ip2": nn.Linear(64, spec.num_classes),
    }
    return he_normal(in_a_row(features | classifier), last="ip2", linear=("ip1",))


def cifar10_full(spec: Spec) -> nn.Module:
    """Three convolutions, the first two normalised within channels, and one dense layer."""
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, 32, 5, padding=2),
        "pool1": caffe_max_pool(3, 2),
        "relu1": nn.ReLU(),
        "norm1": WithinChannelNorm(3, alpha=5e-5, beta=0.75),
        "conv2": nn.Conv2d(32, 32, 5, padding=2),
        "relu2": nn.ReLU(),
        "pool2": caffe_average_pool(3, 2),
        "norm2": WithinChannelNorm(3, alpha=5e-5, beta=0.75),
        "conv3": nn.Conv2d(32, 64, 5, padding=2),
        "relu3": nn.ReLU(),
        "pool3": caffe_average_pool(3, 2),
    }
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "ip1": nn.Linear(flat_size(spec, features.values()), spec.num_classes),
    }
    return he_normal(in_a_row(features | classifier), last="ip1")

"""The one-convolution networks of Chavan & Kulkarni, written as they write them.

chavan:5-50-100-10    5x5 kernels, 50 filters, 100 dense units, 10 classes
"""

from __future__ import annotations

from torch import nn

from convoy.errors import UsageError
from convoy.networks.initial import he_normal
from convoy.networks.layers import in_a_row
from convoy.networks.shapes import flat_size
from convoy.networks.spec import Spec, numbers_in

FORM = "chavan:K-F-D-C"


def chavan(spec: Spec) -> nn.Module:
    """One convolution, rectified and 2x2 max-pooled, and a rectified dense layer.

    Raises:
        UsageError: the name counts other classes than the data set.
    """
    kernel, filters, dense, classes = numbers_in(
        spec,
        "chavan:N-N-N-N",
        form=f"{FORM} (kernel side, filters, dense units, classes)",
        example=f"chavan:5-50-100-{spec.num_classes}",
    )
    if classes != spec.num_classes:
        raise UsageError(
            f"network {spec.name!r} ends in {classes} classes, but {spec.num_classes} are needed; "
            f"write chavan:{kernel}-{filters}-{dense}-{spec.num_classes}"
        )
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, filters, kernel),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
    }
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "ip1": nn.Linear(flat_size(spec, features.values()), dense),
        "relu2": nn.ReLU(),
        "ip2": nn.Linear(dense, classes),
    }
    return he_normal(in_a_row(features | classifier), last="ip2")

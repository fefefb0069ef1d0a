"""The networks of Marques, Falcao & Alexandre, by their numbers of filters.

    marques:50:500        K1 = 50 filters, then K2 = 500
    marques:500:1500      the largest one they measured

Source: J. Marques, G. Falcao and L. A. Alexandre, "Distributed learning of CNNs on
heterogeneous CPU/GPU architectures", Applied Artificial Intelligence, 2018 (arXiv:1712.02546).
"""

from __future__ import annotations

from torch import nn

from convoy.networks.initial import he_normal
from convoy.networks.layers import in_a_row
from convoy.networks.shapes import flat_size
from convoy.networks.spec import Spec, numbers_in

FORM = "marques:K1:K2"


def marques(spec: Spec) -> nn.Module:
    """Two 5x5 convolutions, each rectified and 2x2 max-pooled, then one dense layer."""
    k1, k2 = numbers_in(spec, "marques:N:N", form=f"{FORM} (filters)", example="marques:50:500")
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(spec.channels, k1, 5),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(k1, k2, 5),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
    }
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "ip1": nn.Linear(flat_size(spec, features.values()), spec.num_classes),
    }
    return he_normal(in_a_row(features | classifier), last="ip1")

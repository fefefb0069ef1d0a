"""Published networks at a width that small machines can train."""

from __future__ import annotations

import torch
from torch import nn

IMAGES = (3, 120, 160)


def alexnet() -> nn.Module:
    """AlexNet (Krizhevsky et al. 2012) with half as many filters and neurons, for `IMAGES`."""
    widths = [(32, 11, 4, 2), (96, 5, 1, 2), (192, 3, 1, 1), (128, 3, 1, 1), (128, 3, 1, 1)]
    layers: list[nn.Module] = []
    channels = IMAGES[0]
    for number, (filters, kernel, stride, padding) in enumerate(widths):
        layers += [nn.Conv2d(channels, filters, kernel, stride, padding), nn.ReLU()]
        if number in (0, 1, 4):
            layers.append(nn.MaxPool2d(3, 2))
        channels = filters
    features = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        width = features(torch.zeros(1, *IMAGES)).shape[1]
    dense = [nn.Linear(width, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU()]
    return nn.Sequential(features, *dense, nn.Linear(2048, 10))

"""Layers with fewer channels: weights cut to those that are kept, in place."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from convoy.networks.maps import is_depthwise


@torch.no_grad()
def keep_filters(layer: nn.Conv2d, kept: Sequence[int]) -> None:
    """Leave `layer` the filters of these numbers, as many of each of its groups."""
    layer.out_channels = len(kept)
    _cut(layer, layer.weight.shape[0], kept)


@torch.no_grad()
def keep_inputs(layer: nn.Module, kept: Sequence[int], channels: int, *, spread: bool) -> None:
    """Leave `layer` its weights for the channels of these numbers, out of `channels`.

    Args:
        layer: one that `maps_of` names as a taker.
        kept: ascending; as many of each of the layer's groups.
        spread: multiply the weights of a layer that sums over channels by the root of what its
            fan-in was in what it is. What it puts out then has the variance that it had, and
            weights drawn with a variance in proportion to 1 / fan-in have that of the new one.
    """
    if isinstance(layer, nn.Linear):
        # Behind a flattening every channel is as many features as its map has places.
        places = layer.in_features // channels
        weight = _picked(layer.weight, _features(kept, places), dim=1)
        layer.in_features = weight.shape[1]
        _put(layer, "weight", weight * sqrt(channels / len(kept)) if spread else weight)
    elif isinstance(layer, nn.Conv2d) and not is_depthwise(layer):
        per_group, rows = channels // layer.groups, layer.out_channels // layer.groups
        parts = [
            _picked(part, [n % per_group for n in kept if n // per_group == group], dim=1)
            for group, part in enumerate(layer.weight.split(rows))
        ]
        layer.in_channels = len(kept)
        weight = torch.cat(parts)
        _put(layer, "weight", weight * sqrt(channels / len(kept)) if spread else weight)
    else:
        _keep_channels(layer, kept, channels)


def _keep_channels(layer: nn.Module, kept: Sequence[int], channels: int) -> None:
    """Of a layer that treats each channel alone."""
    count = "num_channels" if isinstance(layer, nn.GroupNorm) else "num_features"
    if isinstance(layer, nn.PReLU):
        count = "num_parameters"
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = layer.out_channels = layer.groups = len(kept)
        _cut(layer, channels, kept)
        return
    size = int(getattr(layer, count))
    features = _features(kept, size // channels)
    setattr(layer, count, len(features))
    _cut(layer, size, features)


def _cut(layer: nn.Module, size: int, kept: Sequence[int]) -> None:
    """Leave every tensor of `layer` that has `size` rows the `kept` ones."""
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    for name, tensor in own:
        if tensor.dim() and tensor.shape[0] == size:
            _put(layer, name, _picked(tensor, kept, dim=0))


def _features(kept: Sequence[int], places: int) -> list[int]:
    """The features of these channels, of which each is `places` in a row."""
    return [number * places + place for number in kept for place in range(places)]


def _picked(tensor: Tensor, numbers: Sequence[int], dim: int) -> Tensor:
    return tensor.index_select(dim, torch.tensor(numbers, device=tensor.device))


def _put(layer: nn.Module, name: str, tensor: Tensor) -> None:
    before = getattr(layer, name)
    tensor = tensor.detach().contiguous()
    if isinstance(before, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=before.requires_grad)
    setattr(layer, name, tensor)

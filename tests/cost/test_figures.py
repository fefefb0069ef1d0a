"""Devices from figures: seconds are arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from convoy import networks
from convoy.cost.figures import figured_profile, resized
from convoy.cost.layers import LayerFacts, layers_of, totals_of
from convoy.errors import ProfileError


def layers(name: str, shape: tuple[int, int, int]) -> tuple[LayerFacts, ...]:
    with torch.device("meta"):
        return layers_of(networks.build(name, input_shape=shape, num_classes=10), shape)


def test_a_node_of_one_gigaflop() -> None:
    found = layers("lenet", (1, 28, 28))
    device = figured_profile(found, 1e9)
    totals = totals_of(found)
    assert device.curve("forward")(8) == pytest.approx(8 * 2 * totals["macs"] / 1e9)
    assert device.curve("backward")(8) == pytest.approx(8 * 2 * totals["backward_macs"] / 1e9)
    assert [layer.name for layer in device.layers] == [layer.name for layer in found]
    first = device.layers[0]
    assert first.forward_s == (2 * found[0].macs / 1e9,)


def test_another_image_size_is_what_figures_would_be() -> None:
    """Where time goes by multiply-adds alone, scaling one size's gives the other's."""
    small, large = layers("googlenet", (3, 64, 64)), layers("googlenet", (3, 120, 160))
    scaled = resized(figured_profile(small, 1e9), small, large)
    direct = figured_profile(large, 1e9)
    assert scaled.forward_s == pytest.approx(direct.forward_s)
    assert scaled.backward_s == pytest.approx(direct.backward_s)
    for ours, theirs in zip(scaled.layers, direct.layers, strict=True):
        assert ours.forward_s == pytest.approx(theirs.forward_s)


def test_what_has_no_multiply_adds_goes_by_its_outputs() -> None:
    small, large = layers("googlenet", (3, 64, 64)), layers("googlenet", (3, 128, 128))
    device = figured_profile(small, 1e9)
    timed = tuple(replace(layer, forward_s=(1.0,)) for layer in device.layers)
    device = replace(device, load_s=(2.0,), update_s=3.0, average_s=5.0, layers=timed)
    scaled = resized(device, small, large)
    by_name = {layer.name: layer for layer in scaled.layers}
    pool = next(i for i, layer in enumerate(small) if not layer.macs)
    grown = large[pool].output / small[pool].output
    assert by_name[small[pool].name].forward_s == (pytest.approx(grown),)
    assert scaled.load_s == (pytest.approx(8.0),)
    assert scaled.update_s == pytest.approx(3.0)
    assert scaled.average_s == pytest.approx(5.0)


def test_another_network_is_refused() -> None:
    lenet = layers("lenet", (1, 28, 28))
    with pytest.raises(ProfileError, match="other layers"):
        resized(figured_profile(lenet, 1e9), lenet, layers("cifar10-quick", (3, 32, 32)))

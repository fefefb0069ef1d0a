"""Seconds of layers that nobody measured: from figures of hardware, or from another image size.

multiply-adds of layers, FLOP/s  ─▶ figured_profile ─▶ a device like any other
a measured device, another size  ─▶ resized         ─▶ the same device, as it would be
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from convoy.cost.layers import LayerFacts
from convoy.cost.profile import DeviceProfile, LayerProfile
from convoy.errors import ProfileError

FLOP_PER_MAC = 2
"""A multiply-add is two floating-point operations, as hardware's figures count them."""


def figured_profile(
    layers: Iterable[LayerFacts], flops: float, *, machine: str = "node"
) -> DeviceProfile:
    """A device that achieves `flops` floating-point operations a second in every layer.

    A layer takes 2 x multiply-adds x samples / flops seconds. Layers without multiply-adds, loading
    and the update take none, nor does moving bytes take any of the device: what they cost is part
    of what the device *achieves*, which is well below what its maker says it could. Its memory is
    not known (0 bytes).

    Args:
        layers: of the network, for the image size that is meant.
        flops: floating-point operations a second, above 0.
    """
    rate = flops / FLOP_PER_MAC
    found = tuple(
        LayerProfile(
            name=layer.name,
            forward_s=(layer.macs / rate,),
            backward_s=(layer.backward_macs / rate,),
        )
        for layer in _first_calls(layers)
    )
    return DeviceProfile(
        machine=machine,
        device="figures",
        hardware=f"{flops:.6g} FLOP/s",
        cores=2.0,  # one computes, and one moves bytes
        threads=1,
        memory_bytes=0,
        samples=(1,),
        load_s=(0.0,),
        forward_s=(sum(layer.forward_s[0] for layer in found),),
        backward_s=(sum(layer.backward_s[0] for layer in found),),
        update_s=0.0,
        layers=found,
    )


def resized(
    device: DeviceProfile, measured: Sequence[LayerFacts], wanted: Sequence[LayerFacts]
) -> DeviceProfile:
    """`device`, which was measured with the layers `measured`, for those of another image size.

    A layer's time goes with its multiply-adds, and with its outputs where it has none; what happens
    to whole images with their size; what happens to parameters with their number. That takes the
    efficiency of each layer to be the same at both sizes.

    Raises:
        ProfileError: the two are not the same network.
    """
    before, after = _first_calls(measured), _first_calls(wanted)
    if [layer.name for layer in before] != [layer.name for layer in after]:
        raise ProfileError(
            "the network has other layers at this image size than at the one it was measured at: "
            "measure it at this size"
        )
    names = {layer.name for layer in device.layers}
    forward = {b.name: _ratio(b.macs, a.macs, b, a) for b, a in zip(before, after, strict=True)}
    backward = {
        b.name: _ratio(b.backward_macs, a.backward_macs, b, a)
        for b, a in zip(before, after, strict=True)
    }
    layers = tuple(
        replace(
            layer,
            forward_s=_times(layer.forward_s, forward[layer.name]),
            backward_s=_times(layer.backward_s, backward[layer.name]),
        )
        for layer in device.layers
        if layer.name in forward
    )
    if names - forward.keys():
        raise ProfileError(
            f"the profile has a layer {min(names - forward.keys())!r} that the network does not"
        )
    images = after[0].input / before[0].input
    parameters = _sum(after, "parameter_bytes") / max(1, _sum(before, "parameter_bytes"))
    return replace(
        device,
        load_s=_times(device.load_s, images),
        forward_s=_like_layers(device, layers, "forward_s", _whole(before, after, "macs")),
        backward_s=_like_layers(device, layers, "backward_s", _whole(before, after, "macs")),
        update_s=device.update_s * parameters,
        average_s=device.average_s * parameters,
        accumulate_s=device.accumulate_s * parameters,
        replica_s=_times(device.replica_s, parameters),
        layers=layers,
    )


def _first_calls(layers: Iterable[LayerFacts]) -> list[LayerFacts]:
    """Layers without later calls of ones that stand there already, whose work joins theirs."""
    found: dict[str, LayerFacts] = {}
    for layer in layers:
        name = layer.name.partition("#")[0]
        if name in found:
            first = found[name]
            layer = replace(
                first,
                macs=first.macs + layer.macs,
                backward_macs=first.backward_macs + layer.backward_macs,
                output=first.output + layer.output,
            )
        found[name] = layer
    return list(found.values())


def _ratio(before: int, after: int, old: LayerFacts, new: LayerFacts) -> float:
    if before:
        return after / before
    return new.output / old.output if old.output else 1.0


def _whole(before: Sequence[LayerFacts], after: Sequence[LayerFacts], key: str) -> float:
    return _sum(after, key) / max(1, _sum(before, key))


def _sum(layers: Sequence[LayerFacts], key: str) -> int:
    return sum(int(getattr(layer, key)) for layer in layers)


def _times(seconds: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(s * factor for s in seconds)


def _like_layers(
    device: DeviceProfile, layers: Sequence[LayerProfile], key: str, otherwise: float
) -> tuple[float, ...]:
    """The whole network's times, grown as the sum of its layers' has; `otherwise` without any."""
    whole: tuple[float, ...] = getattr(device, key)
    grown = []
    for position, seconds in enumerate(whole):
        old = sum(getattr(layer, key)[position] for layer in device.layers)
        new = sum(getattr(layer, key)[position] for layer in layers)
        grown.append(seconds * (new / old if old else otherwise))
    return tuple(grown)

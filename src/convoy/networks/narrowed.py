"""Networks with fewer filters before a cut: `NAME@CUT:F`.

    cifar10-full@pool2:8              cifar10-full whose 32 maps at pool2 are 8
    marques:50:500@pool1:20           the network marques:20:500
    package.module:function@act3:8    the user's own

The convolution whose maps reach the layer CUT has F filters, and every layer that takes those
maps is cut to fit. What crosses the cut is F / all of what it was.

Source: Ichinose et al. reduce the filters of the convolution before the cut between an edge
client and the cloud, and retrain.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import lcm

from torch import nn

from convoy.errors import UnknownNameError, UsageError
from convoy.networks.maps import IMAGE, Maps, channels_made, is_depthwise, maps_of
from convoy.networks.slicing import keep_filters, keep_inputs
from convoy.networks.spec import Shape

FORM = "NAME@CUT:F"

_OFFERED = 8
"""How many layers an error offers to cut at."""


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """Which convolution of which network gets how many filters."""

    network: str
    """The full network's name."""
    cut: str
    """The dotted name of a layer."""
    filters: int

    def __str__(self) -> str:
        return f"{self.network}@{self.cut}:{self.filters}"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What there is at a layer where a network can be narrowed."""

    convolution: str
    """Whose maps reach it."""
    filters: int
    """How many that convolution has."""
    multiple: int
    """The number of filters has to be a multiple of this: the groups of all who take them."""
    takers: tuple[str, ...]
    """Layers with weights for these maps."""
    shape: tuple[int, ...]
    """Of what the layer puts out for one image."""


def parse(name: str) -> Narrowing | None:
    """The narrowing that a network's name stands for; None of a name without one.

    Raises:
        UsageError: the name has an @, and the rest is not as it should be.
    """
    if "@" not in name:
        return None
    network, _, rest = name.rpartition("@")
    found = re.fullmatch(r"([^:@\s]+):(-?\d+)", rest)
    if not network or found is None:
        raise UsageError(
            f"network {name!r} is malformed: expected {FORM}, a network, the name of one of its "
            "layers and a number of filters, for example cifar10-full@pool2:8"
        )
    return Narrowing(network=network, cut=found[1], filters=int(found[2]))


def narrowed(network: nn.Module, narrowing: Narrowing, input_shape: Shape) -> nn.Module:
    """`network`, as it was just built, with fewer filters before the cut; changed in place.

    Of what was drawn for all filters the first ones stay, and the spread of the following
    layers' weights is corrected for their new fan-in: He's variance still is He's.

    Raises:
        UsageError: it cannot be done; says what is in the way.
    """
    return _narrowed(network, narrowing, input_shape, _first, spread=True)


def narrowed_as_trained(network: nn.Module, narrowing: Narrowing, input_shape: Shape) -> nn.Module:
    """`network`, which is trained, with the filters before the cut that matter most; in place.

    Those stay whose weights have the largest sums of absolute values, unchanged and in their
    order, with the following layers' weights for their maps.

    Source: Li, Kadav, Durdanovic, Samet & Graf, "Pruning filters for efficient ConvNets", ICLR
    2017 (arXiv:1608.08710), section 3.1.

    Raises:
        UsageError: it cannot be done; says what is in the way.
    """
    return _narrowed(network, narrowing, input_shape, _largest, spread=False)


def cut_at(network: nn.Module, name: str, cut: str, input_shape: Shape) -> Cut:
    """What there is at the layer `cut` of `network`, which is called `name` in errors.

    Raises:
        UnknownNameError: it has no such layer.
        UsageError: the filters of no single convolution can be changed there; says why.
    """
    layers = dict(network.named_modules(remove_duplicate=False))
    if cut not in layers:
        raise UnknownNameError(f"layer of {name}", cut, [layer for layer in layers if layer])
    maps = maps_of(network, input_shape)
    first_name = next(n for n, module in network.named_modules() if module is layers[cut])
    why = _obstacle(maps, layers, first_name)
    if why is not None:
        possible = [n for n in layers if n in maps.makers and _obstacle(maps, layers, n) is None]
        shown = ", ".join(possible[:_OFFERED]) + (" ..." if len(possible) > _OFFERED else "")
        raise UsageError(
            f"{name} cannot be narrowed at {cut}: {why}. "
            + (f"Layers where it can be: {shown}" if possible else "There is no layer where it can")
        )
    (maker,) = maps.makers[first_name]
    convolution = layers[maker]
    assert isinstance(convolution, nn.Conv2d)
    takers = maps.takers_of(maker)
    return Cut(
        convolution=maker,
        filters=convolution.out_channels,
        multiple=lcm(convolution.groups, *(_groups(layers[taker]) for taker in takers)),
        takers=tuple(takers),
        shape=maps.shapes[first_name],
    )


def _narrowed(
    network: nn.Module,
    narrowing: Narrowing,
    input_shape: Shape,
    choose: Callable[[nn.Conv2d, int, int], list[int]],
    *,
    spread: bool,
) -> nn.Module:
    cut = cut_at(network, narrowing.network, narrowing.cut, input_shape)
    _check_filters(narrowing, cut)
    if narrowing.filters == cut.filters:
        return network
    layers = dict(network.named_modules())
    convolution = layers[cut.convolution]
    assert isinstance(convolution, nn.Conv2d)
    kept = choose(convolution, narrowing.filters, cut.multiple)
    keep_filters(convolution, kept)
    for taker in cut.takers:
        keep_inputs(layers[taker], kept, cut.filters, spread=spread)
    try:
        maps_of(network, input_shape)
    except UsageError as error:  # numbers of channels that its own code counts on
        raise UsageError(
            f"{narrowing} cannot be: with other filters in {cut.convolution}, {error}"
        ) from error
    return network


def _check_filters(narrowing: Narrowing, cut: Cut) -> None:
    filters, most = narrowing.filters, cut.filters
    if not 1 <= filters <= most:
        raise UsageError(
            f"network {str(narrowing)!r}: {cut.convolution} has {most} filters; expected a number "
            f"from 1 to {most}"
        )
    if filters % cut.multiple:
        raise UsageError(
            f"network {str(narrowing)!r}: {filters} filters cannot be divided among the groups of "
            f"{', '.join((cut.convolution, *cut.takers))}; expected a multiple of {cut.multiple}"
        )


def _obstacle(maps: Maps, layers: dict[str, nn.Module], name: str) -> str | None:
    """Why there is no convolution to be narrowed at a layer, in words; None if there is one."""
    makers = maps.makers.get(name)
    if not makers:
        return "images do not go through it"
    if len(makers) > 1:
        again = "it is called several times, and " if maps.calls[name] > 1 else ""
        return f"{again}the maps of {', '.join(sorted(makers))} meet in it"
    (maker,) = makers
    if maker == IMAGE:
        return "no convolution comes before it"
    layer = layers.get(maker)
    if not isinstance(layer, nn.Conv2d) or channels_made(layer) is None:
        return f"what it puts out is made by {maker} ({type(layer).__name__}), not a Conv2d"
    if maker in maps.obstacles:
        return f"the maps are those of {maker}, and {maps.obstacles[maker]}"
    if not maps.takers_of(maker):
        return f"no layer takes the maps of {maker}: they are what the network puts out"
    return None


def _groups(layer: nn.Module) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return layer.groups if isinstance(layer, nn.Conv2d) and not is_depthwise(layer) else 1


def _first(convolution: nn.Conv2d, filters: int, blocks: int) -> list[int]:
    """The numbers of the first filters of each of `blocks` equal blocks."""
    size = convolution.out_channels // blocks
    return [n for n in range(convolution.out_channels) if n % size < filters // blocks]


def _largest(convolution: nn.Conv2d, filters: int, blocks: int) -> list[int]:
    """The numbers, ascending, of the filters with the largest L1 norms, as many of each block."""
    norms = convolution.weight.detach().double().abs().sum((1, 2, 3)).tolist()
    size = convolution.out_channels // blocks
    kept: list[int] = []
    for first in range(0, convolution.out_channels, size):
        by_norm = sorted(range(first, first + size), key=lambda n: -norms[n])  # equal: the earlier
        kept += sorted(by_norm[: filters // blocks])
    return kept

"""How a convolution's filters are divided among devices, and which are not worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from convoy.cost.fabric import Fabric
from convoy.cost.layers import LayerSize
from convoy.cost.schedule import Compute, Phase
from convoy.cost.world import World
from convoy.errors import UsageError
from convoy.strategies.base import Problem
from convoy.strategies.shares import finish_together

WORTH_IT = 0.98
"""Divided, a convolution is to take less than this part of its time on one device."""
HEADER_BYTES = 64
"""What goes ahead of every message of the first rank."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How maps and filters travel."""

    narrow: bool = False
    """Maps as bfloat16 between ranks."""
    fuse: bool = True
    """A convolution's tail runs where its filters are."""
    resident: bool = True
    """Filters stay where they are used."""

    def map_bytes(self, own: int) -> int:
        """Bytes of an element of a map between ranks, of `own` within one."""
        return min(2, own) if self.narrow else own


@dataclass(frozen=True, kw_only=True)
class SharedLayer:
    """A convolution that several ranks compute."""

    name: str
    filters: tuple[int, ...]
    """By rank, in this order: rank 0 has the first ones, at least one."""
    tail: tuple[str, ...]
    """Layers that run with it, on the channels that each rank has."""
    work: float
    """Multiply-adds for one image; only proportions matter."""

    def part(self, rank: int) -> float:
        """The part of all filters that `rank` has."""
        return self.filters[rank] / sum(self.filters)

    def helpers(self) -> Iterator[tuple[int, float]]:
        """Ranks beside the first that have filters, and their parts."""
        for rank, filters in enumerate(self.filters):
            if rank and filters:
                yield rank, self.part(rank)


def divide(problem: Problem, terms: Terms) -> tuple[tuple[SharedLayer, ...], dict[str, str]]:
    """Each convolution's filters, so that all ranks end together.

    Returns:
        The convolutions that are divided, in order of execution; the others, and why they stay
        with the first rank. One at least is divided, and every rank has a part in one.

    Raises:
        UsageError: there is none to divide, or more devices than filters.
    """
    count = len(problem.workers)
    found = [layer for layer in problem.network.layers if layer.filters]
    if not found:
        raise UsageError(
            "this network has no convolution whose filters could be divided (an nn.Conv2d without "
            "groups that a pass goes through once). Use --strategy data or single"
        )
    most = max(layer.filters for layer in found)
    if most < count:
        raise UsageError(
            f"{count} devices cannot share the filters of this network's convolutions: the largest "
            f"has {most}. Use at most {most} devices, or --strategy data"
        )
    if count == 1:
        return (), {}
    sizes = {layer.name: layer for layer in problem.network.layers}
    divided: list[tuple[float, SharedLayer]] = []
    kept: dict[str, str] = {}
    for layer in found:
        if not terms.resident and not layer.parameters:
            kept[layer.name] = "it is not trained"
            continue
        tail = _tail(layer, sizes, terms)
        times = _times(problem, layer, tail, sizes, terms)
        filters = _finish_together(layer.filters, times)
        alone = times[0](layer.filters)
        ratio = max(time(n) for time, n in zip(times, filters, strict=True) if n) / alone
        shared = SharedLayer(name=layer.name, filters=filters, tail=tail, work=_work(layer))
        divided.append((ratio, shared))
    if not divided:
        raise UsageError("none of this network's convolutions is trained: use --resident yes")
    least = min(ratio for ratio, _ in divided)
    for ratio, shared in divided:
        if ratio >= WORTH_IT and ratio > least:
            kept[shared.name] = "to send its maps takes longer than to compute them"
    layers = [shared for _, shared in divided if shared.name not in kept]
    return tuple(_all_busy(layers, count)), kept


def _tail(layer: LayerSize, sizes: dict[str, LayerSize], terms: Terms) -> tuple[str, ...]:
    """What of the layer's tail runs with it: without parameters, where filters do not stay."""
    if not terms.fuse:
        return ()
    if terms.resident:
        return layer.tail

    def is_bare(name: str) -> bool:
        return not sizes[name].parameters and not sizes[name].batch_norm_channels

    return tuple(takewhile(is_bare, layer.tail))


def _times(
    problem: Problem,
    layer: LayerSize,
    tail: tuple[str, ...],
    sizes: dict[str, LayerSize],
    terms: Terms,
) -> list[Callable[[int], float]]:
    """By rank, seconds until so many of the layer's filters are back, forward and backward."""
    world = problem.world
    if world is None:  # nothing is known but how fast devices are

        def paced(weight: float) -> Callable[[int], float]:
            return lambda filters: filters / weight

        return [paced(worker.weight) for worker in problem.workers]
    picks = tuple(worker.index for worker in problem.workers)
    fabric = world.fabric(picks)
    width = problem.batch_size * terms.map_bytes(problem.map_bytes)
    made = sizes[tail[-1]].activations if tail else layer.activations
    filter_bytes = 0.0 if terms.resident else sum(layer.parameters) * problem.element_bytes
    return [
        _time_on(
            *(world, picks, rank, layer, tail, problem.batch_size),
            s_per_byte=_s_per_byte(fabric, rank) if rank else 0.0,
            latency_s=fabric.latency(fabric.hosts[0], fabric.hosts[rank]) if rank else 0.0,
            maps_bytes=width * layer.inputs,
            own_bytes=width * made + filter_bytes,
        )
        for rank in range(len(picks))
    ]


def _time_on(
    world: World,
    picks: tuple[int, ...],
    rank: int,
    layer: LayerSize,
    tail: tuple[str, ...],
    batch_size: int,
    *,
    s_per_byte: float,
    latency_s: float,
    maps_bytes: float,
    own_bytes: float,
) -> Callable[[int], float]:
    """One rank's: bytes there, computing, bytes back; what is not waited for costs nothing."""
    seconds = world.seconds(picks)
    device = world.devices[picks[rank]]

    def whole(phase: Phase, name: str) -> float:
        return seconds(Compute(rank=rank, phase=phase, samples=batch_size, layer=name))

    forward, backward = whole("forward", layer.name), whole("backward", layer.name)
    beside = sum(whole(phase, name) for name in tail for phase in ("forward", "backward"))
    there = 4 * latency_s + maps_bytes * s_per_byte
    back = maps_bytes * s_per_byte if layer.input_gradient else 0.0

    def time(filters: int) -> float:
        part = filters / layer.filters
        relative = device.relative(layer.name, part)
        hidden = min(back, backward * relative / 2)  # while its filters' gradient is computed
        moved = 2 * own_bytes * part * s_per_byte
        return (forward + backward) * relative + beside * part + there + back - hidden + moved

    return time


def _s_per_byte(fabric: Fabric, rank: int) -> float:
    """Of what goes between the first rank and this one, while it does so to all of them."""
    first, other = fabric.hosts[0], fabric.hosts[rank]
    far = sum(host != first for host in fabric.hosts) or 1
    slowest = 0.0
    for link in fabric.path(first, other):
        sharing = far if link[0] == "up" else 1
        slowest = max(slowest, sharing / fabric.capacity(link))
    return slowest


def _finish_together(filters: int, times: Sequence[Callable[[int], float]]) -> tuple[int, ...]:
    """Filters by rank, one at least on the first, so that the last to end ends early."""

    def past_the_first(count: int) -> float:
        return times[0](count + 1)

    first, *others = finish_together(filters - 1, [past_the_first, *times[1:]], least=0)
    return (first + 1, *others)


def _all_busy(layers: list[SharedLayer], count: int) -> list[SharedLayer]:
    """The same, with one filter of the layers with most work for whoever has none at all."""
    out = list(layers)
    for rank in range(1, count):
        if any(layer.filters[rank] for layer in out):
            continue
        wide = [i for i in range(len(out)) if sum(out[i].filters) >= count]
        if not wide:
            raise UsageError(
                f"{count} devices cannot share the filters of the convolutions that are worth "
                "dividing. Use fewer devices, or --strategy data"
            )
        at = max(wide, key=lambda i: out[i].work)
        filters = list(out[at].filters)
        filters[max(range(count), key=filters.__getitem__)] -= 1
        filters[rank] += 1
        shared = out[at]
        out[at] = SharedLayer(
            name=shared.name, filters=tuple(filters), tail=shared.tail, work=shared.work
        )
    return out


def _work(layer: LayerSize) -> float:
    return (layer.parameters[0] if layer.parameters else 1) * layer.activations / layer.filters

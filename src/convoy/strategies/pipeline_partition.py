"""Which device takes which consecutive segments of a network, so that a pipeline ends early.

    segments   s0 ┊ s1 ┊ s2 ┊ s3 ┊ s4 ┊ s5          ┊ places to cut
    stages     ── device 2 ──┊─ device 0 ─┊ dev 1

With M micro-batches the busiest stage or link (b seconds for each) decides how often one comes
out, and before the last comes out it has gone once through all of them:

    seconds of a step  =  (M - 1) b  +  the sum over stages and links

`best_partition` finds the least of it over all cuts and all orders of devices. Two dynamic
programmes over (devices used, last of them, where it ends) do so: the first finds the least b,
the second the least sum among those with no stage or link beyond a limit. The limit starts where
not even the least sum of all would make up for a larger b, and falls below what was found until
it reaches the least b.

Source: D. Narayanan et al., "PipeDream: generalized pipeline parallelism for DNN training", SOSP
2019, section 3.1, where devices are alike, so that their order does not matter, and b is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

EXACT_UP_TO = 6
"""With more devices than these, they hold stages in the order in which they are given."""

Array = NDArray[numpy.float64]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one micro-batch, there and back, on D devices and through K segments."""

    stages: Array
    """[D, K + 1, K + 1]: device d with the segments from i up to and without j."""
    one_way: Array
    """[D, D, K + 1]: the longer way of what crosses cut i, between device d and the next, e."""
    both_ways: Array
    """[D, D, K + 1]: both ways together."""
    first: Array
    """[D]: what the first stage takes besides, once a step."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A division into stages."""

    devices: tuple[int, ...]
    """By stage."""
    ends: tuple[int, ...]
    """By stage, the segment before which it ends."""
    seconds: float
    """Of a step, as above."""


def best_partition(costs: Costs, micro_batches: int, *, in_order: bool = False) -> Partition:
    """The partition with the least seconds of a step; every device has one segment at least.

    Args:
        costs: for as many segments as devices, or more.
        in_order: devices hold stages in their order.
    """
    in_order = in_order or len(costs.stages) > EXACT_UP_TO
    rounds = micro_batches - 1
    nothing = numpy.zeros_like(costs.first)
    narrow = _search(costs.stages, costs.one_way, nothing, numpy.maximum, in_order=in_order)
    least = _busiest(costs, *narrow)
    free = _search(costs.stages, costs.both_ways, costs.first, numpy.add, in_order=in_order)
    best = min((_partition(costs, rounds, *found) for found in (narrow, free)), key=_seconds)
    least_sum = _sum(costs, *free)
    busiest = numpy.inf
    while rounds and busiest > least:
        limit = min(numpy.nextafter(busiest, 0.0), (best.seconds - least_sum) / rounds)
        if limit < least:
            break
        stages = numpy.where(costs.stages <= limit, costs.stages, numpy.inf)
        links = numpy.where(costs.one_way <= limit, costs.both_ways, numpy.inf)
        found = _search(stages, links, costs.first, numpy.add, in_order=in_order)
        best = min(best, _partition(costs, rounds, *found), key=_seconds)
        busiest = _busiest(costs, *found)
    return best


_Found = tuple[tuple[int, ...], tuple[int, ...]]
"""Devices and ends, by stage."""


def _search(
    stages: Array,
    links: Array,
    first: Array,
    joined: Callable[..., Array],
    *,
    in_order: bool,
) -> _Found:
    """The stages whose seconds, joined from the first to the last, are least."""
    count, ends = len(stages), stages.shape[1]
    each = numpy.arange(ends)
    value = {0: numpy.full((count, ends), numpy.inf)}
    came: dict[tuple[int, int], tuple[NDArray[numpy.intp], NDArray[numpy.intp]]] = {}
    for used, device in _steps(count, in_order=in_order):
        now = used | 1 << device
        if now not in value:
            value[now] = numpy.full((count, ends), numpy.inf)
        if not used:
            value[now][device] = joined(stages[device][0], first[device])
            continue
        reached = joined(value[used], links[:, device])
        via = reached.argmin(0)
        total = joined(reached[via, each][:, None], stages[device])
        start = total.argmin(0)
        value[now][device] = total[start, each]
        came[now, device] = (start, via)
    used, end = (1 << count) - 1, ends - 1
    device = int(value[used][:, end].argmin())
    found = [(device, end)]
    while used != 1 << device:
        starts, via = came[used, device]
        end = int(starts[end])
        used, device = used & ~(1 << device), int(via[end])
        found.append((device, end))
    devices, stops = zip(*reversed(found), strict=True)
    return devices, stops


def _steps(count: int, *, in_order: bool) -> Iterator[tuple[int, int]]:
    """Sets of devices, as bits, and one that may come next; smaller sets first."""
    if in_order:
        for device in range(count):
            yield (1 << device) - 1, device
        return
    for used in range((1 << count) - 1):  # a set is a larger number than any part of it
        for device in range(count):
            if not used >> device & 1:
                yield used, device


def _parts(costs: Costs, devices: tuple[int, ...], ends: tuple[int, ...]) -> Iterator[float]:
    starts = (0, *ends)
    for stage, device in enumerate(devices):
        yield float(costs.stages[device, starts[stage], ends[stage]])


def _links(costs: Array, devices: tuple[int, ...], ends: tuple[int, ...]) -> Iterator[float]:
    for stage in range(len(devices) - 1):
        yield float(costs[devices[stage], devices[stage + 1], ends[stage]])


def _busiest(costs: Costs, devices: tuple[int, ...], ends: tuple[int, ...]) -> float:
    return max(*_parts(costs, devices, ends), *_links(costs.one_way, devices, ends), 0.0)


def _sum(costs: Costs, devices: tuple[int, ...], ends: tuple[int, ...]) -> float:
    moved = sum(_links(costs.both_ways, devices, ends))
    return sum(_parts(costs, devices, ends)) + moved + float(costs.first[devices[0]])


def _partition(
    costs: Costs, rounds: int, devices: tuple[int, ...], ends: tuple[int, ...]
) -> Partition:
    seconds = rounds * _busiest(costs, devices, ends) + _sum(costs, devices, ends)
    return Partition(devices=devices, ends=ends, seconds=seconds)


def _seconds(partition: Partition) -> float:
    return partition.seconds

"""Several stages on each device: a batch goes round the devices more than once.

    segments   s0 ┊ s1 ┊ s2 ┊ s3 ┊ s4 ┊ s5 ┊ s6        two stages on each of two devices:
    stages     ─ 0 ─┊── 1 ──┊──── 2 ───┊─ 3 ─           device 0 has 0 and 2, device 1 has 1 and 3

The last device waits for one stage of each other device before it has work, and not for all that
they have: with v stages on each a pipeline stands empty for a v-th of the time, and v times as much
travels. A micro-batch comes out as often as the busiest device is through with all its stages, if
devices drift apart from round to round as they like, and as often as the longest stages of all
rounds take together if they do not at all. With b halfway between, or of the busiest link if that
takes longer, t the sum over all devices and links, and M micro-batches

    seconds of a step  =  the longer of  M b + (t - b) / v  and  t + (M - 1) b / v

which is about what a step takes. The first is that of a busiest device which is idle in its first
round only, until the first micro-batch has come to it. The second holds where micro-batches are
fewer than devices, so that all wait between their rounds until one has gone through all.
`best_loop` finds the least of it over all cuts, or where those are too many begins at the best of
those places that divide the work most evenly, and moves one cut at a time; devices stay in their
order.

Source: D. Narayanan et al., "Efficient large-scale language model training on GPU clusters using
Megatron-LM", SC 2021, section 2.2, where devices and stages are alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy
from numpy.typing import NDArray

from convoy.strategies.pipeline_partition import Array, Costs, Partition

MOST_DIVISIONS = 5_000
"""More ways to cut than these are not looked at."""


def best_loop(
    costs: Costs, devices: Sequence[int], stages_each: int, micro_batches: int
) -> Partition:
    """The cuts with the least seconds of a step, as above.

    Args:
        costs: of as many segments as there are stages, or more.
        devices: in their order; the first has the first stage, and the first of each round.
        stages_each: how many each device has, two or more.

    Returns:
        An end for each stage; devices as they are given.
    """
    count = len(devices) * stages_each
    bounds = _divisions(costs.stages[devices[0]][0, 1:], count)
    found, least = bounds[0], numpy.inf
    while True:
        seconds = _seconds(costs, devices, bounds, micro_batches)
        best = int(seconds.argmin())
        if seconds[best] >= least:
            break
        found, least = bounds[best], float(seconds[best])
        bounds = _neighbours(found)
    return Partition(
        devices=tuple(devices), ends=tuple(int(end) for end in found[1:]), seconds=least
    )


def _seconds(
    costs: Costs, devices: Sequence[int], bounds: NDArray[numpy.intp], micro_batches: int
) -> Array:
    """Of each of these divisions, as above."""
    depth, count = len(devices), bounds.shape[1] - 1
    rounds = count // depth
    stages = numpy.stack(
        [costs.stages[devices[s % depth], bounds[:, s], bounds[:, s + 1]] for s in range(count)]
    ).reshape(rounds, depth, -1)
    links: dict[frozenset[int], tuple[Array, Array]] = {}
    for stage in range(count - 1):
        here, there = devices[stage % depth], devices[(stage + 1) % depth]
        busy, both = links.get(frozenset((here, there)), (0.0, 0.0))
        at = bounds[:, stage + 1]
        links[frozenset((here, there))] = (
            busy + costs.one_way[here, there, at],
            both + costs.both_ways[here, there, at],
        )
    halfway = (stages.sum(0).max(0) + stages.max(1).sum(0)) / 2
    busiest = numpy.maximum.reduce([halfway, *(busy for busy, _ in links.values())])
    through = stages.sum((0, 1)) + sum(both for _, both in links.values())
    steady = micro_batches * busiest + numpy.maximum(0.0, through - busiest) / rounds
    few = through + (micro_batches - 1) * busiest / rounds
    longer: Array = numpy.maximum(steady, few) + costs.first[devices[0]]
    return longer


def _neighbours(bounds: NDArray[numpy.intp]) -> NDArray[numpy.intp]:
    """This division, and those that differ from it in one cut."""
    found = [bounds]
    for cut in range(1, len(bounds) - 1):
        for place in range(int(bounds[cut - 1]) + 1, int(bounds[cut + 1])):
            if place != bounds[cut]:
                moved = bounds.copy()
                moved[cut] = place
                found.append(moved)
    return numpy.stack(found)


def _divisions(work: Array, count: int) -> NDArray[numpy.intp]:
    """Ways to divide segments into `count` parts: where each begins, and where the last ends.

    Args:
        work: of the first segments, by their number.
    """
    last = len(work)
    inner = range(1, last)
    several = len(inner)
    while math.comb(several, count - 1) > MOST_DIVISIONS:
        several -= 1
    even = [work[-1] * (place + 1) / (several + 1) for place in range(several)]
    nearest = {1 + int(numpy.abs(work[:-1] - goal).argmin()) for goal in even}
    rest = (place for place in inner if place not in nearest)
    kept = sorted([*nearest, *itertools.islice(rest, several - len(nearest))])
    inside = numpy.array(kept, dtype=numpy.intp)[_combinations(several, count - 1)]
    return numpy.pad(inside, ((0, 0), (1, 1)), constant_values=((0, 0), (0, last)))


@cache
def _combinations(several: int, some: int) -> NDArray[numpy.intp]:
    """The ways to take some of several, in ascending order."""
    return numpy.array(list(itertools.combinations(range(several), some)), dtype=numpy.intp)

"""What each device would take for any part of a network, and what would cross any cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from convoy.cost.cuts import Cut
from convoy.cost.layers import LayerSize, NetworkFacts
from convoy.cost.schedule import Compute, Phase
from convoy.cost.world import World
from convoy.strategies.base import Problem
from convoy.strategies.pipeline_orders import micro_batch_sizes
from convoy.strategies.pipeline_partition import Array, Costs


def costs_of(parts: Sequence[Problem], number: int) -> Costs:
    """Of a micro-batch, in pipelines side by side: the slowest in each place decides.

    Args:
        parts: each pipeline's devices and samples.
        number: of micro-batches.
    """
    costs = [
        _measured_costs(part, part.world, number) if part.world else _costs_by_weight(part)
        for part in parts
    ]
    return Costs(
        **{
            name: numpy.maximum.reduce([getattr(cost, name) for cost in costs])
            for name in ("stages", "one_way", "both_ways", "first")
        }
    )


def work_of(layer: LayerSize) -> float:
    """Multiply-adds and outputs for one image; only proportions matter."""
    return layer.macs + layer.activations


def part_of(network: NetworkFacts, layer: LayerSize) -> float:
    """Which part of all parameters a layer has."""
    return sum(layer.parameters) / max(1, network.num_parameters)


def _costs_by_weight(problem: Problem) -> Costs:
    """Where nothing is known but how fast devices are."""
    places = problem.network.cuts.places
    work = [work_of(layer) for layer in problem.network.layers]
    count = len(problem.workers)
    links = numpy.zeros((count, count, len(places) + 2))
    return Costs(
        stages=numpy.stack(
            [_segments([w / worker.weight for w in work], places) for worker in problem.workers]
        ),
        one_way=links,
        both_ways=links,
        first=numpy.zeros(count),
    )


def _measured_costs(problem: Problem, world: World, number: int) -> Costs:
    """Passes of a micro-batch, and what its maps and gradients take."""
    network, places = problem.network, problem.network.cuts.places
    samples = micro_batch_sizes(network, problem.batch_size, number)[0]
    picks = tuple(worker.index for worker in problem.workers)
    seconds, fabric = world.seconds(picks), world.fabric(picks)
    count, ends = len(picks), len(places) + 2
    payload = [samples * cut.elements * problem.map_bytes for cut in places]
    comes_back = [cut.gradient for cut in places]

    def layer_s(rank: int, layer: LayerSize) -> float:
        phases: tuple[Phase, ...] = ("forward", "backward")
        adding = Compute(rank=rank, phase="accumulate", samples=0, part=part_of(network, layer))
        return seconds(adding) * (number - 1) / number + sum(
            seconds(Compute(rank=rank, phase=phase, samples=samples, layer=layer.name))
            for phase in phases
        )

    stages = numpy.empty((count, ends, ends))
    one_way, both_ways = numpy.zeros((2, count, count, ends))
    for rank in range(count):
        moving = numpy.zeros(ends)  # the device's own time for what crosses at either end
        moving[1:-1] = [
            fabric.move_cpu_s(rank, size) * (1 + back)
            for size, back in zip(payload, comes_back, strict=True)
        ]
        times = [layer_s(rank, layer) for layer in network.layers]
        stages[rank] = _segments(times, places) + moving[:, None] + moving[None, :]
        for other in range(count):
            here, there = fabric.hosts[rank], fabric.hosts[other]
            ways = ((here, there), (there, here))
            for at, (size, back) in enumerate(zip(payload, comes_back, strict=True), 1):
                out, home = (
                    max(size / fabric.capacity(link) for link in fabric.path(*way)) for way in ways
                )
                one_way[rank, other, at] = max(out, home * back)
                delays = fabric.latency(here, there) + fabric.latency(there, here) * back
                both_ways[rank, other, at] = out + home * back + delays
    first = [
        seconds(Compute(rank=rank, phase="load", samples=problem.batch_size))
        for rank in range(count)
    ]
    return Costs(stages=stages, one_way=one_way, both_ways=both_ways, first=numpy.array(first))


def _segments(times: Sequence[float], places: Sequence[Cut]) -> Array:
    """[i, j]: the sum of layers' times between places i and j, of which the ends are two more."""
    sums = numpy.concatenate([[0.0], numpy.cumsum(times)])
    at = sums[[0, *(cut.layers for cut in places), len(times)]]
    between: Array = at[None, :] - at[:, None]
    empty = numpy.tril(numpy.ones_like(between, dtype=bool))
    return numpy.where(empty, numpy.inf, between)

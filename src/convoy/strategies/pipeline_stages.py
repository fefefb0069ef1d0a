"""Which device holds which layers of a pipeline, and into how many micro-batches a batch is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy

from convoy.cost.cuts import Cut
from convoy.cost.layers import LayerSize, NetworkFacts
from convoy.cost.schedule import Compute, Phase
from convoy.cost.world import World
from convoy.errors import UsageError
from convoy.strategies.base import Problem
from convoy.strategies.passes import layers_or_whole
from convoy.strategies.pipeline_partition import Array, Costs, Partition, best_partition

Kind = Literal["gpipe", "1f1b"]

BY_STAGE = 4
"""Micro-batches for each stage, where nothing was measured: with so many the pipeline stands empty
for little of a step (Huang et al. 2019, section 3.2)."""
MOST = 64
"""More micro-batches than these are not looked at."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive layers that one rank has: the first stage rank 0, and so on."""

    layers: tuple[str, ...]
    """By name, in order of execution."""
    work: float
    """Multiply-adds and outputs for one image; only proportions matter."""
    cut: Cut | None
    """Where the next stage begins; None after the last."""


def divide(problem: Problem, micro_batches: int | None) -> tuple[Problem, tuple[Stage, ...], int]:
    """Stages for all workers, and the number of micro-batches: as given, or the best.

    Returns:
        The problem with its workers in the order of their stages; the stages; how many
        micro-batches a full batch has.

    Raises:
        UsageError: the network cannot be cut, or not into so many stages.
    """
    count, network = len(problem.workers), problem.network
    layers, places = layers_or_whole(network), _places(network, count)
    given = micro_batches and min(micro_batches, most_micro_batches(network, problem.batch_size))
    if count == 1:
        return problem, (_stage(layers, None),), given or 1
    counts = [given] if given else _candidates(problem)
    found = [(_partition(problem, places, number), number) for number in counts]
    partition, number = min(found, key=lambda pair: pair[0].seconds)
    ordered = tuple(problem.workers[device] for device in partition.devices)
    starts = (0, *(places[end - 1].layers for end in partition.ends[:-1]))
    cuts = [*(places[end - 1] for end in partition.ends[:-1]), None]
    stages = tuple(
        _stage(layers[first : cut.layers if cut else None], cut)
        for first, cut in zip(starts, cuts, strict=True)
    )
    return replace(problem, workers=ordered), stages, number


def micro_batch_sizes(network: NetworkFacts, samples: int, micro_batches: int) -> tuple[int, ...]:
    """Samples of each micro-batch, as even as can be; fewer of them where samples do not suffice.

    A network that normalises batches gets two samples at least in each, if there are two.
    """
    number = min(micro_batches, most_micro_batches(network, samples))
    each, more = divmod(samples, number)
    return (each + 1,) * more + (each,) * (number - more)


def most_micro_batches(network: NetworkFacts, samples: int) -> int:
    """Into how many micro-batches so many samples can be cut."""
    return max(1, samples // 2 if network.batch_norm_channels else samples)


def passes(kind: Kind, stage: int, stages: int, number: int) -> Iterator[tuple[Phase, int]]:
    """What a stage computes in a step, in order: passes through it, and of which micro-batch.

    `gpipe`: all forward, then all backward. `1f1b`: as many forward as there are stages from here
    on, then one backward for each forward; it needs as many micro-batches as there are stages, and
    with fewer goes as `gpipe`. One stage alone has nothing to wait for.
    """
    ahead = stages - stage if (kind == "1f1b" and number >= stages) or stages == 1 else number
    for done in range(min(ahead, number)):
        yield "forward", done
    for done in range(number):
        yield "backward", done
        if ahead + done < number:
            yield "forward", ahead + done


def _places(network: NetworkFacts, count: int) -> tuple[Cut, ...]:
    if count > 1 and not network.cuts.places:
        raise UsageError(
            "this network cannot be cut into the stages of a pipeline: "
            f"{network.cuts.reason}. Use --strategy data, or single"
        )
    if count > len(network.cuts.places) + 1:
        most = len(network.cuts.places) + 1
        raise UsageError(
            f"{count} devices cannot each have a stage of this network: it can be cut into "
            f"{most} at most, where a single tensor of maps is alive. Use at most {most} devices, "
            "or --strategy data"
        )
    return network.cuts.places


def _stage(layers: Sequence[LayerSize], cut: Cut | None) -> Stage:
    return Stage(
        layers=tuple(layer.name for layer in layers), work=sum(map(_work, layers)), cut=cut
    )


def _work(layer: LayerSize) -> float:
    return layer.macs + layer.activations


def _candidates(problem: Problem) -> list[int]:
    """Numbers of micro-batches to look at."""
    most = min(MOST, most_micro_batches(problem.network, problem.batch_size))
    if problem.world is None:
        return [min(most, BY_STAGE * len(problem.workers))]
    return sorted({*(2**i for i in range(most.bit_length())), most})


def _partition(problem: Problem, places: Sequence[Cut], number: int) -> Partition:
    samples = micro_batch_sizes(problem.network, problem.batch_size, number)[0]
    if problem.world is None:  # whoever is there, in their order
        return best_partition(_costs_by_weight(problem, places), number, in_order=True)
    return best_partition(_measured_costs(problem, problem.world, places, samples), number)


def _costs_by_weight(problem: Problem, places: Sequence[Cut]) -> Costs:
    """Where nothing is known but how fast devices are."""
    work = [_work(layer) for layer in problem.network.layers]
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


def _measured_costs(problem: Problem, world: World, places: Sequence[Cut], samples: int) -> Costs:
    """Passes of a micro-batch of so many samples, and what its maps and gradients take."""
    picks = tuple(worker.index for worker in problem.workers)
    seconds, fabric = world.seconds(picks), world.fabric(picks)
    count, ends = len(picks), len(places) + 2
    payload = [samples * cut.elements * problem.map_bytes for cut in places]
    comes_back = [cut.gradient for cut in places]

    def layer_s(rank: int, layer: LayerSize) -> float:
        phases: tuple[Phase, ...] = ("forward", "backward")
        return sum(
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
        times = [layer_s(rank, layer) for layer in problem.network.layers]
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

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
from convoy.strategies.base import Problem, Worker
from convoy.strategies.passes import layers_or_whole
from convoy.strategies.pipeline_partition import Array, Costs, Partition, best_partition
from convoy.strategies.shares import share_of_each

Kind = Literal["gpipe", "1f1b"]

BY_STAGE = 4
"""Micro-batches for each stage, where nothing was measured: with so many the pipeline stands empty
for little of a step (Huang et al. 2019, section 3.2)."""
MOST = 64
"""More micro-batches than these are not looked at."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive layers that one rank has: of a pipeline's, the first stage the first."""

    layers: tuple[str, ...]
    """By name, in order of execution."""
    work: float
    """Multiply-adds and outputs for one image; only proportions matter."""
    cut: Cut | None
    """Where the next stage begins; None after the last."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """Pipelines side by side, cut at the same places: rank r S + s has stage s of pipeline r."""

    problem: Problem
    """With its workers in the order of their ranks."""
    stages: tuple[Stage, ...]
    """Of each pipeline, S of them."""
    shares: tuple[int, ...]
    """Samples of a full batch, by pipeline."""
    micro_batches: int
    """Of each pipeline's share."""


def divisions(
    problem: Problem, micro_batches: int | None, pipelines: int | None
) -> Iterator[Division]:
    """For every number of pipelines that all workers can form, or the one given, the best cuts.

    Args:
        micro_batches: so many; None for as many as are best.
        pipelines: at most so many, as many as can be; None for every number. Where nothing was
            measured, the least.

    Raises:
        UsageError: the network cannot be cut, or not into so many stages.
    """
    for number in _numbers(problem, pipelines):
        speeds = _speeds(problem, max(1, problem.batch_size // number))
        for teams in teams_of(problem, number, speeds):
            weights = [sum(speeds[i] for i in team) for team in teams]
            shares = share_of_each(problem.batch_size, weights)
            workers = [tuple(problem.workers[i] for i in team) for team in teams]
            yield _division(problem, micro_batches, workers, tuple(shares))
        if problem.world is None:
            return


def _division(
    problem: Problem,
    micro_batches: int | None,
    teams: Sequence[tuple[Worker, ...]],
    shares: tuple[int, ...],
) -> Division:
    network, stages_each = problem.network, len(teams[0])
    layers, places = layers_or_whole(network), network.cuts.places
    parts = [
        replace(problem, workers=team, batch_size=share)
        for team, share in zip(teams, shares, strict=True)
    ]
    fewest = min(shares)
    given = micro_batches and min(micro_batches, most_micro_batches(network, fewest))
    if stages_each == 1:
        return Division(
            problem=problem,
            stages=(_stage(layers, None),),
            shares=shares,
            micro_batches=given or 1,
        )
    counts = [given] if given else _candidates(problem, stages_each, fewest)
    found = [(_partition(parts, places, number), number) for number in counts]
    partition, number = min(found, key=lambda pair: pair[0].seconds)
    starts = (0, *(places[end - 1].layers for end in partition.ends[:-1]))
    cuts = [*(places[end - 1] for end in partition.ends[:-1]), None]
    return Division(
        problem=replace(
            problem, workers=tuple(team[place] for team in teams for place in partition.devices)
        ),
        stages=tuple(
            _stage(layers[first : cut.layers if cut else None], cut)
            for first, cut in zip(starts, cuts, strict=True)
        ),
        shares=shares,
        micro_batches=number,
    )


Teams = list[tuple[int, ...]]
"""Positions of workers, by pipeline."""


def teams_of(problem: Problem, pipelines: int, speeds: Sequence[float]) -> list[Teams]:
    """Ways to form pipelines.

    Dealt out by speed: the fastest begin a pipeline each, the next fastest join them in the reverse
    order, and so on, so that those in the same place have about the same speed, as their stages are
    the same. And by host, so that little crosses the network. Where nothing was measured, as they
    come: ranks may have their places already.
    """
    ranks, each = range(len(speeds)), len(speeds) // pipelines

    def in_a_row(order: Sequence[int]) -> Teams:
        return [tuple(order[i : i + each]) for i in ranks[::each]]

    if pipelines == 1 or problem.world is None:
        return [in_a_row(ranks)]
    order = sorted(ranks, key=lambda i: -speeds[i])
    tiers = [order[first : first + pipelines] for first in ranks[::pipelines]]
    dealt = list(zip(*(tier[::-1] if n % 2 else tier for n, tier in enumerate(tiers)), strict=True))
    devices = problem.world.devices
    hosts = [devices[worker.index].host for worker in problem.workers]
    by_host = in_a_row(sorted(ranks, key=lambda i: (hosts[i], -speeds[i])))
    return [dealt] if len(set(hosts)) == len(hosts) else [dealt, by_host]


def _speeds(problem: Problem, samples: int) -> list[float]:
    """Of each worker, relative to the others."""
    if problem.world is None:
        return [worker.weight for worker in problem.workers]
    seconds = problem.world.seconds([worker.index for worker in problem.workers])
    phases: tuple[Phase, ...] = ("forward", "backward")
    return [
        1
        / sum(
            seconds(Compute(rank=rank, phase=phase, samples=samples, layer=layer.name))
            for layer in layers_or_whole(problem.network)
            for phase in phases
        )
        for rank in range(len(problem.workers))
    ]


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


def _numbers(problem: Problem, given: int | None) -> list[int]:
    """How many pipelines side by side there can be.

    One where batches are normalised: each would normalise its own part.
    """
    count, places = len(problem.workers), problem.network.cuts.places
    if count > 1 and not places:
        raise UsageError(
            "this network cannot be cut into the stages of a pipeline: "
            f"{problem.network.cuts.reason}. Use --strategy data, or single"
        )
    most = len(places) + 1
    limit = 1 if problem.network.batch_norm_channels else problem.batch_size
    numbers = [n for n in range(1, min(count, limit + 1)) if count % n == 0] or [1]
    if given is not None:
        numbers = [max(n for n in numbers if n <= given)]
    possible = [number for number in numbers if count // number <= most]
    if not possible:
        side_by_side = f" in {numbers[0]} pipelines" if numbers[0] > 1 else ""
        raise UsageError(
            f"{count} devices{side_by_side} cannot each have a stage of this network: it can be "
            f"cut into {most} at most, where a single tensor of maps is alive. Use at most {most} "
            "devices for each pipeline, or --strategy data"
        )
    return possible


def _stage(layers: Sequence[LayerSize], cut: Cut | None) -> Stage:
    return Stage(
        layers=tuple(layer.name for layer in layers), work=sum(map(_work, layers)), cut=cut
    )


def _work(layer: LayerSize) -> float:
    return layer.macs + layer.activations


def _candidates(problem: Problem, stages: int, samples: int) -> list[int]:
    """Numbers of micro-batches to look at.

    Only one where batches are normalised: it is what one device computes.
    """
    if problem.network.batch_norm_channels:
        return [1]
    most = min(MOST, most_micro_batches(problem.network, samples))
    if problem.world is None:
        return [min(most, BY_STAGE * stages)]
    return sorted({*(2**i for i in range(most.bit_length())), most})


def _partition(parts: Sequence[Problem], places: Sequence[Cut], number: int) -> Partition:
    """Of pipelines side by side: every stage and link is as slow as the slowest in its place."""
    costs = []
    for part in parts:
        samples = micro_batch_sizes(part.network, part.batch_size, number)[0]
        if part.world is None:
            costs.append(_costs_by_weight(part, places))
        else:
            costs.append(_measured_costs(part, part.world, places, samples))
    slowest = Costs(
        **{
            name: numpy.maximum.reduce([getattr(cost, name) for cost in costs])
            for name in ("stages", "one_way", "both_ways", "first")
        }
    )
    # where nothing is known, whoever is there, in their order
    return best_partition(slowest, number, in_order=parts[0].world is None)


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

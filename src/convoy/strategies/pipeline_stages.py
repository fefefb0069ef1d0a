"""Which device holds which layers of a pipeline, and into how many micro-batches a batch is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from convoy.cost.cuts import Cut
from convoy.cost.layers import LayerSize, NetworkFacts
from convoy.cost.schedule import Compute, Phase
from convoy.errors import UsageError
from convoy.strategies.base import Problem, Worker
from convoy.strategies.passes import layers_or_whole
from convoy.strategies.pipeline_costs import costs_of, work_of
from convoy.strategies.pipeline_loops import best_loop
from convoy.strategies.pipeline_orders import (
    Kind,
    micro_batch_sizes,
    most_micro_batches,
    passes,
)
from convoy.strategies.pipeline_partition import Partition, best_partition
from convoy.strategies.shares import share_of_each

BY_STAGE = 4
"""Micro-batches for each stage, where nothing was measured: with so many the pipeline stands empty
for little of a step (Huang et al. 2019, section 3.2)."""
MOST = 64
"""More micro-batches than these are not looked at, and"""
MOST_EACH = 3
"""no more stages on each device."""
PROMISING = 3
"""Ways to cut pipelines that are looked at closely: estimates may be off by a little."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive layers that one rank has."""

    layers: tuple[str, ...]
    """By name, in order of execution."""
    work: float
    """Multiply-adds and outputs for one image; only proportions matter."""
    cut: Cut | None
    """Where the next stage begins; None after the last."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is not left to the planner; None is."""

    pipelines: int | None = None
    """At most so many, as many as can be. Where nothing was measured, None is the least."""
    stages_per_device: int | None = None
    """At most so many, as many as can be."""
    micro_batches: int | None = None


@dataclass(frozen=True, kw_only=True)
class Division:
    """Pipelines side by side, cut at the same places: rank r D + d is in place d of pipeline r."""

    problem: Problem
    """With its workers in the order of their ranks."""
    depth: int
    """D, devices of each pipeline."""
    stages: tuple[Stage, ...]
    """Of each pipeline: the device in place d has d, d + D and so on."""
    shares: tuple[int, ...]
    """Samples of a full batch, by pipeline."""
    micro_batches: int
    """Of each pipeline's share."""


def divisions(problem: Problem, asked: Asked) -> Iterator[Division]:
    """Those that seem best, for every number of pipelines that all workers can form.

    Raises:
        UsageError: the network cannot be cut, or not into so many stages.
    """
    for number in _numbers(problem, asked):
        speeds = _speeds(problem, max(1, problem.batch_size // number))
        for teams in teams_of(problem, number, speeds):
            weights = [sum(speeds[i] for i in team) for team in teams]
            shares = share_of_each(problem.batch_size, weights)
            workers = [tuple(problem.workers[i] for i in team) for team in teams]
            yield from divisions_among(problem, asked, workers, tuple(shares))
        if problem.world is None:
            return


def divisions_among(
    problem: Problem, asked: Asked, teams: Sequence[tuple[Worker, ...]], shares: tuple[int, ...]
) -> Iterator[Division]:
    """Those that seem best for these pipelines, with these samples of a step.

    Raises:
        UsageError: the network cannot be cut into so many stages.
    """
    network, depth = problem.network, len(teams[0])
    parts = [
        replace(problem, workers=team, batch_size=share)
        for team, share in zip(teams, shares, strict=True)
    ]
    fewest = min(shares)
    given = asked.micro_batches and min(asked.micro_batches, most_micro_batches(network, fewest))
    if depth == 1:
        yield Division(
            problem=problem,
            depth=1,
            stages=(_stage(layers_or_whole(network), None),),
            shares=shares,
            micro_batches=given or 1,
        )
        return
    counts = [given] if given else _candidates(problem, depth, fewest)
    found = [
        (partition, number)
        for number in counts
        for partition in _partitions(parts, asked.stages_per_device, number)
    ]
    for partition, number in sorted(found, key=lambda pair: pair[0].seconds)[:PROMISING]:
        yield Division(
            problem=replace(
                problem, workers=tuple(team[place] for team in teams for place in partition.devices)
            ),
            depth=depth,
            stages=_stages(network, partition.ends),
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


def _numbers(problem: Problem, asked: Asked) -> list[int]:
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
    if asked.pipelines is not None:
        numbers = [max(n for n in numbers if n <= asked.pipelines)]
    possible = [number for number in numbers if count // number <= most]
    if not possible:
        side_by_side = f" in {numbers[0]} pipelines" if numbers[0] > 1 else ""
        raise UsageError(
            f"{count} devices{side_by_side} cannot each have a stage of this network: it can be "
            f"cut into {most} at most, where a single tensor of maps is alive. Use at most {most} "
            "devices for each pipeline, or --strategy data"
        )
    return possible


def _stages(network: NetworkFacts, ends: Sequence[int]) -> tuple[Stage, ...]:
    """Those that end before these segments."""
    layers, places = layers_or_whole(network), network.cuts.places
    starts = (0, *(places[end - 1].layers for end in ends[:-1]))
    cuts = [*(places[end - 1] for end in ends[:-1]), None]
    return tuple(
        _stage(layers[first : cut.layers if cut else None], cut)
        for first, cut in zip(starts, cuts, strict=True)
    )


def _stage(layers: Sequence[LayerSize], cut: Cut | None) -> Stage:
    return Stage(
        layers=tuple(layer.name for layer in layers), work=sum(map(work_of, layers)), cut=cut
    )


def _candidates(problem: Problem, stages: int, samples: int) -> list[int]:
    """Numbers of micro-batches to look at.

    Only one where batches are normalised: it is what one device computes.
    """
    if problem.network.batch_norm_channels:
        return [1]
    most = min(MOST, most_micro_batches(problem.network, samples))
    if problem.world is None:
        return [min(most, BY_STAGE * stages)]
    doubled = {base * 2**i for base in (1, stages) for i in range(most.bit_length())}
    return sorted({number for number in doubled if number <= most} | {most})


def _partitions(
    parts: Sequence[Problem], stages_each: int | None, number: int
) -> Iterator[Partition]:
    """Of pipelines side by side, for so many micro-batches; several stages on each device only
    where several micro-batches are under way."""
    network, world = parts[0].network, parts[0].world
    costs = costs_of(parts, number)
    most = (len(network.cuts.places) + 1) // len(parts[0].workers)
    if stages_each is not None:
        several = [min(stages_each, most)]
    else:
        several = list(range(1, 1 + min(most, MOST_EACH if world and number > 1 else 1)))
    # where nothing is known, whoever is there, in their order
    single = best_partition(costs, number, in_order=world is None)
    orders = [single.devices] if world is None else [single.devices, single.devices[::-1]]
    for each in several:
        loops = (best_loop(costs, order, each, number) for order in orders)
        yield single if each == 1 else min(loops, key=lambda partition: partition.seconds)


def activations_by_place(
    network: NetworkFacts,
    stages: Sequence[Stage],
    depth: int,
    samples: int,
    micro_batches: int,
    kind: Kind,
) -> tuple[int, ...]:
    """What each device of a pipeline holds at most: the maps of its stages, of the micro-batches
    under way, and all that travels in a step."""
    of = {layer.name: layer.activations for layer in layers_or_whole(network)}
    maps = [sum(of[name] for name in stage.layers) for stage in stages]
    cuts = [stage.cut for stage in stages]
    sizes = micro_batch_sizes(network, samples, micro_batches)
    peaks = []
    for place in range(depth):
        held, peak = 0, 0
        for phase, stage, number in passes(kind, place, depth, len(stages) // depth, len(sizes)):
            held += maps[stage] * sizes[number] * (1 if phase == "forward" else -1)
            peak = max(peak, held)
        own = range(place, len(stages), depth)
        ends = [cuts[at] for stage in own for at in (stage - 1, stage) if at >= 0]
        moved = sum(cut.elements * (1 + cut.gradient) for cut in ends if cut)
        peaks.append(peak + samples * moved)
    return tuple(peaks)

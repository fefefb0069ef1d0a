"""What `downpour` plans: replicas of one device or of several, and the servers between them."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from convoy.cost.cuts import Cuts
from convoy.cost.simulate import simulate
from convoy.errors import UsageError
from convoy.strategies.base import Plan, Problem
from convoy.strategies.parameter_shards import num_elements
from convoy.strategies.passes import Drawing
from convoy.strategies.pipeline_drawing import draw_pipeline, seconds_by_stage
from convoy.strategies.pipeline_orders import KINDS, Kind
from convoy.strategies.pipeline_stages import Asked, Division, Stage, divisions_among, teams_of
from convoy.strategies.server import ServerLayout
from convoy.strategies.server_layout import Replicas

STEPS_EACH = 4
"""Of the slowest replica, in the stretch of time that is simulated."""
MOST_STEPS = 96
"""Of all replicas together there, unless one each is more."""
KIND: Kind = KINDS[0]
"""The order of passes in a replica of several devices."""


@dataclass(frozen=True, kw_only=True)
class DownpourPlan(Plan):
    """Replicas and shards."""

    layout: ServerLayout
    depth: int
    """Pushes that may be unanswered while a replica computes on, at first."""
    speeds: tuple[float, ...]
    """By replica: steps per second, or in proportion to them; less where a bound on staleness holds
    it back."""
    staleness: float = 0.0
    """Versions that pushes will be behind on average."""
    stages: tuple[Stage, ...] = ()
    """Of a replica of several devices, a pipeline: what each has."""
    micro_batches: int = 1
    """Of a batch there."""

    @property
    def servers(self) -> ServerLayout:
        """Where parameters are."""
        return self.layout

    @property
    def team(self) -> int:
        """Devices of each replica."""
        return self.layout.team

    @property
    def homes(self) -> tuple[int, ...]:
        """By shard: the rank on whose machine it is."""
        return self.layout.homes

    @property
    def sizes(self) -> tuple[int, ...]:
        """By shard: elements."""
        return tuple(num_elements(shard) for shard in self.layout.pieces)

    @property
    def of_replicas(self) -> tuple[float, ...]:
        """Each replica's part of all steps, as foreseen; their sum is 1."""
        total = sum(self.speeds)
        return tuple(speed / total for speed in self.speeds)

    @property
    def portions(self) -> tuple[float, ...]:
        """Each rank's part of all work, as foreseen."""
        if self.team == 1:
            return self.of_replicas
        work = [stage.work for stage in self.stages]
        return tuple(part * own / max(1e-9, sum(work)) for part in self.of_replicas for own in work)

    @property
    def divided(self) -> dict[str, tuple[int, ...]]:
        """Of replicas of several devices: 1 for a rank that has a layer."""
        places = [rank % self.team for rank in range(len(self.shares))]
        return {
            name: tuple(int(place == number) for place in places)
            for number, stage in enumerate(self.stages)
            for name in stage.layers
        }

    @property
    def settled(self) -> dict[str, float | str]:
        """How many shards there are, and how far pushes will be behind."""
        found: dict[str, float | str] = {"shards": len(self.homes), "in_flight": self.depth}
        found["expected_staleness"] = round(self.staleness, 2)
        if self.team > 1:
            found |= {"replicas": len(self.speeds), "micro_batches": self.micro_batches}
        return found

    @cached_property
    def takers(self) -> tuple[int, ...]:
        """Which replica takes which of the steps of a stretch, if each is as fast as foreseen."""
        parts = self.of_replicas
        slowest = min(parts)
        each = max(1.0, min(STEPS_EACH, MOST_STEPS * slowest))
        count = sum(max(1, round(each * part / slowest)) for part in parts)
        # Each is free again after one step of its own; the next step goes to whoever is first.
        free = [(1 / part / 2, replica) for replica, part in enumerate(parts)]
        heapq.heapify(free)
        takers = []
        for _ in range(count):
            at, replica = heapq.heappop(free)
            takers.append(replica)
            heapq.heappush(free, (at + 1 / parts[replica], replica))
        return tuple(takers)


@dataclass(frozen=True, kw_only=True)
class Teams:
    """Replicas, and how each is a pipeline if it has several devices."""

    problem: Problem
    """With its workers in the order of their ranks."""
    replicas: Replicas
    measured: bool
    """Whether speeds are steps per second, and not only in proportion to them."""
    stages: tuple[Stage, ...] = ()
    micro_batches: int = 1

    @property
    def place_of(self) -> dict[str, int]:
        """By parameter: which device of each replica has it."""
        return places_of(self.problem.network.cuts, self.stages)


def single_devices(problem: Problem) -> Teams:
    """Every device is a replica."""
    workers, size = problem.workers, problem.batch_size
    curves = [worker.seconds for worker in workers if worker.seconds is not None]
    measured = len(curves) == len(workers)
    speeds = [1 / curve(size) for curve in curves] if measured else [w.weight for w in workers]
    replicas = Replicas(workers=workers, team=1, speeds=tuple(speeds))
    return Teams(problem=problem, replicas=replicas, measured=measured)


def pipelines(problem: Problem, team: int, micro_batches: int | None) -> Iterator[Teams]:
    """Replicas of `team` devices, cut in the ways that seem best.

    What is left over when devices are dealt out, the slowest, has no part in it.

    Raises:
        UsageError: there are too few devices, or too few places to cut the network at.
    """
    workers, places = problem.workers, problem.network.cuts.places
    if len(workers) < team:
        raise UsageError(
            f"--replica-devices {team}: there are {len(workers)} devices in all. Give "
            f"--replica-devices {len(workers)} or fewer"
        )
    if len(places) + 1 < team:
        why = problem.network.cuts.reason or f"it can be cut into {len(places) + 1} stages at most"
        raise UsageError(
            f"--replica-devices {team}: this network cannot be cut into as many stages, where a "
            f"single tensor is alive: {why}. Give --replica-devices {len(places) + 1} or fewer"
        )
    number = len(workers) // team
    kept = sorted(sorted(range(len(workers)), key=lambda i: -workers[i].weight)[: number * team])
    problem = replace(problem, workers=tuple(workers[i] for i in kept))
    asked = Asked(stages_per_device=1, micro_batches=micro_batches)
    weights = [worker.weight for worker in problem.workers]
    for dealt in teams_of(problem, number, weights):
        members = [tuple(problem.workers[i] for i in positions) for positions in dealt]
        whole = (problem.batch_size,) * number
        for found in divisions_among(problem, asked, members, whole):
            replicas = Replicas(
                workers=found.problem.workers, team=team, speeds=_speeds(found, team)
            )
            yield Teams(
                problem=found.problem,
                replicas=replicas,
                measured=problem.world is not None,
                stages=found.stages,
                micro_batches=found.micro_batches,
            )


def places_of(cuts: Cuts, stages: tuple[Stage, ...]) -> dict[str, int]:
    """Of what a pass uses of the network's state, which stage uses it."""
    at = {cut: number for number, cut in enumerate(cuts.places)}
    ends = [at[stage.cut] for stage in stages if stage.cut is not None]
    return {name: bisect.bisect_left(ends, before) for name, before in cuts.users}


def _speeds(found: Division, team: int) -> tuple[float, ...]:
    """Steps per second of each pipeline alone, or in proportion to it if nothing is measured."""
    problem, workers = found.problem, found.problem.workers
    world = problem.world
    teams = [workers[first : first + team] for first in range(0, len(workers), team)]
    if world is None:
        return tuple(sum(worker.weight for worker in members) for members in teams)
    speeds = []
    for members in teams:
        picks = tuple(worker.index for worker in members)
        own = replace(problem, workers=members)
        drawing = Drawing()
        draw_pipeline(
            *(drawing, own, found.stages, found.micro_batches, KIND, range(team)),
            [()] * team,
            by_layer=False,
        )
        seconds = seconds_by_stage(world.seconds(picks), found.stages)
        speeds.append(1 / simulate(drawing.schedule(), seconds, world.fabric(picks)).step_s)
    return tuple(speeds)

"""Plays a schedule on described machines: when each operation starts and ends, and why.

    seconds of each Compute ─┐
    links, latencies        ─┼─▶ simulate(schedule) ─▶ spans of operations, records of ranks
    what a byte costs a CPU ─┘

Two kinds of resources are shared, both fairly and without loss:

- a *device* works on one Compute of its rank at a time, in the order in which they become
  ready. Moving bytes takes time of a CPU as well (gloo copies and adds them in threads of
  its own): while it does, the device is divided evenly between the two;
- *links*: what a host sends, what it receives, and what goes between two hosts each have a
  bandwidth. Flows that meet on one are held back alike (max-min fairness; Bertsekas &
  Gallager 1992, section 6.5.2). A collective is one flow over all the links that it uses,
  since its ranks move in step and the slowest link holds up all; so is an exchange.

Collectives among the same ranks run one after another, as they were issued, like those of a
process group.

    device 0  ████forward████▓▓backward▓▓▓▒▒▒▒▒▓▓▓      ░update░      ▒ shared with a
    link 0-1                         ══bucket 1══ ══bucket 2══           collective

A step's records are split into computing, waiting and communicating as those of a real run
are (`runtime/records.py`).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from convoy.cost.fabric import Fabric, Link, all_reduce_flow, exchange_flow
from convoy.cost.fair_shares import fair_rates
from convoy.cost.rank_times import RankTimes, Span, split_ranks
from convoy.cost.resources import BusyDevice, Flow
from convoy.cost.schedule import Collective, Compute, Exchange, Operation, Schedule, Transfer

__all__ = ["Played", "RankTimes", "Span", "simulate"]

_NOTHING_LEFT = 1e-12


@dataclass(frozen=True, kw_only=True)
class Played:
    """What became of a schedule."""

    step_s: float
    spans: tuple[Span, ...]
    """By index of operation."""
    ranks: tuple[RankTimes, ...]


def simulate(schedule: Schedule, seconds: Callable[[Compute], float], fabric: Fabric) -> Played:
    """Play `schedule` once.

    Args:
        seconds: what a Compute takes on its device when nothing else uses that.
        fabric: the hosts and links; its `hosts` says how many ranks there are.

    Raises:
        ValueError: operations wait for one another in a circle.
    """
    spans = _Player(schedule, seconds, fabric).play()
    return Played(
        step_s=max((span.end for span in spans), default=0.0),
        spans=spans,
        ranks=split_ranks(schedule, spans, len(fabric.hosts)),
    )


class _Player:
    """The state of one simulation. Events are (time, order, kind, payload)."""

    def __init__(
        self, schedule: Schedule, seconds: Callable[[Compute], float], fabric: Fabric
    ) -> None:
        self._schedule, self._seconds, self._fabric = schedule, seconds, fabric
        self._starts = [math.nan] * len(schedule)
        self._ends = [math.nan] * len(schedule)
        self._blockers = [0] * len(schedule)
        self._followers: list[list[int]] = [[] for _ in schedule]
        for index, operation in enumerate(schedule):
            blockers = set(operation.after)
            self._blockers[index] = len(blockers)
            for before in blockers:
                self._followers[before].append(index)
        self._devices = [BusyDevice() for _ in fabric.hosts]
        self._flows: dict[int, Flow] = {}
        self._flows_since, self._flows_version = 0.0, 0
        self._parts: dict[int, int] = {}
        """Of a transfer or collective under way: its flow and its devices' parts yet to end."""
        self._queues: dict[tuple[int, ...], deque[int]] = defaultdict(deque)
        self._events: list[tuple[float, int, str, tuple[int, int]]] = []
        self._order = itertools.count()
        self._all_reduces: dict[tuple[tuple[int, ...], int], tuple[dict[Link, float], float]] = {}
        self._now = 0.0

    def play(self) -> tuple[Span, ...]:
        """Run to the end."""
        for index, blockers in enumerate(self._blockers):
            if not blockers:
                self._ready(index)
        while self._events:
            self._now, _, kind, (subject, version) = heapq.heappop(self._events)
            if kind == "device":
                self._device_due(subject, version)
            elif kind == "flows":
                self._flows_due(version)
            else:
                self._flow_begins(subject)
        stuck = next((i for i, end in enumerate(self._ends) if math.isnan(end)), None)
        if stuck is not None:
            raise ValueError(
                f"operation {stuck} of the schedule never becomes ready: operations wait for "
                "one another in a circle"
            )
        return tuple(Span(start=a, end=b) for a, b in zip(self._starts, self._ends, strict=True))

    def _at(self, time: float, kind: str, subject: int, version: int = 0) -> None:
        heapq.heappush(self._events, (time, next(self._order), kind, (subject, version)))

    def _ready(self, index: int) -> None:
        match self._schedule[index]:
            case Compute() as compute:
                heapq.heappush(self._devices[compute.rank].waiting, index)
                self._next_compute(compute.rank)
            case Transfer(source=source, destination=destination):
                self._begin_moving(index, (source, destination))
            case Exchange(ranks=ranks):
                self._begin_moving(index, ranks)
            case Collective(ranks=ranks):
                queue = self._queues[ranks]
                queue.append(index)
                if len(queue) == 1:
                    self._begin_collective(index)

    def _finish(self, index: int) -> None:
        self._ends[index] = self._now
        operation = self._schedule[index]
        if isinstance(operation, Collective):
            queue = self._queues[operation.ranks]
            queue.popleft()
            if queue:
                self._begin_collective(queue[0])
        for follower in self._followers[index]:
            self._blockers[follower] -= 1
            if not self._blockers[follower]:
                self._ready(follower)

    # Devices

    def _next_compute(self, rank: int) -> None:
        device = self._devices[rank]
        if device.computing is None and device.waiting:
            index = heapq.heappop(device.waiting)
            operation = self._schedule[index]
            assert isinstance(operation, Compute)
            device.computing = index
            self._starts[index] = self._now
            self._work(rank, index, self._seconds(operation))

    def _work(self, rank: int, task: int, seconds: float) -> None:
        device = self._devices[rank]
        device.advance(self._now)
        device.left[task] = seconds
        self._schedule_device(rank)

    def _schedule_device(self, rank: int) -> None:
        device = self._devices[rank]
        device.version += 1
        if device.left:
            end = device.next_end()
            heapq.heappush(self._events, (end, next(self._order), "device", (rank, device.version)))

    def _device_due(self, rank: int, version: int) -> None:
        device = self._devices[rank]
        if version != device.version:
            return  # something changed since this was foreseen
        if len(device.left) == 1:  # nearly always, and hundreds of ranks make many of these
            ended, device.since = list(device.left), self._now
            device.left.clear()
        else:
            device.advance(self._now)
            least = max(min(device.left.values()), _NOTHING_LEFT)
            ended = [task for task, left in device.left.items() if left <= least]
            for task in ended:
                del device.left[task]
        computed = device.computing
        if computed in ended:
            device.computing = None
        for task in ended:
            if task == computed:
                self._finish(task)
            else:
                self._part_done(task)
        self._next_compute(rank)
        if device.version == version:  # nothing that followed has foreseen the next end
            self._schedule_device(rank)

    # Links

    def _begin_collective(self, index: int) -> None:
        operation = self._schedule[index]
        assert isinstance(operation, Collective)
        self._begin_moving(index, operation.ranks)

    def _begin_moving(self, index: int, ranks: tuple[int, ...]) -> None:
        operation = self._schedule[index]
        assert not isinstance(operation, Compute)
        self._starts[index] = self._now
        busy = {rank: s for rank, s in self._moving_s(operation, ranks) if s > 0}
        self._parts[index] = 1 + len(busy)
        self._at(self._now + self._delay(operation), "flow", index)
        for rank, seconds in busy.items():
            self._work(rank, index, seconds)

    def _moving_s(
        self, operation: Operation, ranks: tuple[int, ...]
    ) -> Iterator[tuple[int, float]]:
        """What it takes of each rank's device."""
        match operation:
            case Collective(payload_bytes=size):
                yield from ((rank, self._fabric.cpu_s(rank, size)) for rank in ranks)
            case Transfer(payload_bytes=size):
                yield from ((rank, self._fabric.move_cpu_s(rank, size)) for rank in ranks)
            case Exchange(sends=sends, receives=receives, peers=peers):
                for rank, *ways in zip(ranks, sends, receives, strict=True):
                    each = (peers * self._fabric.move_cpu_s(rank, way // peers) for way in ways)
                    yield rank, sum(each)

    def _delay(self, operation: Operation) -> float:
        fabric = self._fabric
        match operation:
            case Transfer(source=source, destination=destination):
                return fabric.latency(fabric.hosts[source], fabric.hosts[destination])
            case Collective(kind="all-reduce", ranks=ranks, payload_bytes=size):
                return fabric.overhead_s(size) + self._all_reduce(ranks, size)[1]
            case Collective(ranks=ranks, payload_bytes=size):
                root, *others = (fabric.hosts[rank] for rank in ranks)
                furthest = max((fabric.latency(root, other) for other in others), default=0.0)
                return fabric.overhead_s(size) + furthest
            case Exchange(ranks=ranks):
                return fabric.furthest(ranks)
            case _:
                return 0.0

    def _all_reduce(
        self, ranks: tuple[int, ...], payload_bytes: int
    ) -> tuple[dict[Link, float], float]:
        """As `all_reduce_flow`; the same sizes come again and again."""
        key = (ranks, payload_bytes)
        if key not in self._all_reduces:
            self._all_reduces[key] = all_reduce_flow(self._fabric, ranks, payload_bytes)
        return self._all_reduces[key]

    def _load(self, operation: Operation) -> dict[Link, float]:
        fabric = self._fabric
        load: defaultdict[Link, float] = defaultdict(float)
        match operation:
            case Transfer(source=source, destination=destination, payload_bytes=size):
                for link in fabric.path(fabric.hosts[source], fabric.hosts[destination]):
                    load[link] += size
            case Collective(kind="all-reduce", ranks=ranks, payload_bytes=size):
                return self._all_reduce(ranks, size)[0]
            case Collective(ranks=ranks, payload_bytes=size):
                root, *others = (fabric.hosts[rank] for rank in ranks)
                for other in others:
                    for link in fabric.path(root, other):
                        load[link] += size
            case Exchange(ranks=ranks, sends=sends, receives=receives):
                return exchange_flow(fabric, ranks, sends, receives)
        return load

    def _flow_begins(self, index: int) -> None:
        load = {
            link: size
            for link, size in self._load(self._schedule[index]).items()
            if size > 0 and math.isfinite(self._fabric.capacity(link))
        }
        if not load:
            self._part_done(index)
            return
        self._advance_flows()
        self._flows[index] = Flow(load)
        self._schedule_flows()

    def _advance_flows(self) -> None:
        for flow in self._flows.values():
            flow.left -= flow.rate * (self._now - self._flows_since)
        self._flows_since = self._now

    def _schedule_flows(self) -> None:
        self._flows_version += 1
        if self._flows:
            rates = fair_rates({i: f.load for i, f in self._flows.items()}, self._fabric.capacity)
            for index, rate in rates.items():
                self._flows[index].rate = rate
            first = min(max(0.0, f.left) / f.rate for f in self._flows.values())
            self._at(self._now + first, "flows", 0, self._flows_version)

    def _flows_due(self, version: int) -> None:
        if version != self._flows_version:
            return
        self._advance_flows()
        least = min(flow.left for flow in self._flows.values())
        ended = [i for i, f in self._flows.items() if f.left <= max(least, _NOTHING_LEFT)]
        for index in ended:
            del self._flows[index]
        self._schedule_flows()
        for index in ended:
            self._part_done(index)

    def _part_done(self, index: int) -> None:
        self._parts[index] -= 1
        if not self._parts[index]:
            self._finish(index)

"""The hosts that ranks are on, the links between them, and what an all-reduce puts on those."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from convoy.cost.curve import Curve

AllReduce = Literal["ring", "halving-doubling", "hierarchical"]
Link = tuple[str, int] | tuple[str, int, int]
"""("up", host), ("down", host), ("within", host) or ("between", host, host)."""


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """The hosts that ranks are on and what joins them. Bandwidths are in bytes/s."""

    hosts: tuple[int, ...]
    """The host of each rank; ranks on one host share its links."""
    up: Mapping[int, float]
    """What each host can send."""
    down: Mapping[int, float]
    """What each host can receive."""
    between: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """Pairs (from, to) with a bandwidth of their own below the hosts'."""
    within: float = math.inf
    """Between ranks of one host."""
    latency_s: float = 0.0
    """One way, between any two hosts without one of their own."""
    latencies: Mapping[tuple[int, int], float] = field(default_factory=dict)
    all_reduce: AllReduce = "ring"
    floor_s: float = 0.0
    """What any collective takes however small it is."""
    cpu_s_per_byte: tuple[float, ...] = ()
    """Seconds of each rank's device that a byte of a collective's payload costs; none: 0."""
    overhead: Callable[[float], float] | None = None
    """Seconds, by payload bytes, that a collective takes besides; where it was measured, in place
    of `floor_s`."""
    cpu: tuple[Curve, ...] = ()
    """Seconds of each rank's device, by payload bytes; in place of `cpu_s_per_byte`."""
    move_cpu: tuple[Curve, ...] = ()
    """Seconds of each rank's device for a transfer from or to it, by payload bytes; none: 0."""

    def cpu_s(self, rank: int, payload_bytes: int) -> float:
        """Seconds of `rank`'s device that a collective of this size costs."""
        if self.cpu:
            return self.cpu[rank](payload_bytes)
        return self.cpu_s_per_byte[rank] * payload_bytes if self.cpu_s_per_byte else 0.0

    def move_cpu_s(self, rank: int, payload_bytes: int) -> float:
        """Seconds of `rank`'s device that sending or receiving so much costs."""
        return self.move_cpu[rank](payload_bytes) if self.move_cpu else 0.0

    def overhead_s(self, payload_bytes: int) -> float:
        """Seconds that a collective of this size takes besides latencies and its way."""
        return self.overhead(payload_bytes) if self.overhead else self.floor_s

    def latency(self, source: int, destination: int) -> float:
        """Seconds from one host to another."""
        if source == destination:
            return 0.0
        return self.latencies.get((source, destination), self.latency_s)

    def furthest(self, ranks: Sequence[int]) -> float:
        """The longest latency between any two of `ranks`."""
        hosts = {self.hosts[rank] for rank in ranks}
        if len(hosts) == 1 or not self.latencies:
            return self.latency_s if len(hosts) > 1 else 0.0
        return max(self.latency(a, b) for a in hosts for b in hosts)

    def path(self, source: int, destination: int) -> list[Link]:
        """The links from one host to another."""
        if source == destination:
            return [("within", source)]
        links: list[Link] = [("up", source), ("down", destination)]
        if (source, destination) in self.between:
            links.append(("between", source, destination))
        return links

    def capacity(self, link: Link) -> float:
        """Bytes/s of a link."""
        match link:
            case ("up", int(host)):
                return self.up[host]
            case ("down", int(host)):
                return self.down[host]
            case ("between", int(source), int(destination)):
                return self.between[source, destination]
            case _:
                return self.within


def all_reduce_flow(
    fabric: Fabric, ranks: tuple[int, ...], payload_bytes: int
) -> tuple[dict[Link, float], float]:
    """What an all-reduce puts on each link, in bytes, and the latencies in its way, in seconds.

    ring                2 (n - 1) rounds of B / n bytes to the next rank (Patarasuk & Yuan 2009).
    halving-doubling    2 log2 n rounds of B/2, B/4, ... and back with ever more distant ranks;
                        where n is no power of two, the ranks over it first hand their B to a
                        partner and later get it back (Thakur et al. 2005, section 4).
    hierarchical        ranks of a host reduce to one of them, these run a ring, and hand the
                        sum back to their hosts' ranks.
    """
    hosts = [fabric.hosts[rank] for rank in ranks]
    load: defaultdict[Link, float] = defaultdict(float)
    delay = 0.0

    def send(source: int, destination: int, size: float) -> None:
        for link in fabric.path(source, destination):
            load[link] += size

    if fabric.all_reduce == "hierarchical":
        members: dict[int, int] = {}
        for host in hosts:
            members[host] = members.get(host, 0) + 1
        for host, count in members.items():  # to the host's first rank, and back
            send(host, host, 2 * (count - 1) * payload_bytes)
        hosts = list(members)
    n = len(hosts)
    if n == 1:
        return dict(load), delay
    if fabric.all_reduce == "halving-doubling":
        rounds = n.bit_length() - 1
        core = 2**rounds
        for extra in range(core, n):
            for a, b in ((extra, extra - core), (extra - core, extra)):
                send(hosts[a], hosts[b], payload_bytes)
        if n > core:
            delay += 2 * max(fabric.latency(hosts[e], hosts[e - core]) for e in range(core, n))
        for distance_bit in range(rounds):
            size = payload_bytes / 2 ** (distance_bit + 1)
            pairs = [(i, i ^ (1 << distance_bit)) for i in range(core)]
            for i, partner in pairs:
                send(hosts[i], hosts[partner], 2 * size)  # halving, and later doubling
            delay += 2 * max(fabric.latency(hosts[i], hosts[j]) for i, j in pairs)
        return dict(load), delay
    neighbours = [(hosts[i], hosts[(i + 1) % n]) for i in range(n)]
    for source, destination in neighbours:
        send(source, destination, 2 * (n - 1) / n * payload_bytes)
    delay += 2 * (n - 1) * max(fabric.latency(a, b) for a, b in neighbours)
    return dict(load), delay


def exchange_flow(
    fabric: Fabric, ranks: Sequence[int], sends: Sequence[int], receives: Sequence[int]
) -> dict[Link, float]:
    """What an exchange puts on each link, in bytes.

    Where several ranks share a host, as much of what they send stays there as there are of the
    others on it, which is so if all send everyone alike.
    """
    sizes = Counter(fabric.hosts[rank] for rank in ranks)
    others = len(ranks) - 1
    load: defaultdict[Link, float] = defaultdict(float)
    for rank, out, back in zip(ranks, sends, receives, strict=True):
        host = fabric.hosts[rank]
        near = (sizes[host] - 1) / others
        load["within", host] += near * out
        load["up", host] += (1 - near) * out
        load["down", host] += (1 - near) * back
        for other in sizes if fabric.between else ():
            if (host, other) in fabric.between:
                load["between", host, other] += sizes[other] / others * out
    return dict(load)

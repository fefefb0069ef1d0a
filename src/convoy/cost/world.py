"""The devices of a cluster with their measured costs, and what joins them.

    profile (measured)  ──┐
                          ├─▶ World ─▶ seconds of a Compute, Fabric ─▶ simulate
    cluster (described) ──┘

A machine that is `like` another has its figures, its `speed` times as fast. Links that were
measured are as measured; others are as the cluster file says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from convoy.cluster import Cluster
from convoy.cost.curve import Curve
from convoy.cost.device import Device
from convoy.cost.fabric import AllReduce, Fabric, all_reduce_flow
from convoy.cost.overhead import Overhead
from convoy.cost.profile import AllReduceProfile, Profile
from convoy.cost.schedule import Compute
from convoy.errors import ProfileError

__all__ = ["Device", "Luck", "Overhead", "World", "with_way", "world_of"]

TRANSFER_CPU_S_PER_BYTE = 1e-9
"""Where no all-reduce was measured: about what a kernel takes to copy and to add."""


class Luck:
    """Factors by which ranks' steps turn out slower or faster.

    Of each rank, all deciles come in a random order before any comes again: few draws then have
    the mean that many have. Factors are relative to that mean.
    """

    def __init__(self, variations: Sequence[Sequence[float]], rng: random.Random) -> None:
        self._variations = [[v / (sum(of) / len(of)) for v in of] for of in variations]
        self._rng = rng
        self._decks: list[list[float]] = [[] for _ in variations]

    def next(self, rank: int) -> float:
        """The factor of `rank`'s next step."""
        deck = self._decks[rank]
        if not deck:
            deck.extend(self._variations[rank])
            self._rng.shuffle(deck)
        return deck.pop()


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that could take part."""

    devices: tuple[Device, ...]
    bandwidths: dict[tuple[int, int], float]
    """Bytes/s from one machine to another, or within one."""
    latencies: dict[tuple[int, int], float]
    """Seconds, one way."""
    all_reduce: AllReduceProfile | None = None
    all_reduce_kind: AllReduce = "ring"
    num_measured: int = 1
    """Devices that took part in the measured all-reduces, and that worked at once."""
    overhead: Overhead | None = None
    """Of the measured all-reduces."""

    def fabric(self, picks: Sequence[int]) -> Fabric:
        """Hosts and links of the picked devices."""
        hosts = tuple(self.devices[pick].host for pick in picks)
        used = sorted(set(hosts))
        between: dict[tuple[int, int], float] = {}
        latencies: dict[tuple[int, int], float] = {}
        for a in used:
            for b in used:
                if a != b:
                    between[a, b] = self.bandwidths[a, b]
                    latencies[a, b] = self.latencies[a, b]
        up = {a: max((w for (s, _), w in between.items() if s == a), default=1.0) for a in used}
        down = {a: max((w for (_, d), w in between.items() if d == a), default=1.0) for a in used}
        slower = {p: w for p, w in between.items() if w < min(up[p[0]], down[p[1]])}
        inside = [self.bandwidths[a, a] for a in used if (a, a) in self.bandwidths]
        count = len(picks)
        return Fabric(
            hosts=hosts,
            up=up,
            down=down,
            between=slower,
            within=min(inside, default=float("inf")),
            latencies=latencies,
            all_reduce=self.all_reduce_kind,
            overhead=self._overhead(count),
            cpu=tuple(self.collective_cpu(pick, count) for pick in picks),
            # A ring of two sends a payload, receives one and adds: a transfer is about half of it.
            move_cpu=tuple(
                self.collective_cpu(pick, 2).scaled(0.5 if count > 1 else 0.0) for pick in picks
            ),
        )

    def at(self, bandwidth: float) -> World:
        """The world with all links between machines at `bandwidth`, in bytes/s."""
        return replace(
            self,
            bandwidths={
                (a, b): w if a == b else bandwidth for (a, b), w in self.bandwidths.items()
            },
        )

    def shortage(self, picks: Sequence[int], needed: Sequence[int]) -> str:
        """Where the picked devices' memory does not suffice for so many bytes each; '' if it does.

        CPU devices share their machine's memory. One of 0 bytes is not known, and suffices.
        """
        on_host: dict[int, int] = {}
        for pick, size in zip(picks, needed, strict=True):
            device = self.devices[pick]
            if device.device == "cpu":  # every GPU has a memory of its own
                on_host[device.host] = on_host.get(device.host, 0) + size
        for pick, size in zip(picks, needed, strict=True):
            device = self.devices[pick]
            has = device.profile.memory_bytes
            wants = on_host[device.host] if device.device == "cpu" else size
            if 0 < has < wants:
                return (
                    f"{device.machine} ({device.device}) has {has / 2**30:.1f} GiB of memory, and "
                    f"about {wants / 2**30:.1f} GiB are needed there. Try a smaller --batch-size"
                )
        return ""

    def select(self, measured_as: Sequence[int]) -> World:
        """The world with these of the profile's devices only, in this order."""
        by_position = {device.measured_as: device for device in self.devices}
        return replace(self, devices=tuple(by_position[i] for i in measured_as))

    def luck(self, picks: Sequence[int], seed: int) -> Luck:
        """How steps of the picked devices may turn out, the same for the same seed."""
        return Luck([self.devices[pick].profile.variation for pick in picks], random.Random(seed))

    def seconds(self, picks: Sequence[int], luck: Luck | None = None) -> Callable[[Compute], float]:
        """What a Compute takes on the picked devices; with `luck`, as it may turn out.

        A device's whole step is faster or slower by one factor, one of its measured deciles.
        """
        devices = [self.devices[pick] for pick in picks]
        ease = [self._ease(pick, len(picks)) for pick in picks]
        drawn: dict[tuple[int, int], float] = {}

        def of(compute: Compute) -> float:
            seconds = devices[compute.rank].seconds(compute) * ease[compute.rank]
            if luck is None:
                return seconds
            key = (compute.rank, compute.step)
            if key not in drawn:
                drawn[key] = luck.next(compute.rank)
            return seconds * drawn[key]

        return of

    def step_curve(self, pick: int, count: int, payload_bytes: int = 0) -> Curve:
        """A step of one device among `count`, exchanging gradients of that size, by samples."""
        device = self.devices[pick]
        curve = device.whole
        if payload_bytes:
            sums = zip(curve.seconds, device.replica.seconds, strict=True)
            curve = Curve(curve.samples, tuple(map(sum, sums)))
            curve = curve.plus(self.collective_cpu(pick, count)(payload_bytes))
        return curve.scaled(self._ease(pick, count))

    def _ease(self, pick: int, count: int) -> float:
        """Of the measured time, what it takes when only `count` devices work."""
        alone = self.devices[pick].profile.alone
        if self.num_measured == 1 or count >= self.num_measured:
            return 1.0
        return alone + (1 - alone) * (count - 1) / (self.num_measured - 1)

    def _overhead(self, count: int) -> Overhead | None:
        """As `overhead`, in a ring of `count`."""
        if self.overhead is None or count < 2:
            return None
        return replace(self.overhead, count=count, rounds=2 * (count - 1))

    def collective_cpu(self, pick: int, count: int) -> Curve:
        """Seconds of a device that a collective among `count` costs, by payload bytes.

        A device with a core to spare lets that one move the bytes. In a ring of n each rank moves
        2 (n - 1) / n of the payload.
        """
        device = self.devices[pick]
        profile = device.profile
        neighbours = [d.profile.threads for d in self.devices if d.host == device.host]
        spare = profile.cores - sum(neighbours) >= 1 or profile.device.startswith("cuda")
        if count < 2 or spare:
            return Curve((1,), (0.0,))
        own_cores = min(1.0, profile.cores / len(neighbours))
        part = (count - 1) / count / (own_cores * device.speed)
        measured = self.all_reduce
        if self.num_measured == 1 or measured is None or device.measured_as >= self.num_measured:
            return Curve((1, 2**30), (0.0, 2**30 * TRANSFER_CPU_S_PER_BYTE)).scaled(2 * part)
        n = self.num_measured
        of_rank = Curve(measured.payload_bytes, measured.cpu_s[device.measured_as])
        return of_rank.scaled(part * n / (n - 1))


def world_of(
    profile: Profile, cluster: Cluster | None = None, *, all_reduce: AllReduce = "ring"
) -> World:
    """The measured devices; with a `cluster`, those of its machines, hypothetical ones too.

    Raises:
        ProfileError: a machine of the cluster, or the one it is like, was not measured.
    """
    devices: list[Device] = []
    names: list[str] = []
    if cluster is None:
        names = list(dict.fromkeys(d.machine for d in profile.devices))
        stands_for = {name: (name, 1.0) for name in names}
    else:
        names = [machine.name for machine in cluster.machines]
        stands_for = {}
        for name in names:
            reference, speed = cluster.reference(name)
            stands_for[name] = (reference.name, speed)
    for host, name in enumerate(names):
        like, speed = stands_for[name]
        found = [(i, d) for i, d in enumerate(profile.devices) if d.machine == like]
        if not found:
            known = ", ".join(dict.fromkeys(d.machine for d in profile.devices))
            raise ProfileError(
                f"{name} has no figures: the profile has none of {like}, only of {known}. "
                "Measure it: convoy measure"
            )
        devices += [
            Device(
                machine=name,
                device=d.device,
                host=host,
                profile=d,
                speed=speed,
                measured_as=i,
            )
            for i, d in found
        ]
    bandwidths, latencies = _links(profile, cluster, names, stands_for)
    return World(
        devices=tuple(devices),
        bandwidths=bandwidths,
        latencies=latencies,
        all_reduce=profile.all_reduce,
        all_reduce_kind=all_reduce,
        num_measured=_num_measured(profile),
        overhead=_overhead(profile),
    )


def _num_measured(profile: Profile) -> int:
    took_part = len(profile.all_reduce.cpu_s) if profile.all_reduce else 1
    return max(1, min(took_part, len(profile.devices)))


def _links(
    profile: Profile,
    cluster: Cluster | None,
    names: Sequence[str],
    stands_for: dict[str, tuple[str, float]],
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    measured = {frozenset(link.between): link for link in profile.links}
    bandwidths: dict[tuple[int, int], float] = {}
    latencies: dict[tuple[int, int], float] = {}
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            link = measured.get(frozenset((a, b)))
            if link is None and i == j:
                link = measured.get(frozenset((stands_for[a][0],)))
            if link is not None:
                bandwidths[i, j], latencies[i, j] = link.bandwidth_bytes_s, link.latency_s
            elif i != j:
                if cluster is None:
                    raise ProfileError(
                        f"the profile has no link between {a} and {b}: measure them together, or "
                        "describe it in a cluster file"
                    )
                described = cluster.link(a, b)
                bandwidths[i, j] = described.bandwidth_bit_s / 8
                latencies[i, j] = described.latency_s
    return bandwidths, latencies


def with_way(profile: Profile) -> Profile:
    """The profile with what of its all-reduces' time was their bytes' way over its links.

    Whoever changes a link afterwards changes what its bytes take, and not what was beside it.
    """
    measured, count = profile.all_reduce, _num_measured(profile)
    if measured is None or count == 1:
        return profile
    devices = profile.devices[:count]
    names = list(dict.fromkeys(device.machine for device in devices))
    bandwidths, latencies = _links(profile, None, names, {name: (name, 1.0) for name in names})
    measured_on = World(
        devices=tuple(
            Device(machine=d.machine, device=d.device, host=names.index(d.machine), profile=d)
            for d in devices
        ),
        bandwidths=bandwidths,
        latencies=latencies,
    )
    fabric = measured_on.fabric(range(count))
    load, delay = all_reduce_flow(fabric, tuple(range(count)), 1)
    way = max((part / fabric.capacity(link) for link, part in load.items()), default=0.0)
    return replace(profile, all_reduce=replace(measured, delay_s=delay, s_per_byte=way))


def _overhead(profile: Profile) -> Overhead | None:
    """What the measured all-reduces took more than their bytes' way over the links then."""
    count = _num_measured(profile)
    if profile.all_reduce is None or count == 1:
        return None
    if profile.all_reduce.s_per_byte is None:  # nobody has said: as the links are now
        profile = with_way(profile)
    measured = profile.all_reduce
    assert measured is not None
    assert measured.s_per_byte is not None
    return Overhead(
        measured=Curve(measured.payload_bytes, measured.seconds),
        delay_s=measured.delay_s,
        s_per_byte=measured.s_per_byte,
        among=count,
        count=count,
        rounds=2 * (count - 1),
    )

"""What a cluster is: frozen descriptions that cannot be built wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from convoy.errors import ClusterError, describe_unknown


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine; hypothetical when it is described only by its likeness to another."""

    name: str
    """Unique in its cluster; on a real machine, Ray's node name."""
    cpus: float = 1.0
    """Cores that a worker may use; emulated, the CPU quota."""
    gpus: int = 0
    """CUDA devices that workers may use."""
    address: str | None = None
    """IP address or host name; None leaves finding the machine to Ray."""
    like: str | None = None
    """Name of the machine whose measured profile stands for this one."""
    speed: float = 1.0
    """How many times as fast as the machine named by `like`."""
    flops: float | None = None
    """Floating-point operations a second that each of its devices achieves in training."""
    within_bit_s: float | None = None
    """Bits per second between devices of this machine."""

    def __post_init__(self) -> None:
        for key, text in (("name", self.name), ("address", self.address), ("like", self.like)):
            if text is not None and not (text and text.isprintable() and text == text.strip()):
                fault(key, text, "printable characters, with no space at either end")
        for key, number in (("cpus", self.cpus), ("speed", self.speed)):
            if not (math.isfinite(number) and number > 0):
                fault(key, number, "a finite number above 0")
        for key, figure in (("flops", self.flops), ("within", self.within_bit_s)):
            if figure is not None and not (math.isfinite(figure) and figure > 0):
                fault(key, figure, "a finite number above 0")
        if self.gpus < 0:
            fault("gpus", self.gpus, "a whole number, 0 or more")
        if self.speed != 1 and self.like is None:
            fault("speed", self.speed, "key 'like' beside it, naming the machine it is relative to")

    @property
    def hypothetical(self) -> bool:
        """Whether this machine is planned for without being there."""
        return self.like is not None


@dataclass(frozen=True, kw_only=True)
class Network:
    """What every link is that no entry of its own describes."""

    bandwidth_bit_s: float = 1e9
    """Bits per second in each direction; by default gigabit Ethernet."""
    latency_s: float = 1e-4
    """Seconds one way; by default 0.1 ms, as in an ordinary switched local network."""

    def __post_init__(self) -> None:
        check_figures(self.bandwidth_bit_s, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins two machines, the same in both directions."""

    between: tuple[str, str]
    """Names of the two machines; their order means nothing."""
    bandwidth_bit_s: float
    """Bits per second in each direction."""
    latency_s: float
    """Seconds one way."""

    def __post_init__(self) -> None:
        if self.between[0] == self.between[1]:
            fault("between", list(self.between), "two different machines")
        check_figures(self.bandwidth_bit_s, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines in order, the network's figures, and the links that differ from them."""

    machines: tuple[Machine, ...]
    """At least one; since no `like` may lead in a circle, one at least is real."""
    network: Network = field(default_factory=Network)
    """The figures of every pair that `links` does not name."""
    links: tuple[Link, ...] = ()
    """At most one for each pair of machines."""

    def __post_init__(self) -> None:
        check_machines(self.machines)
        check_links(self.links, [machine.name for machine in self.machines])

    @property
    def real_machines(self) -> tuple[Machine, ...]:
        """Those that are there, in order."""
        return tuple(machine for machine in self.machines if not machine.hypothetical)

    def machine(self, name: str) -> Machine:
        """The machine called `name`; ClusterError if there is none."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise ClusterError(describe_unknown("machine", name, (m.name for m in self.machines)))

    def link(self, a: str, b: str) -> Link:
        """What joins machines `a` and `b`, in whichever order; ClusterError if they are one."""
        pair = {self.machine(a).name, self.machine(b).name}
        for link in self.links:
            if set(link.between) == pair:
                return link
        if len(pair) == 1:
            raise ClusterError(f"no link joins {a!r} to itself")
        first, second = (machine.name for machine in self.machines if machine.name in pair)
        return Link(
            between=(first, second),
            bandwidth_bit_s=self.network.bandwidth_bit_s,
            latency_s=self.network.latency_s,
        )

    def reference(self, name: str) -> tuple[Machine, float]:
        """The real machine whose profile stands for `name`, and `name`'s speed relative to it.

        A real machine stands for itself, at 1.0; along a chain of `like`s the factors multiply.
        """
        machine, speed = self.machine(name), 1.0
        while machine.like is not None:
            speed *= machine.speed
            machine = self.machine(machine.like)
        return machine, speed


def fault(key: str, found: object, expected: str) -> NoReturn:
    """Raise the ClusterError for a value that will not do."""
    shown = "nothing" if found is None else repr(found)
    raise ClusterError(f"key {key!r}: found {shown}, expected {expected}")


def check_figures(bandwidth_bit_s: float, latency_s: float) -> None:
    """Refuse a link over which nothing could ever arrive."""
    if not (math.isfinite(bandwidth_bit_s) and bandwidth_bit_s > 0):
        fault("bandwidth", bandwidth_bit_s, "a finite number of bits per second above 0")
    if not (math.isfinite(latency_s) and latency_s >= 0):
        fault("latency", latency_s, "a finite number of seconds, 0 or more")


def check_machines(machines: Sequence[Machine]) -> None:
    """Refuse no machines, two of one name, and a `like` that leads nowhere or in a circle."""
    if not machines:
        raise ClusterError("no machines: expected at least one [[machine]] with a name")
    like: dict[str, str | None] = {}
    for number, machine in enumerate(machines, start=1):
        if machine.name in like:
            first = list(like).index(machine.name) + 1
            raise ClusterError(
                f"[[machine]] {number}: key 'name': found {machine.name!r}, which is "
                f"[[machine]] {first}'s already; expected a name of its own"
            )
        like[machine.name] = machine.like
    for number, name in enumerate(like, start=1):
        try:
            like_chain(name, like)
        except ClusterError as error:
            raise ClusterError(f"[[machine]] {number} ({name!r}), key 'like': {error}") from None


def like_chain(name: str, like: Mapping[str, str | None]) -> list[str]:
    """`name`, the machine it is like, and so on to the real one. ClusterError if none is."""
    chain = [name]
    while (following := like[chain[-1]]) is not None:
        if following not in like:
            raise ClusterError(describe_unknown("machine", following, like))
        if following in chain:
            circle = " -> ".join(repr(member) for member in [*chain, following])
            raise ClusterError(f"found a circle, {circle}; expected it to end at a real machine")
        chain.append(following)
    return chain


def check_links(links: Sequence[Link], names: Sequence[str]) -> None:
    """Refuse links of machines that do not exist, and two links of one pair."""
    seen: dict[frozenset[str], int] = {}
    for number, link in enumerate(links, start=1):
        for name in link.between:
            if name not in names:
                unknown = describe_unknown("machine", name, names)
                raise ClusterError(f"[[link]] {number}, key 'between': {unknown}")
        pair = frozenset(link.between)
        if pair in seen:
            raise ClusterError(
                f"[[link]] {number}, key 'between': found {list(link.between)!r}, which "
                f"[[link]] {seen[pair]} joins already; expected one link for each pair"
            )
        seen[pair] = number

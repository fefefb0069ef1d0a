"""Any number of equal nodes on equal links: what scaling is predicted on.

        ┌──────── switch ────────┐       `bandwidth_bytes_s` each way and `latency_s`,
      host 0                   host 1    host to host
      ┌─┴─┐                    ┌─┴─┐     `within_bytes_s` inside a host
     n0   n1                  n2   n3    nodes, `per_host` of them on each

A `World` holds a figure for each pair of its machines, a million of them for a thousand machines;
here one figure stands for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from convoy.cost.curve import Curve
from convoy.cost.fabric import AllReduce, Fabric
from convoy.cost.schedule import Compute
from convoy.cost.world import Device, Overhead, World


@dataclass(frozen=True, kw_only=True)
class EqualNodes:
    """What one node is, and what joins it to the others."""

    world: World
    """Where the node was measured, with what its all-reduces cost besides the bytes' way."""
    pick: int = 0
    """Which of the world's devices each node is."""
    bandwidth_bytes_s: float
    """What each host can send, and receive."""
    latency_s: float
    """One way, between hosts."""
    within_bytes_s: float = math.inf
    """Between nodes of one host."""
    per_host: int = 1
    all_reduce: AllReduce = "ring"

    @property
    def device(self) -> Device:
        """A node."""
        return self.world.devices[self.pick]

    def fabric(self, count: int) -> Fabric:
        """The hosts and links of `count` nodes."""
        hosts = tuple(node // self.per_host for node in range(count))
        every = dict.fromkeys(range(hosts[-1] + 1), self.bandwidth_bytes_s)
        cpu = self._cpu(count)
        return Fabric(
            hosts=hosts,
            up=every,
            down=every,
            within=self.within_bytes_s,
            latency_s=self.latency_s,
            all_reduce=self.all_reduce,
            overhead=self._overhead(count),
            cpu=(cpu,) * count if any(cpu.seconds) else (),
        )

    def seconds(self) -> Callable[[Compute], float]:
        """What a Compute takes, on any node."""
        known: dict[tuple[str, str, int, float, float], float] = {}

        def of(compute: Compute) -> float:
            key = (
                *(compute.phase, compute.layer, compute.samples),
                *(compute.part, compute.portion),
            )
            if key not in known:
                known[key] = self.device.seconds(compute)
            return known[key]

        return of

    def step_curve(self, count: int, payload_bytes: int = 0) -> Curve:
        """A node's step among `count`, exchanging gradients of that size, by samples."""
        curve = self.device.whole
        if count > 1 and payload_bytes:
            sums = zip(curve.seconds, self.device.replica.seconds, strict=True)
            curve = Curve(curve.samples, tuple(map(sum, sums)))
            curve = curve.plus(self._cpu(count)(payload_bytes))
        return curve

    def rounds(self, count: int) -> int:
        """Messages one after another in an all-reduce between hosts (`fabric.all_reduce_flow`)."""
        ends = count if self.all_reduce != "hierarchical" else -(-count // self.per_host)
        if ends == 1:
            return 1 if count > 1 else 0
        if self.all_reduce == "halving-doubling":
            power = ends.bit_length() - 1
            return 2 * power + (2 if ends > 2**power else 0)
        return 2 * (ends - 1)

    def _overhead(self, count: int) -> Overhead | None:
        """What was measured of some in a ring, for `count` and their rounds."""
        if self.world.overhead is None or count < 2:
            return None
        return replace(self.world.overhead, count=count, rounds=self.rounds(count))

    def _cpu(self, count: int) -> Curve:
        return self.world.collective_cpu(self.pick, count)

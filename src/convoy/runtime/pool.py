"""Processes for ranks: started once, and used for one thing after another.

Starting one takes seconds, most of them imports. Whoever measures, trains and compares on the
same places takes processes out of a pool and gives them back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from convoy.runtime.member import MAX_CONCURRENCY, Berth, Member
from convoy.runtime.placement import Place


class Pool:
    """Idle members, by place and the cores that Ray keeps for them."""

    def __init__(self) -> None:
        self._idle: dict[tuple[int, int], list[Any]] = defaultdict(list)
        self._cores: dict[Any, int] = {}
        self._idle_servers: dict[tuple[type, str], list[Any]] = defaultdict(list)

    def take(self, place: Place, num_threads: int) -> Any:
        """A member at `place`: one that is idle, or a new one."""
        cores = num_threads if place.shared else 0
        if self._idle[place.index, cores]:
            return self._idle[place.index, cores].pop()
        options: dict[str, Any] = {
            "max_concurrency": MAX_CONCURRENCY,
            "num_gpus": 1 if place.device.startswith("cuda") else 0,
            "num_cpus": cores,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node_id, soft=False),
        }
        berth = Berth(address=place.address, device=place.device)
        member = ray.remote(Member).options(**options).remote(berth)
        self._cores[member] = cores
        return member

    def give_back(self, place: Place, member: Any) -> None:
        """`member` has nothing to do any more."""
        self._idle[place.index, self._cores[member]].append(member)

    def take_server(self, kind: type, node_id: str) -> Any:
        """An actor of `kind`, which takes no cores, on a node: one that is idle, or a new one."""
        if self._idle_servers[kind, node_id]:
            return self._idle_servers[kind, node_id].pop()
        options: dict[str, Any] = {
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
        }
        return ray.remote(kind).options(**options).remote()

    def give_back_server(self, kind: type, node_id: str, server: Any) -> None:
        """`server`, which was taken for that node, has nothing to do any more."""
        self._idle_servers[kind, node_id].append(server)

    def discard(self, member: Any) -> None:
        """End `member`, which may not have come to rest, if it has not been given back."""
        if not any(member in idle for idle in self._idle.values()):
            ray.kill(member)

    def end(self) -> None:
        """Let the idle ones go."""
        for members in self._idle.values():
            for member in members:
                ray.kill(member)
        for servers in self._idle_servers.values():
            for server in servers:
                ray.kill(server)
        self._idle.clear()
        self._idle_servers.clear()


@contextmanager
def pool() -> Iterator[Pool]:
    """A pool that ends with the block."""
    opened = Pool()
    try:
        yield opened
    finally:
        opened.end()

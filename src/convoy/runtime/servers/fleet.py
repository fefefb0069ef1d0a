"""The driver of asynchronous training: starts replicas and shards, watches and restores them.

shards ◀─ first weights, or a checkpoint's          coordinator ◀─ where they are
replicas ──▶ train until no step is left ──▶ whole state, judged by all

a replica dies   its unfinished steps are leased again; it is started again and joins
a device of it   ends the replica; those that are left and the one that is started again join
a shard dies     started again, elsewhere if need be, from the last snapshot; replicas wait for it
a machine joins  it gets a replica
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from convoy.errors import CheckpointError, CrewError, DivergedError
from convoy.runtime import ray_session
from convoy.runtime.checkpoint import Checkpoint, parts_for
from convoy.runtime.interrupt import Interrupt
from convoy.runtime.member_handle import GONE, MemberHandle, await_ready, foreign_error
from convoy.runtime.servers.coordinator import Assignment, Coordinator
from convoy.runtime.servers.replica_keeper import POLL_S, ReplicaKeeper
from convoy.runtime.servers.served_run import ServedRun
from convoy.runtime.servers.shard_handle import Progress
from convoy.runtime.servers.shard_keeper import ANSWER_S, START_S, ShardKeeper
from convoy.runtime.servers.snapshots import Snapshots
from convoy.runtime.servers.whole import network_in
from convoy.state import Tensors

LOOK_FOR_MACHINES_S = 3.0
SPARE_AFTER_S = 20.0
"""After so long a run is worth a process that waits to replace a shard, and so is the next one."""


@dataclass
class Fleet:
    """Directs asynchronous training from its start to its end."""

    served: ServedRun
    network: Tensors
    """State dict before the first step."""
    interrupt: Interrupt
    num_steps: int
    steps_per_epoch: int
    shards: ShardKeeper = field(init=False)
    replicas: ReplicaKeeper = field(init=False)
    _coordinator: Any = None
    _here: str = ""
    """The driver's node."""

    def run(self, start: Checkpoint | None) -> Tensors | None:
        """Train to the end; the network's tensors, or None if interrupted before it.

        Raises:
            DivergedError: a loss, or a parameter, is not finite any more.
            CrewError: nobody can go on.
        """
        self._here = ray.get_runtime_context().get_node_id()
        self._coordinator = self.served.pool.take_server(Coordinator, self._here)
        self._appoint(start)
        members: list[MemberHandle] = []
        try:
            members += [self.replicas.hire(place) for place in self.served.places]
            self._start_servers(start)
            await_ready(members)
            self.served.log.begin()
            self.replicas.welcome(members)
            self._watch()
            if not self._is_finished():
                self._keep_snapshot(last=True)
                return None
            tensors = self._conclude()
            self.shards.give_back()
            self.served.pool.give_back_server(Coordinator, self._here, self._coordinator)
            self._coordinator = None
            return tensors
        except BaseException as error:
            for member in members:
                self.served.pool.discard(member.actor)
            ends_it = (CrewError, GetTimeoutError, RayTaskError, *GONE)
            onwards = self.shards.snapshots.how_to_go_on()
            if isinstance(error, ends_it) and not self._has_coordinator():
                raise CrewError(
                    "the coordinator, a process on this machine that leases steps to replicas, "
                    f"died. Has this machine run out of memory? {onwards}"
                ) from None
            if isinstance(error, GetTimeoutError):
                raise CrewError(f"a process of this run does not answer. {onwards}") from None
            if isinstance(error, RayTaskError):
                raise foreign_error(error, "a process of this run") from None
            raise
        finally:
            self.replicas.end()
            self.shards.end()
            if self._coordinator is not None:
                ray.kill(self._coordinator)

    def _has_coordinator(self) -> bool:
        try:
            self.replicas.progress()
        except (*GONE, GetTimeoutError):
            return False
        return True

    def _appoint(self, start: Checkpoint | None) -> None:
        snapshots = Snapshots(self.served, kept=start)
        self.shards = ShardKeeper(self.served, self._coordinator, snapshots)
        self.replicas = ReplicaKeeper(
            served=self.served,
            network=self.network,
            shards=self.shards,
            coordinator=self._coordinator,
        )

    def _start_servers(self, start: Checkpoint | None) -> None:
        tensors: Tensors = {f"model/{name}": t for name, t in self.network.items()}
        first, done, versions = 0, (), [0] * len(self.served.layout.pieces)
        if start is not None:
            (part,), _ = parts_for(start, 1)
            assert part is not None
            tensors, first = part.tensors, start.step
            about = start.meta.get("servers") or {}
            done = tuple(about.get("done", ()))
            if len(about.get("versions", ())) == len(versions):
                versions = list(about["versions"])
        self.replicas.network = network_in(tensors)
        begun = self._coordinator.begin.remote(
            Assignment(
                first_step=first,
                done=done,
                num_steps=self.num_steps,
                steps_per_epoch=self.steps_per_epoch,
                window=self.served.terms.window,
                warm_start=max(0, self.served.terms.warm_start - first),
                in_turn=self.served.terms.bound is not None,
            )
        )
        self.shards.start(tensors, versions)
        ray.get(begun, timeout=START_S)  # async actors may do what comes later first
        self.shards.tell()

    def _watch(self) -> None:
        """Until nobody is at work any more."""
        next_snapshot = time.monotonic() + self.served.terms.snapshot_s
        next_look = time.monotonic() + LOOK_FOR_MACHINES_S
        next_spare = time.monotonic() + SPARE_AFTER_S
        stopping = False
        while self.replicas.teams or (self.replicas.recruits.members and not stopping):
            if ray_session.is_lost():
                raise CrewError(
                    "Ray's own process on this machine (raylet) died, and every rank with it. "
                    f"{self.shards.snapshots.how_to_go_on()}"
                )
            calls = [*self.replicas.calls, *(shard.serving for shard in self.shards.shards)]
            ray.wait(calls, num_returns=1, timeout=POLL_S)
            done, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            self.replicas.drain()  # what replicas know of a shard's last version, among others
            for shard in [shard for shard in self.shards.shards if shard.serving in done]:
                newest = self.replicas.newest_version(shard.index, shard.incarnation)
                self.shards.restore(shard, newest)
            try:
                self.replicas.collect(done, stopping=stopping)
            except DivergedError as error:
                raise DivergedError(f"{error}. {self.shards.snapshots.last_good()}") from None
            if self.replicas.resting and not stopping:  # what is left to do is somebody's already
                stopping = True
            if self.interrupt.asked and not stopping:
                self.served.observer.say("stopping after the steps under way; a checkpoint is kept")
                ray.get(self._coordinator.stop.remote(), timeout=ANSWER_S)
                stopping = True
            if stopping:
                continue
            now = time.monotonic()
            for index, rank in self.replicas.paces.moves(self.shards.where().homes, now):
                self.shards.move(index, rank)
            self.shards.settle_moves()
            if now > next_spare:
                fastest = self.replicas.paces.fastest(len(self.served.places))
                self.shards.keep_spare(fastest)
                next_spare = now + SPARE_AFTER_S
            if self.replicas.recruits.any_ready():
                self.replicas.welcome(self.replicas.recruits.take_ready())
            if now > next_snapshot:
                self._keep_snapshot()
                next_snapshot = time.monotonic() + self.served.terms.snapshot_s
            if now > next_look:
                self.replicas.look_for_machines()
                next_look = now + LOOK_FOR_MACHINES_S
        self.replicas.drain()
        if not self.interrupt.asked and not self._is_finished():
            raise CrewError(f"every replica is lost. {self.shards.snapshots.how_to_go_on()}")

    def _is_finished(self) -> bool:
        return self.replicas.progress()[0] >= self.num_steps

    def _keep_snapshot(self, *, last: bool = False) -> None:
        low, beyond = self.replicas.progress()
        progress = Progress(
            low=low, beyond=beyond, shares=self.served.plan.shares, layout=self.served.log.layout
        )
        self.shards.keep(self.replicas.current_network(), progress, last=last)

    def _conclude(self) -> Tensors:
        """All that was learnt, judged by those who are still there."""
        try:
            self._keep_snapshot(last=True)
        except CheckpointError as error:  # what was learnt needs less room
            self.served.observer.say(str(error), "warning")
        tensors = network_in(self.shards.conclude(self.replicas.current_network()))
        if not self.replicas.judge(tensors):
            raise CrewError(f"every replica is lost. {self.shards.snapshots.how_to_go_on()}")
        return tensors

"""The driver's side of all shards: started, told of, moved, and restored when one dies.

start ──▶ serve ──▶ a shard dies ──▶ the last snapshot's state, elsewhere if need be ──▶ serve
           ├──▶ its machine is slow ──▶ a process elsewhere ──▶ its state as it is ──▶ serve
           └──▶ every few seconds: a snapshot of all, in memory and on disk
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from convoy.errors import CrewError
from convoy.runtime.member import describe
from convoy.runtime.member_handle import GONE
from convoy.runtime.servers.messages import Whereabouts
from convoy.runtime.servers.served_run import ServedRun
from convoy.runtime.servers.shard import Shard, ShardOrders, ShardState
from convoy.runtime.servers.shard_handle import Move, Moving, Progress, Restoration, ShardHandle
from convoy.runtime.servers.snapshots import Snapshots
from convoy.runtime.servers.whole import parts_of, whole_of
from convoy.state import Tensors

ANSWER_S = 60.0
START_S = 100.0
"""Processes import torch before they answer. Replicas wait for a shard a little longer."""
SPARE_S = 5.0
"""How long a process that is still starting is waited for, rather than starting another."""
ATTEMPTS = 3
"""How often a shard may die while it starts."""


@dataclass
class ShardKeeper:
    """Has the shards of one run."""

    served: ServedRun
    coordinator: Any
    snapshots: Snapshots
    restorations: list[Restoration] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    """What each shard has done, in the end."""
    shards: list[ShardHandle] = field(default_factory=list)
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    _snapshot: list[ShardState] = field(default_factory=list)
    _moving: dict[int, Moving] = field(default_factory=dict)
    """By shard."""
    _spare: Moving | None = None
    """A process that is, or soon will be, ready to be any shard's successor."""

    def start(self, tensors: Mapping[str, Any], versions: Sequence[int]) -> None:
        """Have shards load their parts of a whole state; `tell` has to follow."""
        self._snapshot = parts_of(tensors, self.served.layout.pieces, versions)
        for index, state in enumerate(self._snapshot):
            home = self.served.layout.homes[index]
            self.shards.append(self._start(index, state, home))

    def tell(self) -> None:
        """Have the coordinator know where shards are, once they have their states."""
        for index in range(len(self.shards)):
            for _ in range(ATTEMPTS):
                shard = self.shards[index]
                why = self._await(shard)
                if not why:
                    break
                ray.kill(shard.actor)
                home = self._living(shard.home, but=shard.node_id)
                self.shards[index] = self._start(index, self._snapshot[index], home)
                self.shards[index].incarnation = shard.incarnation + 1
                self._introduce(self.shards[index])
            else:
                raise CrewError(
                    f"shard {index} of the parameters could not be started in {ATTEMPTS} attempts; "
                    f"the last one {why}. {self.snapshots.how_to_go_on()}"
                )
            shard.serving = shard.serving or shard.actor.serve.remote()
        ray.get(self.coordinator.set_shards.remote(self.where()), timeout=START_S)

    @staticmethod
    def _await(shard: ShardHandle) -> str:
        """Wait until a shard has its state; why it has not, or nothing."""
        try:
            shard.endpoint = shard.endpoint or ray.get(shard.loaded, timeout=START_S)
        except RayTaskError as error:
            return f"failed: {describe(error)}"
        except GONE:
            return "died"
        except GetTimeoutError:
            return f"did not answer for {START_S:.0f} s"
        return ""

    def where(self) -> Whereabouts:
        """Of all shards."""
        return Whereabouts(
            endpoints=tuple(shard.endpoint for shard in self.shards),
            incarnations=tuple(shard.incarnation for shard in self.shards),
            homes=tuple(shard.home for shard in self.shards),
        )

    def join(self, replicas: Sequence[int]) -> None:
        """All shards know of these replicas when this returns; a dead one's successor will."""
        for call in [shard.actor.join.remote(replicas) for shard in self.shards]:
            with contextlib.suppress(*GONE, GetTimeoutError):
                ray.get(call, timeout=START_S)

    def forget(self, replica: int) -> None:
        """Nothing waits for `replica` any more."""
        for shard in self.shards:
            shard.actor.forget.remote(replica)

    def restore(self, dead: ShardHandle, newest: int) -> None:
        """Start a shard again from its last snapshot, on its machine or another.

        Args:
            newest: the newest of its versions that anybody knows of.
        """
        began = time.monotonic()
        state = self._snapshot[dead.index]
        lost = max(0, newest - state.version)
        spare, self._spare = self._spare, None
        if spare is not None and self._is_ready(spare, SPARE_S):
            successor = self._start(dead.index, state, spare.rank, spare.actor)
        else:
            successor = self._start(dead.index, state, self._living(dead.home))
        self._succeed(dead, successor)
        seconds = time.monotonic() - began
        self.restorations.append(Restoration(shard=dead.index, lost_updates=lost, seconds=seconds))
        self.served.observer.say(
            f"shard {dead.index} of the parameters was lost and is there again after {seconds:.1f} "
            f"s, as of its snapshot of version {state.version}: {lost} updates are lost",
            "warning",
        )

    @staticmethod
    def _is_ready(moving: Moving, patience_s: float) -> bool:
        """Whether a process that was summoned is there; one that is not is ended."""
        try:
            ray.get(moving.ready, timeout=patience_s)
        except (*GONE, GetTimeoutError, RayTaskError):  # gone with its machine, say
            ray.kill(moving.actor)
            return False
        return True

    def move(self, index: int, rank: int) -> None:
        """Have a shard go to the machine of `rank`, once a process is there; see `settle_moves`."""
        target, spare = self.served.places[rank].node_id, self._spare
        if index in self._moving or target == self.shards[index].node_id:
            return
        if spare is not None and spare.place.node_id == target:
            self._moving[index], self._spare = spare, None
        else:
            self._moving[index] = self._summoned(rank)

    def keep_spare(self, fastest: Sequence[int]) -> None:
        """Have a process wait to be a shard's successor: starting one takes seconds.

        It is on the fastest machine without a shard, if there is one. One that is dead, or on a
        machine that has become slow, is replaced.

        Args:
            fastest: ranks, the fastest first, without those that have become slow.
        """
        homes = {shard.node_id for shard in self.shards}
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        places = self.served.places
        ranks = [rank for rank in fastest if places[rank].node_id in alive]
        spare = self._spare
        if spare is not None:
            in_time = time.monotonic() < spare.since + START_S
            is_coming = in_time and not ray.wait([spare.ready], timeout=0)[0]
            if spare.rank in ranks and (is_coming or self._is_ready(spare, 0)):
                return
            ray.kill(spare.actor)
            self._spare = None
        others = [rank for rank in ranks if places[rank].node_id not in homes]
        if ranks:
            self._spare = self._summoned((others or ranks)[0])

    def _summoned(self, rank: int) -> Moving:
        """A process on its way to the machine of `rank`."""
        place = self.served.places[rank]
        actor = self.served.pool.take_server(Shard, place.node_id)
        now, ready = time.monotonic(), actor.ready.remote()
        return Moving(place=place, rank=rank, actor=actor, ready=ready, since=now)

    def settle_moves(self) -> None:
        """Let those go for whom a process is there. Nothing is lost, and nothing done twice.

        But of one that does not answer: it is ended, and restored from its snapshot.
        """
        for index, moving in list(self._moving.items()):
            is_late = time.monotonic() > moving.since + START_S
            if not is_late and not ray.wait([moving.ready], timeout=0)[0]:
                continue
            del self._moving[index]
            if not self._is_ready(moving, 0):
                continue
            began, former = time.monotonic(), self.shards[index]
            try:
                state = ray.get(former.actor.retire.remote(), timeout=ANSWER_S)
            except GONE:  # if it is the former, that is about to be noticed
                ray.kill(moving.actor)
                continue
            except GetTimeoutError:  # it answers nobody any more: as good as dead
                ray.kill(moving.actor)
                ray.kill(former.actor)
                continue
            self._snapshot[index] = state
            self._succeed(former, self._start(index, state, moving.rank, moving.actor))
            former.actor.end.remote()
            self.served.pool.give_back_server(Shard, former.node_id, former.actor)
            seconds, machine = time.monotonic() - began, moving.place.machine
            self.moves.append(Move(shard=index, to=machine, seconds=seconds))
            self.served.observer.say(
                f"{self.served.places[former.home].machine} has become slow: shard {index} of the "
                f"parameters went to {machine} within {seconds:.1f} s"
            )

    def keep(self, network: Tensors, progress: Progress, *, last: bool = False) -> None:
        """Take a snapshot of all shards and write it; training goes on meanwhile.

        Args:
            network: whatever no shard holds.
            last: nothing comes after it, so that what fails is an error.

        Raises:
            DivergedError: a parameter is not finite any more.
            CrewError, CheckpointError: it is the last, and cannot be taken or written.
        """
        states = self._states()
        if states is None:
            if last:
                raise CrewError(f"a shard died at the very end. {self.snapshots.how_to_go_on()}")
            return  # it is about to be restored, from the snapshot before
        tensors = self.snapshots.whole(network, states, progress)
        self._snapshot = states
        self.snapshots.write(tensors, [s.version for s in states], progress, last=last)

    def _states(self) -> list[ShardState] | None:
        """Of all shards; None if one is dead. One that does not answer is ended."""
        calls = [shard.actor.snapshot.remote() for shard in self.shards]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_S)
        for shard, call in zip(self.shards, calls, strict=True):
            if call not in done:
                self.served.observer.say(
                    f"shard {shard.index} of the parameters has not answered for {ANSWER_S:.0f} s: "
                    "its process is ended",
                    "warning",
                )
                ray.kill(shard.actor)
        if len(done) < len(calls):
            return None
        try:
            states: list[ShardState] = ray.get(calls)
        except GONE:
            return None
        return states

    def conclude(self, network: Tensors) -> Tensors:
        """The whole state as of the last snapshot; notes what each shard has done."""
        for shard in self.shards:
            with contextlib.suppress(*GONE, GetTimeoutError):  # all it had is in the snapshot
                self.facts.append(ray.get(shard.actor.facts.remote(), timeout=ANSWER_S))
        return whole_of(network, self.served.layout.pieces, self._snapshot)

    def give_back(self) -> None:
        """For whoever trains next."""
        for shard, call in [(s, s.actor.end.remote()) for s in self.shards]:
            try:
                ray.get(call, timeout=ANSWER_S)
            except (*GONE, GetTimeoutError):  # all it had is in the snapshot
                ray.kill(shard.actor)
            else:
                self.served.pool.give_back_server(Shard, shard.node_id, shard.actor)
        self.shards = []

    def end(self) -> None:
        """End the shards that have not been given back, and who waits to be one."""
        waiting = [*self._moving.values(), *([self._spare] if self._spare else [])]
        for actor in [*(s.actor for s in self.shards), *(m.actor for m in waiting)]:
            ray.kill(actor)

    def _succeed(self, former: ShardHandle, successor: ShardHandle) -> None:
        """Have everybody turn to a shard's successor."""
        successor.incarnation = former.incarnation + 1
        self.shards[former.index] = successor
        self._introduce(successor)
        self.tell()

    def _introduce(self, successor: ShardHandle) -> None:
        """Have its gate know who is at work, where the gate waits for them."""
        if self.served.terms.bound is not None:
            at_work = ray.get(self.coordinator.at_work.remote(), timeout=ANSWER_S)
            successor.actor.join.remote(list(at_work))

    def _start(self, index: int, state: ShardState, home: int, actor: Any = None) -> ShardHandle:
        node_id = self.served.places[home].node_id
        orders = ShardOrders(
            index=index,
            session=self.session,
            address=self.served.places[home].address,
            settings=self.served.job.settings,
            terms=self.served.terms,
            state=state,
        )
        actor = actor or self.served.pool.take_server(Shard, node_id)
        loaded = actor.load.remote(orders)
        return ShardHandle(index=index, actor=actor, loaded=loaded, node_id=node_id, home=home)

    def _living(self, rank: int, but: str = "") -> int:
        """`rank` if its machine lives, or the first one whose does.

        Args:
            but: a node that is taken only if there is no other.
        """
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        places = self.served.places
        ranks = [r for r, place in enumerate(places) if place.node_id in alive]
        if not ranks:
            raise CrewError(f"no machine that takes part is left. {self.snapshots.how_to_go_on()}")
        ranks = [r for r in ranks if places[r].node_id != but] or ranks
        return rank if rank in ranks else ranks[0]

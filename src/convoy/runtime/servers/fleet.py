"""The driver of asynchronous training: starts replicas and shards, watches and restores them.

shards ◀─ first weights, or a checkpoint's          coordinator ◀─ where they are
replicas ──▶ train until no step is left ──▶ whole state, judged by all

a replica dies   its unfinished steps are leased again; it is started again and joins
a shard dies     started again, elsewhere if need be, from the last snapshot; replicas wait for it
a machine joins  it gets a replica
"""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from convoy.errors import CheckpointError, CrewError, DivergedError
from convoy.runtime import ray_session
from convoy.runtime.checkpoint import Checkpoint, parts_for, write_checkpoint
from convoy.runtime.events import Event
from convoy.runtime.formation import Job, Part
from convoy.runtime.interrupt import Interrupt
from convoy.runtime.member_handle import (
    GONE,
    MemberHandle,
    await_ready,
    dismiss,
    fetch,
    foreign_error,
    hire,
)
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, threads_at
from convoy.runtime.pool import Pool
from convoy.runtime.recruits import Recruits
from convoy.runtime.servers.coordinator import Assignment, Coordinator
from convoy.runtime.servers.fleet_log import FleetLog
from convoy.runtime.servers.replica import ReplicaOrders
from convoy.runtime.servers.shard import Shard, ShardOrders, ShardState
from convoy.runtime.servers.whole import average_buffers, broken, network_in, parts_of, whole_of
from convoy.runtime.settings import to_values
from convoy.state import Tensors
from convoy.strategies import Plan
from convoy.strategies.parameter_shards import Shard as Pieces
from convoy.strategies.parameter_shards import divide
from convoy.strategies.server import ServerTerms
from convoy.strategies.shares import cut
from convoy.version import __version__

POLL_S = 0.2
LOOK_FOR_MACHINES_S = 3.0
ANSWER_S = 60.0
START_S = 120.0
"""Processes import torch before they answer."""


@dataclass
class ShardHandle:
    """The driver's view of one shard."""

    index: int
    actor: Any
    loaded: Any
    """Gives its endpoint once it has its state."""
    node_id: str
    serving: Any = None
    """Ends when the shard does."""
    incarnation: int = 0
    endpoint: str = ""
    """Where it listens, once it has its state."""


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """A shard that died and was started again."""

    shard: int
    lost_updates: int
    seconds: float


@dataclass
class Fleet:
    """Directs asynchronous training from its start to its end."""

    job: Job
    plan: Plan
    terms: ServerTerms
    places: Sequence[Place]
    """By rank of the plan; those that come later are added."""
    network: Tensors
    """State dict as known here: before the first step, and whatever no shard holds since."""
    log: FleetLog
    observer: Observer
    interrupt: Interrupt
    pool: Pool
    num_steps: int
    steps_per_epoch: int
    generation: int
    find_places: Callable[[], Sequence[Place]]
    """Places on all machines that there are now, for those that come later."""
    restorations: list[Restoration] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    """Replicas that died: {"step", "lost", "again"}: `again` steps were leased once more."""
    kept: Checkpoint | None = None
    """The newest snapshot that is on disk."""
    shard_facts: list[dict[str, Any]] = field(default_factory=list)
    """What each shard has done, in the end."""
    _shards: list[ShardHandle] = field(default_factory=list)
    _members: dict[int, MemberHandle] = field(default_factory=dict)
    """At work, by replica."""
    _resting: list[MemberHandle] = field(default_factory=list)
    """Those that have found nothing left to do."""
    _recruits: Recruits = field(init=False)
    _next_replica: int = 0
    _snapshot: list[ShardState] = field(default_factory=list)
    _coordinator: Any = None
    _job_reference: Any = None
    _pieces: tuple[Pieces, ...] = ()
    _session: str = field(default_factory=lambda: uuid.uuid4().hex)
    _here: str = ""
    """The driver's node."""

    def run(self, start: Checkpoint | None) -> Tensors | None:
        """Train to the end; the network's tensors, or None if interrupted before it.

        Raises:
            DivergedError: a loss, or a parameter, is not finite any more.
            CrewError: nobody can go on.
        """
        self._job_reference = ray.put(self.job)
        self._pieces = divide(dict(self.plan.problem.network.shapes), len(self.plan.homes))
        self._recruits = Recruits(self.observer, self._hire)
        self.kept = start
        members: list[MemberHandle] = []
        try:
            members += [self._hire(place) for place in self.places]
            self._start_servers(start)
            await_ready(members)
            self.log.begin()
            self._launch(members)
            self._watch()
            if not self._is_finished():
                self._keep_snapshot(last=True)
                return None
            tensors = self._conclude()
            self._give_back_servers()
            return tensors
        except BaseException:
            for member in members:
                self.pool.discard(member.actor)
            raise
        finally:
            self._end()

    # Starting

    def _start_servers(self, start: Checkpoint | None) -> None:
        tensors: Tensors = {f"model/{name}": t for name, t in self.network.items()}
        first, done, versions = 0, (), [0] * len(self._pieces)
        if start is not None:
            (part,), _ = parts_for(start, 1)
            assert part is not None
            tensors, first = part.tensors, start.step
            about = start.meta.get("servers") or {}
            done = tuple(about.get("done", ()))
            if len(about.get("versions", ())) == len(versions):
                versions = list(about["versions"])
        self.network = network_in(tensors)
        self._snapshot = parts_of(tensors, self._pieces, versions)
        self._here = ray.get_runtime_context().get_node_id()
        self._coordinator = self.pool.take_server(Coordinator, self._here)
        begun = self._coordinator.begin.remote(
            Assignment(
                first_step=first,
                done=done,
                num_steps=self.num_steps,
                steps_per_epoch=self.steps_per_epoch,
                window=self.terms.window,
                warm_start=max(0, self.terms.warm_start - first),
                in_turn=self.terms.bound is not None,
            )
        )
        for index, state in enumerate(self._snapshot):
            home = self.places[self.plan.homes[index]]
            self._shards.append(self._start_shard(index, state, home.node_id))
        ray.get(begun, timeout=START_S)  # async actors may do what comes later first
        self._tell_shards()

    def _start_shard(self, index: int, state: ShardState, node_id: str) -> ShardHandle:
        orders = ShardOrders(
            index=index,
            session=self._session,
            address=self._address_of(node_id),
            settings=self.job.settings,
            terms=self.terms,
            state=state,
        )
        actor = self.pool.take_server(Shard, node_id)
        loaded = actor.load.remote(orders)
        return ShardHandle(index=index, actor=actor, loaded=loaded, node_id=node_id)

    def _tell_shards(self) -> None:
        """Have the coordinator know where shards are, once they have their states."""
        for shard in self._shards:
            with contextlib.suppress(*GONE):  # who dies meanwhile is noticed in a moment
                shard.endpoint = ray.get(shard.loaded, timeout=START_S)
            shard.serving = shard.serving or shard.actor.serve.remote()
        ray.get(self._coordinator.set_shards.remote(*self._where()), timeout=START_S)

    def _where(self) -> tuple[list[str], list[int]]:
        return [s.endpoint for s in self._shards], [s.incarnation for s in self._shards]

    def _address_of(self, node_id: str) -> str:
        """By which replicas reach a machine."""
        known = [place.address for place in self.places if place.node_id == node_id]
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        return known[0] if known else str(nodes[node_id])

    def _hire(self, place: Place) -> MemberHandle:
        num_threads = threads_at(place, self.places, self.job.settings)
        return hire(place, num_threads, self._job_reference, self.pool)

    def _launch(self, members: Sequence[MemberHandle]) -> None:
        """Let replicas begin. All are known everywhere before any does its first step."""
        numbers = [self._next_replica + i for i in range(len(members))]
        self._next_replica += len(members)
        if self.terms.bound is not None:
            ray.get([s.actor.join.remote(numbers) for s in self._shards], timeout=START_S)
        ray.get([self._coordinator.join.remote(number) for number in numbers], timeout=START_S)
        endpoints, incarnations = self._where()
        tensors = ray.put(self._network())
        for number, member in zip(numbers, members, strict=True):
            orders = ReplicaOrders(
                replica=number,
                rank=self._rank_of(member.place),
                machine=member.place.machine,
                generation=self.generation,
                plan=self.plan,
                pieces=self._pieces,
                terms=self.terms,
                session=self._session,
                endpoints=tuple(endpoints),
                incarnations=tuple(incarnations),
                coordinator=self._coordinator,
            )
            member.call = member.actor.replicate.remote(orders, tensors)
            self._members[number] = member

    def _rank_of(self, place: Place) -> int:
        return [known.index for known in self.places].index(place.index)

    def _network(self) -> Tensors:
        """The network as it is known here, with the mean of the replicas' buffers."""
        trained = {name for name, _ in self.plan.problem.network.shapes}
        if all(name in trained for name in self.network):
            return self.network
        members = [*self._members.values(), *self._resting]
        found = []
        for member, call in [(m, m.actor.buffers.remote()) for m in members]:
            samples = self.log.tally.by_rank[self._rank_of(member.place)]
            with contextlib.suppress(*GONE, GetTimeoutError):
                found.append((ray.get(call, timeout=ANSWER_S), float(samples)))
        if any(samples for _, samples in found):
            names = [name for name in found[0][0] if name in self.network]
            self.network = self.network | average_buffers(found, names)
        return self.network

    # Watching

    def _watch(self) -> None:
        """Until nobody is at work any more."""
        next_snapshot = time.monotonic() + self.terms.snapshot_s
        next_look = time.monotonic() + LOOK_FOR_MACHINES_S
        stopping = False
        while self._members or (self._recruits.members and not stopping):
            if ray_session.is_lost():
                raise CrewError(
                    "Ray's own process on this machine (raylet) died, and every rank with it. "
                    f"{self._how_to_go_on()}"
                )
            calls = [member.call for member in self._members.values()]
            calls += [shard.serving for shard in self._shards]
            done, _ = ray.wait(calls, num_returns=1, timeout=POLL_S)
            for shard in [shard for shard in self._shards if shard.serving in done]:
                self._restore(shard)
            self._drain()
            for number, member in list(self._members.items()):
                if member.call in done:
                    self._collect(number, member)
            if self._resting and not stopping:  # what is left to do is somebody's already
                stopping = True
            if self.interrupt.asked and not stopping:
                self.observer.say("stopping after the steps under way; a checkpoint is kept")
                ray.get(self._coordinator.stop.remote(), timeout=ANSWER_S)
                stopping = True
            if stopping:
                continue
            now = time.monotonic()
            if self._recruits.any_ready():
                self._welcome(self._recruits.take_ready())
            if now > next_snapshot:
                self._keep_snapshot()
                next_snapshot = time.monotonic() + self.terms.snapshot_s
            if now > next_look:
                self._look_for_machines()
                next_look = now + LOOK_FOR_MACHINES_S
        self._drain()
        if not self.interrupt.asked and not self._is_finished():
            raise CrewError(f"every replica is lost. {self._how_to_go_on()}")

    def _progress(self) -> tuple[int, tuple[int, ...]]:
        """All steps before the first figure are done; and those beyond it that are, too."""
        found: tuple[int, tuple[int, ...]] = ray.get(
            self._coordinator.progress.remote(), timeout=ANSWER_S
        )
        return found

    def _is_finished(self) -> bool:
        return self._progress()[0] >= self.num_steps

    def _drain(self) -> None:
        events = fetch([*self._members.values()])
        if any(kind == "record" for kind, _ in events):
            self._recruits.note_step(self._members.values())
        self._take(events)
        for member in self._members.values():
            if self.log.wants_clock(rank := self._rank_of(member.place)):
                asked = time.time()
                with contextlib.suppress(*GONE, GetTimeoutError):
                    said = ray.get(member.actor.clock.remote(), timeout=POLL_S)
                    self.log.clock(rank, member.place.machine, asked, said, time.time())

    def _take(self, events: Sequence[Event]) -> None:
        """Keep what replicas report; a step is done once its record is here, and cannot be lost."""
        self.log.take(events)
        done: dict[int, list[tuple[int, float]]] = {}
        for kind, content in events:
            if kind == "record":
                done.setdefault(content["replica"], []).append((content["step"], content["wall_s"]))
        for replica, steps in done.items():
            seconds = sum(wall_s for _, wall_s in steps)
            self._coordinator.done.remote(replica, [step for step, _ in steps], seconds)

    def _collect(self, number: int, member: MemberHandle) -> None:
        """A replica's part has ended: as it should, or otherwise."""
        try:
            ray.get(member.call)
        except RayTaskError as error:
            cause = foreign_error(error, f"replica {number} on {member.place.machine}")
            if isinstance(cause, DivergedError):
                raise DivergedError(f"{cause}. {self._last_good()}") from None
            raise cause from None
        except GONE:
            self._mourn(number, member)
        else:
            self._take(fetch([member]))
            del self._members[number]
            self._resting.append(member)

    def _mourn(self, number: int, member: MemberHandle) -> None:
        """A replica has died: nobody waits for it, and others do what it was doing."""
        del self._members[number]
        back = ray.get(self._coordinator.forget.remote(number), timeout=ANSWER_S)
        for shard in self._shards:
            shard.actor.forget.remote(number)
        self.losses.append(
            {"step": self._progress()[0], "lost": [member.place.machine], "again": len(back)}
        )
        self.observer.say(
            f"{member.place.machine} lost its replica; of its steps {len(back)} are leased again",
            "warning",
        )
        if not self.interrupt.asked:
            self._recruits.replace(member)

    def _welcome(self, ready: Sequence[MemberHandle]) -> None:
        if ready:
            names = ", ".join(member.place.machine for member in ready)
            self.observer.say(f"{names} joins at step {self._progress()[0]}")
            self._launch(ready)

    def _look_for_machines(self) -> None:
        """Machines that have come since, or have come back, get a replica."""
        nodes = {place.node_id for place in self.places}
        places = {place.index: place for place in self.places}
        for found in self.find_places():
            if found.node_id in nodes:
                continue
            former = [p for p in self.places if p.machine == found.machine]
            index = former[0].index if former else max(places) + 1
            places[index] = replace(found, index=index)
            self.places = [places[key] for key in sorted(places)]
            self._recruits.members.append(self._hire(places[index]))

    # Shards and their snapshots

    def _restore(self, dead: ShardHandle) -> None:
        """Start a shard again from its last snapshot, on its machine or another."""
        began = time.monotonic()
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        home = self.places[self.plan.homes[dead.index]].node_id
        state = self._snapshot[dead.index]
        self._drain()  # what replicas know of its last version
        known, newest = self.log.versions.get(dead.index, (0, 0))
        lost = max(0, newest - state.version) if known == dead.incarnation else 0
        successor = self._start_shard(dead.index, state, home if home in alive else alive[0])
        successor.incarnation = dead.incarnation + 1
        self._shards[dead.index] = successor
        if self.terms.bound is not None:
            at_work = ray.get(self._coordinator.at_work.remote(), timeout=ANSWER_S)
            successor.actor.join.remote(list(at_work))
        self._tell_shards()
        seconds = time.monotonic() - began
        self.restorations.append(Restoration(shard=dead.index, lost_updates=lost, seconds=seconds))
        self.observer.say(
            f"shard {dead.index} of the parameters was lost and is there again after {seconds:.1f} "
            f"s, as of its snapshot of version {state.version}: {lost} updates are lost",
            "warning",
        )

    def _keep_snapshot(self, *, last: bool = False) -> None:
        """Take a snapshot of all shards and write it; training goes on meanwhile."""
        low, beyond = self._progress()
        calls = [shard.actor.snapshot.remote() for shard in self._shards]
        try:
            states: list[ShardState] = ray.get(calls, timeout=ANSWER_S)
        except (*GONE, GetTimeoutError):
            if last:
                raise CrewError(f"a shard died at the very end. {self._how_to_go_on()}") from None
            return  # it is about to be restored, from the snapshot before
        tensors = whole_of(self._network(), self._pieces, states)
        if name := broken(tensors):
            raise DivergedError(
                f"{name.removeprefix('model/')} is no longer finite after {low} steps. Try a lower "
                f"--lr, or a bound on staleness (--max-staleness). {self._last_good()}"
            )
        self._snapshot = states
        checkpoint = Checkpoint(
            step=low,
            generation=self.generation,
            parts=(Part(tensors=tensors),),
            meta={
                "convoy": __version__,
                "layout": self.log.layout,
                "shares": list(self.plan.shares),
                "settings": to_values(self.job.settings),
                "servers": {"versions": [s.version for s in states], "done": list(beyond)},
            },
        )
        self.log.flush()
        try:
            write_checkpoint(self.log.folder.checkpoints, checkpoint, keep=self.job.settings.keep)
        except CheckpointError as error:
            if last:
                raise
            self.observer.say(
                f"{error}. Training goes on; the servers' snapshot is in memory only",
                "warning",
            )
        else:
            self.kept = checkpoint

    def _last_good(self) -> str:
        if self.kept is None:
            return "There is no snapshot yet: start again"
        return (
            f"The last good snapshot is that of step {self.kept.step}: go on from it with a lower "
            f"--lr and --resume {self.log.folder.path}"
        )

    def _how_to_go_on(self) -> str:
        if self.kept is None:
            return "There is no snapshot yet: start the run again"
        return f"Go on from the newest snapshot with --resume {self.log.folder.path}"

    # The end

    def _conclude(self) -> Tensors:
        """All that was learnt, judged by those who are still there."""
        self._keep_snapshot(last=True)
        for shard in self._shards:
            with contextlib.suppress(*GONE, GetTimeoutError):  # all it had is in the snapshot
                self.shard_facts.append(ray.get(shard.actor.facts.remote(), timeout=ANSWER_S))
        tensors = network_in(whole_of(self._network(), self._pieces, self._snapshot))
        self._judge(tensors)
        return tensors

    def _judge(self, tensors: Tensors) -> None:
        """Each replica judges a part of the test set; what one does not answer, another does."""
        reference = ray.put(tensors)
        members = list(self._resting)
        of_rank = [self.log.tally.by_rank[self._rank_of(member.place)] for member in members]
        counts = cut(self.log.test_samples, [max(1, n) for n in of_rank])
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        parts = [part for part in zip(firsts, counts, strict=True) if part[1]]
        sums = {"correct": 0.0, "loss_sum": 0.0, "samples": 0.0}
        while parts:
            if not members:
                raise CrewError(f"every replica is lost. {self._how_to_go_on()}")
            calls = [
                (member, part, member.actor.judge.remote(reference, *part))
                for member, part in zip(itertools.cycle(members), parts, strict=False)
            ]
            parts = []
            for member, part, call in calls:
                try:
                    for key, value in ray.get(call).items():
                        sums[key] += value
                except GONE:
                    parts.append(part)
                    members = [other for other in members if other is not member]
        self.log.evaluated(self.num_steps - 1, sums)
        self._resting = members

    def _give_back_servers(self) -> None:
        """For whoever trains next."""
        ray.get([shard.actor.end.remote() for shard in self._shards], timeout=ANSWER_S)
        for shard in self._shards:
            self.pool.give_back_server(Shard, shard.node_id, shard.actor)
        self.pool.give_back_server(Coordinator, self._here, self._coordinator)
        self._shards, self._coordinator = [], None

    def _end(self) -> None:
        dismiss(self._resting, self.pool, reusable=True)
        dismiss([*self._members.values(), *self._recruits.members], self.pool, reusable=False)
        for shard in self._shards:
            ray.kill(shard.actor)
        if self._coordinator is not None:
            ray.kill(self._coordinator)

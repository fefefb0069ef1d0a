"""The driver's side of all replicas: hired, launched, heard of, replaced when they die.

hire ──▶ bench, until there are enough for a replica ──▶ at work ──▶ resting: nothing is left
 ▲                              ▲                            │
 │                              └── its other devices ◀── one is lost
 └──────── a process is started again in its place ◀─────────┘
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from convoy.errors import ConvoyError, CrewError
from convoy.runtime.events import Event
from convoy.runtime.formation import Outcome
from convoy.runtime.member_handle import (
    GONE,
    POLL_PATIENCE_S,
    MemberHandle,
    dismiss,
    end,
    fetch,
    hire,
)
from convoy.runtime.placement import Place, threads_at
from convoy.runtime.recruits import Recruits
from convoy.runtime.servers.judging import judge
from convoy.runtime.servers.paces import Paces
from convoy.runtime.servers.replica import ReplicaOrders
from convoy.runtime.servers.served_run import ServedRun
from convoy.runtime.servers.shard_keeper import ANSWER_S, START_S, ShardKeeper
from convoy.runtime.servers.teams import Bench, Team
from convoy.runtime.servers.whole import average_buffers
from convoy.state import Tensors

POLL_S = 0.2
NEWEST_S = 2.0
"""How long a replica may take to say what it knows of a shard that is lost."""
FRUITLESS_REPLICAS = 5


@dataclass
class ReplicaKeeper:
    """Has the replicas of one run."""

    served: ServedRun
    network: Tensors
    """State dict as known here: before the first step, and whatever no shard holds since."""
    shards: ShardKeeper
    coordinator: Any
    losses: list[dict[str, Any]] = field(default_factory=list)
    """Replicas that died: {"step", "lost", "again"}: `again` steps were leased once more."""
    teams: dict[int, Team] = field(default_factory=dict)
    """At work, by replica."""
    resting: list[MemberHandle] = field(default_factory=list)
    """Those that have found nothing left to do."""
    paces: Paces = field(init=False)
    recruits: Recruits = field(init=False)
    _bench: Bench = field(init=False)
    _next_replica: int = 0
    _reported: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """By replica and step: seconds that its devices took, of those whose records have come."""
    _fruitless: int = 0
    """Replicas in a row whose devices lost touch, without a step done in between."""
    _job_reference: Any = None
    _complaints: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._job_reference = ray.put(self.served.job)
        self.paces = Paces(self.served.layout.team)
        self.recruits = Recruits(self.served.observer, self.hire)
        self._bench = Bench(size=self.served.layout.team, position_of=self._position_of)

    @property
    def at_work(self) -> list[MemberHandle]:
        """Members of all replicas."""
        return [member for team in self.teams.values() for member in team.members]

    @property
    def calls(self) -> list[Any]:
        """What ends when somebody's part does."""
        return [member.call for member in self.at_work if member.outcome is None]

    def hire(self, place: Place) -> MemberHandle:
        """A process at `place`, which prepares in the background."""
        num_threads = threads_at(place, self.served.places, self.served.job.settings)
        return hire(place, num_threads, self._job_reference, self.served.pool)

    def welcome(self, ready: Sequence[MemberHandle]) -> None:
        """Those who are ready begin, as soon as they are enough for a replica."""
        self._bench.members += ready
        teams = self._bench.take_teams()
        if self._next_replica and teams:
            names = ", ".join(member.place.machine for team in teams for member in team)
            self.served.observer.say(f"{names} joins at step {self.progress()[0]}")
        self._launch(teams)

    def _launch(self, teams: Sequence[Sequence[MemberHandle]]) -> None:
        """Let replicas begin. All are known everywhere before any does its first step."""
        if not teams:
            return
        numbers = [self._next_replica + i for i in range(len(teams))]
        self._next_replica += len(teams)
        ray.get([self.coordinator.join.remote(number) for number in numbers], timeout=START_S)
        if self.served.terms.bound is not None:
            self.shards.join(numbers)
        where = self.shards.where()
        tensors = ray.put(self.current_network())
        for number, members in zip(numbers, teams, strict=True):
            meeting = self._meeting(members) if len(members) > 1 else ()
            for position, member in enumerate(members):
                orders = ReplicaOrders(
                    replica=number,
                    ranks=tuple(self._rank_of(m.place) for m in members),
                    position=position,
                    machine=member.place.machine,
                    generation=self.served.generation,
                    plan=self.served.plan,
                    layout=self.served.layout,
                    terms=self.served.terms,
                    session=self.shards.session,
                    where=where,
                    coordinator=self.coordinator,
                )
                member.outcome = None
                member.call = member.actor.replicate.remote(orders, tensors, *meeting)
            self.teams[number] = Team(number=number, members=[*members])

    @staticmethod
    def _meeting(members: Sequence[MemberHandle]) -> tuple[str, int | None]:
        """Where the devices of a replica meet; no port if the first is dead, as will be noticed."""
        first = members[0]
        with contextlib.suppress(*GONE, GetTimeoutError):
            return first.place.address, ray.get(first.actor.open_store.remote(), timeout=ANSWER_S)
        return first.place.address, None

    def _rank_of(self, place: Place) -> int:
        return [known.index for known in self.served.places].index(place.index)

    def _position_of(self, member: MemberHandle) -> int:
        return self._rank_of(member.place) % self.served.layout.team

    def current_network(self) -> Tensors:
        """The network as it is known here, with the mean of the replicas' buffers."""
        trained = {name for name, _ in self.served.plan.problem.network.shapes}
        if all(name in trained for name in self.network):
            return self.network
        members = [*self.at_work, *self.resting]
        found = []
        answering = [member for member in members if member.silent_since is None]
        for member, call in [(m, m.actor.buffers.remote()) for m in answering]:
            samples = self.served.log.tally.by_rank[self._rank_of(member.place)]
            with contextlib.suppress(*GONE, GetTimeoutError):
                found.append((ray.get(call, timeout=ANSWER_S), float(samples)))
        known = average_buffers([(buffers, n) for buffers, n in found if n])
        self.network |= {name: known[name] for name in known if name in self.network}
        return self.network

    def drain(self) -> None:
        """Take what replicas have reported."""
        members = self.at_work
        events = fetch(members)
        ranks = {content["rank"] for kind, content in events if kind == "record"}
        self.recruits.note_step(m for m in members if self._rank_of(m.place) in ranks)
        self.take(events)
        self._give_up_on_silent()
        for member in members:
            if member.silent_since is not None:
                continue
            if self.served.log.wants_clock(rank := self._rank_of(member.place)):
                asked = time.time()
                with contextlib.suppress(*GONE, GetTimeoutError):
                    said = ray.get(member.actor.clock.remote(), timeout=POLL_S)
                    self.served.log.clock(rank, member.place.machine, asked, said, time.time())

    def _give_up_on_silent(self) -> None:
        """A replica that neither answers nor dies has what it leased for ever: it is ended."""
        patience_s = self.served.job.settings.timeout_s + POLL_PATIENCE_S
        for member in self.at_work:
            since = member.silent_since
            if member.outcome or since is None or time.monotonic() < since + patience_s:
                continue
            self.served.observer.say(
                f"{member.place.machine} has not answered for {patience_s:.0f} s: its process is "
                "ended",
                "warning",
            )
            end(member)
            member.outcome = Outcome(kind="peer lost", step=None, detail="silent")

    def newest_version(self, shard: int, incarnation: int) -> int:
        """The newest version of a shard, as it was then, that some replica has been told of."""
        known = [self.served.log.versions.get(shard, (0, 0))]
        for call in [m.actor.newest.remote() for m in self.at_work if m.silent_since is None]:
            with contextlib.suppress(*GONE, GetTimeoutError):
                known.append(ray.get(call, timeout=NEWEST_S).get(shard, (0, 0)))
        return max((version for of, version in known if of == incarnation), default=0)

    def take(self, events: Sequence[Event]) -> None:
        """Keep what replicas report; a step is done once its records are here, and cannot be lost.

        There is one of each device of the replica.
        """
        self.served.log.take(events)
        done: dict[int, list[tuple[int, float]]] = {}
        for kind, content in events:
            if kind != "record":
                continue
            replica, step = content["replica"], content["step"]
            self._fruitless = 0
            self.paces.note(content["rank"], content["compute_s"])
            reported = self._reported[replica, step]
            reported.append(content["wall_s"])
            if len(reported) == self.served.layout.team:
                done.setdefault(replica, []).append((step, max(reported)))
                del self._reported[replica, step]
        for replica, steps in done.items():
            seconds = sum(wall_s for _, wall_s in steps)
            self.coordinator.done.remote(replica, [step for step, _ in steps], seconds)

    def collect(self, done: Sequence[Any], *, stopping: bool) -> None:
        """Parts of replicas have ended whose calls are `done`: as they should, or otherwise.

        Args:
            stopping: whoever is lost is not replaced any more.

        Raises:
            DivergedError: a replica's loss is not finite.
            ConvoyError: what the last replica raised that was at work.
        """
        for team in list(self.teams.values()):
            team.collect(done)
            if team.is_lost:
                self._mourn(team, stopping=stopping)
            elif team.has_finished:
                self.take(fetch(team.members))
                del self.teams[team.number]
                self.resting += team.members

    def _mourn(self, team: Team, *, stopping: bool) -> None:
        """A replica is lost: nobody waits for it, and others do what it was doing."""
        if team.failure is not None:
            if len(self.teams) == 1:
                raise team.failure
            self.served.observer.say(str(team.failure), "warning")
        self.shards.forget(team.number)
        left, gone = team.part()
        self.take(fetch(left))
        del self.teams[team.number]
        for key in [key for key in self._reported if key[0] == team.number]:
            del self._reported[key]
        back = ray.get(self.coordinator.forget.remote(team.number), timeout=ANSWER_S)
        lost = [member.place.machine for member in gone or left]
        self.losses.append({"step": self.progress()[0], "lost": lost, "again": len(back)})
        others = ", ".join(member.place.machine for member in left)
        what = f"{', '.join(lost)} lost its replica" + (f", and {others} with it" if left else "")
        if not gone:
            what = f"{others} lost touch with each other, and their replica begins anew"
            self._fruitless += 1
        self.served.observer.say(f"{what}; of its steps {len(back)} are leased again", "warning")
        if self._fruitless > FRUITLESS_REPLICAS:
            onwards = self.shards.snapshots.how_to_go_on()
            raise CrewError(
                f"{others} have lost touch {self._fruitless} times without doing a step. `convoy "
                f"doctor` tells whether they reach each other. {onwards}"
            )
        if stopping:
            self._bench.members += left
            return
        for member in gone:
            self.paces.forget(self._rank_of(member.place))
            self.recruits.replace(member)
        self.welcome(left)

    def look_for_machines(self) -> None:
        """Machines that have come since, or have come back, get a replica."""
        places = self.served.places
        nodes = {place.node_id for place in places}
        taken: set[int] = set()
        try:
            there = self.served.find_places()
        except ConvoyError as error:  # somebody is editing the cluster file, say
            if str(error) not in self._complaints:
                self._complaints.add(str(error))
                self.served.observer.say(
                    f"machines that come are not looked for: {error}", "warning"
                )
            return
        for found in there:
            if found.node_id in nodes:
                continue
            known = [p for p in places if p.machine == found.machine and p.index not in taken]
            index = known[0].index if known else 1 + max(p.index for p in places)
            taken.add(index)
            place = replace(found, index=index)
            if known:
                places[places.index(known[0])] = place
            else:
                places.append(place)
            self.recruits.members.append(self.hire(place))

    def judge(self, tensors: Tensors) -> bool:
        """Judge the trained network, by those who are still there; False if nobody is."""
        members = [*self.resting, *self._bench.members]
        weights = [self.served.log.tally.by_rank[self._rank_of(m.place)] for m in members]
        sums, left = judge(tensors, members, weights, self.served.log.test_samples)
        self.resting, self._bench.members = left, []
        if sums["samples"] < self.served.log.test_samples:
            return False
        self.served.log.evaluated(self.served.log.num_steps - 1, sums)
        return True

    def end(self) -> None:
        """Give back those who rest, and end the others."""
        dismiss(self.resting, self.served.pool, reusable=True)
        unfinished = [*self.at_work, *self._bench.members, *self.recruits.members]
        dismiss(unfinished, self.served.pool, reusable=False)

    def progress(self) -> tuple[int, tuple[int, ...]]:
        """All steps before the first figure are done; and those beyond it that are, too."""
        found: tuple[int, tuple[int, ...]] = ray.get(
            self.coordinator.progress.remote(), timeout=ANSWER_S
        )
        return found

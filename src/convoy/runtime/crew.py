"""A crew: ranks as Ray actors that form, train, and re-form when one of them dies.

    form ──▶ train ──┬──▶ finished
     ▲               ├──▶ stopped: Ctrl-C, a rank that joins, other shares ──┐
     │               └──▶ a rank died ──▶ survivors report ──────────────────┤
     └──────────────── re-plan, next generation ◀────────────────────────────┘

The driver only directs. State goes from rank to rank; what the driver keeps is where each
rank is, and the newest checkpoint. Survivors go on at once, from the most advanced of them;
the lost rank is started again on its machine meanwhile and joins at a step boundary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from convoy import state
from convoy.errors import CrewError
from convoy.runtime import ray_session
from convoy.runtime.checkpoint import Checkpoint, parts_for
from convoy.runtime.formation import Formation, Job, Outcome, Part
from convoy.runtime.interrupt import Interrupt
from convoy.runtime.journal import Journal
from convoy.runtime.lineup import plan_for_most
from convoy.runtime.member_handle import (
    GONE,
    POLL_PATIENCE_S,
    MemberHandle,
    await_ready,
    committed,
    dismiss,
    end,
    fetch,
    foreign_error,
    hire,
    note_the_dead,
    stop_all,
)
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, threads_at
from convoy.runtime.pool import Pool
from convoy.runtime.rebalance import Balancer, Rebalancing, balancer_for
from convoy.runtime.recovery import Footing, Recovery
from convoy.runtime.recruits import Recruits
from convoy.strategies import Plan, Problem, Worker

POLL_S = 0.2
FIRST_POLL_S = 0.05  # until a crew's first step is done
FRUITLESS_FORMATIONS = 5  # crews in a row that may be lost before any step is done


@dataclass
class Crew:
    """Directs a run from its first formation to its end."""

    job: Job
    plan: Plan
    """With every place that takes part; re-made for those that are there."""
    places: Sequence[Place]
    journal: Journal
    observer: Observer
    interrupt: Interrupt
    num_steps: int
    problem: Callable[[Sequence[Worker]], Problem]
    """What given workers are to do."""
    pool: Pool
    generation: int = 0
    recoveries: list[Recovery] = field(default_factory=list)
    rebalancings: list[Rebalancing] = field(default_factory=list)
    formation: Formation | None = None
    _members: list[MemberHandle] = field(default_factory=list)
    _resting: list[MemberHandle] = field(default_factory=list)
    """Those that the plan has no use for; they are asked again when the crew forms next."""
    _recruits: Recruits = field(init=False)
    _balancer: Balancer = field(init=False)
    _taking_part: list[Place] = field(default_factory=list)
    _job_reference: Any = None

    def run(self, start: Checkpoint | None) -> state.Tensors | None:
        """Train to the end; the network's tensors, or None if interrupted before it.

        Raises:
            DivergedError: the loss is not finite any more.
            CrewError: no rank can go on.
        """
        self._job_reference = ray.put(self.job)
        self._taking_part = [self.places[w.index] for w in self.plan.problem.workers]
        self._recruits = Recruits(self.observer, self._hire)
        self._balancer = balancer_for(self.job.decided, self.job.settings)
        self._members = [self._hire(place) for place in self._taking_part]
        footing = Footing(step=start.step if start else 0, checkpoint=start)
        fruitless = 0
        tensors: state.Tensors | None = None
        try:
            await_ready(self._members)
            self.journal.timeline.mark("ranks")
            while True:
                self._form(footing)
                assert self.formation is not None
                interrupted = self._watch()
                self._drain()
                tensors = self._final_state()
                if tensors is not None:
                    self.journal.settle(self.formation.generation, self.num_steps)
                    return tensors
                advanced, footing = footing.step, self._regroup()
                saved = footing.checkpoint
                if interrupted and saved is not None and saved.step == footing.step:
                    return None  # else once more: a loss came between, and work is in memory only
                fruitless = 0 if footing.step > advanced else fruitless + 1
                if fruitless >= FRUITLESS_FORMATIONS:
                    raise CrewError(
                        f"the crew was lost {fruitless} times in a row at step {footing.step} "
                        "without finishing it. `convoy doctor` tells whether ranks reach each "
                        f"other; go on with --resume {self.journal.folder.path}"
                    )
        finally:
            dismiss(self._members, self.pool, reusable=tensors is not None)
            dismiss(self._resting, self.pool, reusable=False)  # nobody knows how they are
            dismiss(self._recruits.members, self.pool, reusable=False)

    def _hire(self, place: Place) -> MemberHandle:
        # those that were measured had their neighbours at work, and are used as they were
        measured = any(known.seconds for known in self.places)
        neighbours = self.places if measured else self._taking_part
        num_threads = threads_at(place, neighbours, self.job.settings)
        return hire(place, num_threads, self._job_reference, self.pool)

    def _form(self, footing: Footing) -> None:
        """Plan for who is there, and let them train on from `footing`."""
        self.generation += 1
        plan = self._plan_anew(footing.source)
        parts: list[Part | None] = [None] * len(plan.shares)
        source = self._take_places(plan, footing.source)
        if source is None:
            parts, source = parts_for(footing.checkpoint, len(plan.shares))
        formation = Formation(
            generation=self.generation,
            rank=0,
            plan=plan,
            machines=tuple(s.place.machine for s in self._members),
            first_step=footing.step,
            backend=self.job.backend(plan),
            source_rank=None if footing.shared else source,
            layout=self.journal.layout,
        )
        self.formation = formation
        self.journal.begin(formation)
        rebalancing = self._balancer.begin(plan, self.generation, footing.step)
        if rebalancing is not None:
            self.rebalancings.append(rebalancing)
            self.observer.say(str(rebalancing))
        leader, timeout = self._members[0], self.job.settings.timeout_s
        port: int | None = None  # they cannot meet then; who died will be noticed by `_watch`
        with contextlib.suppress(*GONE, GetTimeoutError):
            ray.get([s.actor.muster.remote(footing.step) for s in self._members], timeout=timeout)
            port = ray.get(leader.actor.open_store.remote(), timeout=timeout)
        for rank, member in enumerate(self._members):
            member.outcome = None
            orders = replace(formation, rank=rank, part=parts[rank])
            member.call = member.actor.train.remote(orders, leader.place.address, port)

    def _plan_anew(self, source: int | None) -> Plan:
        """For who is there; the `source` takes part in any case."""
        workers = self._balancer.corrected([s.place.worker() for s in self._members])
        needed = None if source is None else self._members[source].place.index
        return plan_for_most(
            lambda some: self.job.decided.plan(self.problem(some)), workers, needed
        )

    def _take_places(self, plan: Plan, source: int | None) -> int | None:
        """Put members in the order of the plan's ranks; where the `source` is then."""
        lender = self._members[source] if source is not None else None
        ranks = [worker.index for worker in plan.problem.workers]
        self._resting = [m for m in self._members if m.place.index not in ranks]
        assert lender not in self._resting
        for member in self._resting:
            self.observer.say(f"the plan has no use for {member.place.machine} now", "warning")
        self._members = [m for m in self._members if m.place.index in ranks]
        self._members.sort(key=lambda member: ranks.index(member.place.index))
        return next((r for r, member in enumerate(self._members) if member is lender), None)

    def _watch(self) -> bool:
        """Wait until every rank's part has ended; True if the user interrupted it."""
        stopping = False
        deadline: float | None = None
        while waiting := [s for s in self._members if s.outcome is None]:
            if ray_session.is_lost():
                raise CrewError(
                    "Ray's own process on this machine (raylet) died, and every rank with it. "
                    f"{self._how_to_go_on()}"
                )
            patience = POLL_S if self.journal.first_step_done_s else FIRST_POLL_S
            done, _ = ray.wait([s.call for s in waiting], num_returns=1, timeout=patience)
            for member in [s for s in waiting if s.call in done]:
                self._collect(member)
            lost = any(s.outcome and s.outcome.kind == "peer lost" for s in self._members)
            if lost and deadline is None:
                self._notice_loss()
                deadline = time.monotonic() + self._patience_s
            if deadline is not None:
                self._give_up_on_silent(deadline)
            self._drain()
            self._note_progress()
            at_work = not stopping and deadline is None
            if at_work and self.interrupt.asked:
                self.observer.say("stopping after the step under way; a checkpoint is kept")
                stopping = stop_all(self._members, "checkpoint")
            elif at_work and (self._recruits.any_ready() or self._balancer.asks):
                stopping = stop_all(self._members, "regroup")
        self._drain()
        return self.interrupt.asked

    def _collect(self, member: MemberHandle) -> None:
        try:
            member.outcome = ray.get(member.call)
        except RayTaskError as error:
            self._drain(patience_s=60.0)  # what was good until then is kept
            where = f"rank {self._members.index(member)} on {member.place.machine}"
            raise foreign_error(error, where) from None
        except GONE:
            member.outcome = Outcome(kind="peer lost", step=None, detail="died")
            member.pid = None

    def _notice_loss(self) -> None:
        """Somebody is gone: have the others stop at once and say where they are."""
        assert self.formation is not None
        self.recoveries.append(
            Recovery(
                generation=self.generation,
                step=self.journal.last_step + 1,
                lost=[],
                noticed=time.monotonic(),
            )
        )
        for member in self._members:
            if member.outcome is None:
                member.actor.release.remote(0, "lost")

    def _final_state(self) -> state.Tensors | None:
        """The trained network from any rank, since all have it; None if it is not trained yet."""
        if not all(s.outcome and s.outcome.kind == "finished" for s in self._members):
            return None
        for member in self._members:
            try:
                tensors: state.Tensors = ray.get(member.actor.final_state.remote())
            except GONE:
                member.pid = None
            else:
                return tensors
        return None

    @property
    def _patience_s(self) -> float:
        """How long a rank may be silent while others have lost a peer."""
        return self.job.settings.timeout_s + POLL_PATIENCE_S

    def _give_up_on_silent(self, deadline: float) -> None:
        """Ranks that neither answer nor die count as dead, and are made so.

        Those who have not answered since before the loss was noticed have had their time.
        """
        now = time.monotonic()
        for member in self._members:
            since = now if member.silent_since is None else member.silent_since
            if member.outcome or now < min(deadline, since + self._patience_s):
                continue
            end(member)
            member.outcome = Outcome(kind="peer lost", step=None, detail="silent")

    def _regroup(self) -> Footing:
        """After a formation has ended: who goes on, from which step, with whose state."""
        assert self.formation is not None
        note_the_dead(self._resting)
        dead = [s for s in self._members + self._resting if s.pid is None]
        # those that rested may have a state to go on from, if all others are gone
        self._members = [s for s in self._members + self._resting if s.pid is not None]
        self._resting = []
        candidates = [s for s in self._members if s.outcome and s.outcome.step is not None]
        best = max(candidates, key=committed, default=None)
        saved = self.journal.last_checkpoint
        step = committed(best) if best else -1
        if best is None or (saved is not None and saved.step > step):
            step, best = (saved.step if saved else 0), None
        self.journal.settle(self.formation.generation, step)
        if self.recoveries and self.recoveries[-1].generation == self.generation:
            self._report(dead, step)
        if not self._members and not self._recruits.members:
            raise CrewError(
                f"every rank is lost; the last step done is {self.journal.last_step}. "
                f"{self._how_to_go_on()}"
            )
        if not self._members:  # those that were on their way go on from the checkpoint
            self._recruits.await_all()
        for member in dead:
            self._recruits.replace(member)
        ready = self._recruits.take_ready()
        source = self._members.index(best) if best else None
        if ready:
            names = ", ".join(s.place.machine for s in ready)
            self.observer.say(f"{names} joins at step {step}")
        order = {id(s): s for s in sorted(self._members + ready, key=lambda s: s.place.index)}
        crew = list(order.values())
        if source is not None:
            source = crew.index(self._members[source])
        self._members = crew
        shared = source is not None and all(
            s.outcome and s.outcome.kind == "stopped" and s.outcome.step == step for s in crew
        )
        return Footing(step=step, checkpoint=saved, source=source, shared=shared)

    def _how_to_go_on(self) -> str:
        if self.journal.last_checkpoint is None:
            return "There is no checkpoint yet: start the run again"
        return f"Go on from the newest checkpoint with --resume {self.journal.folder.path}"

    def _report(self, dead: Sequence[MemberHandle], step: int) -> None:
        assert self.formation is not None
        recovery = self.recoveries[-1]
        recovery.step = max(recovery.step, step)  # the last steps may have been reported since
        old = [worker.index for worker in self.formation.plan.problem.workers]
        left = sum(member.place.index in old for member in self._members)
        for member in dead:
            index, machine = member.place.index, member.place.machine
            who = f"rank {old.index(index)}" if index in old else "a resting rank"
            recovery.lost.append(machine)
            self.observer.say(
                f"{who} on {machine} died in step {recovery.step}; "
                f"{left} of {len(old)} go on from step {step}",
                "warning",
            )
        if not dead:
            details = next(s.outcome.detail for s in self._members if s.outcome)
            self.observer.say(
                f"ranks lost touch in step {step} and form anew: {details}", "warning"
            )

    def _drain(self, patience_s: float = POLL_PATIENCE_S) -> None:
        """Take what living ranks have reported."""
        events = fetch(self._members, patience_s=patience_s)
        self._balancer.take(self.journal.take(events))

    def _note_progress(self) -> None:
        """Close the account of a recovery once the next crew has done a step."""
        done = self.journal.first_step_done_s
        if done is not None:  # whoever takes part has come back for good
            self._recruits.note_step(self._members)
        recovery = self.recoveries[-1] if self.recoveries else None
        if recovery is None or recovery.seconds is not None or done is None:
            return
        if recovery.generation < self.generation:
            recovery.seconds = done - recovery.noticed

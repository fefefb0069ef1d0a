"""A crew: ranks as Ray actors that form, train, and re-form when one of them dies.

    form ──▶ train ──┬──▶ finished
     ▲               ├──▶ stopped: Ctrl-C, or somebody joins ──┐
     │               └──▶ a rank died ──▶ survivors report ────┤
     └──────────── re-plan, next generation ◀──────────────────┘

The driver only directs. State goes from rank to rank; what the driver keeps is where each
rank is, and the newest checkpoint. Survivors go on at once, from the most advanced of them;
the lost rank is started again on its machine meanwhile and joins at a step boundary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from convoy.cost.layers import NetworkFacts
from convoy.errors import ConvoyError, CrewError
from convoy.runtime import state
from convoy.runtime.checkpoint import Checkpoint, parts_for
from convoy.runtime.formation import Formation, Job, Outcome, Part
from convoy.runtime.interrupt import Interrupt
from convoy.runtime.journal import Journal
from convoy.runtime.member import MAX_CONCURRENCY, Berth, Member, describe
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, threads_at
from convoy.strategies import Plan, Problem

POLL_S = 0.2
START_TIMEOUT_S = 120.0
RESTARTS_PER_PLACE = 5
FRUITLESS_FORMATIONS = 5
"""Crews in a row that may be lost before any step is done."""


@dataclass
class Sailor:
    """The driver's view of one member."""

    place: Place
    actor: Any
    ready: Any
    """Reference to the process id, there once it is prepared."""
    pid: int | None = None
    outcome: Outcome | None = None


@dataclass
class Recovery:
    """A crew was lost, and how long it took until work went on."""

    generation: int
    """The crew that was lost."""
    step: int
    lost: list[str]
    noticed: float
    """time.monotonic()"""
    seconds: float | None = None


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
    network: NetworkFacts
    element_bytes: int
    generation: int = 0
    recoveries: list[Recovery] = field(default_factory=list)
    formation: Formation | None = None
    _sailors: list[Sailor] = field(default_factory=list)
    _joining: list[Sailor] = field(default_factory=list)
    _restarts: dict[int, int] = field(default_factory=dict)
    _taking_part: list[Place] = field(default_factory=list)
    _job_reference: Any = None

    def sail(self, start: Checkpoint | None) -> state.Tensors | None:
        """Train to the end; the network's tensors, or None if interrupted before it.

        Raises:
            DivergedError: the loss is not finite any more.
            CrewError: no rank can go on.
        """
        self._job_reference = ray.put(self.job)
        self._taking_part = [self.places[w.index] for w in self.plan.problem.workers]
        self._sailors = [self._hire(place) for place in self._taking_part]
        checkpoint = start
        source: int | None = None
        step = start.step if start else 0
        fruitless = 0
        try:
            self._await_ready(self._sailors)
            self.journal.timeline.mark("ranks")
            while True:
                self._form(step, source, checkpoint)
                assert self.formation is not None
                interrupted = self._watch()
                self._drain()
                outcomes = {s.place.index: s.outcome for s in self._sailors if s.outcome}
                if all(o.kind == "finished" for o in outcomes.values()) and len(outcomes) == len(
                    self._sailors
                ):
                    self.journal.settle(self.formation.generation, self.num_steps)
                    tensors: state.Tensors = ray.get(self._sailors[0].actor.final_state.remote())
                    return tensors
                advanced = step
                step, source, checkpoint = self._regroup()
                if interrupted:
                    return None
                fruitless = 0 if step > advanced else fruitless + 1
                if fruitless >= FRUITLESS_FORMATIONS:
                    raise CrewError(
                        f"the crew was lost {fruitless} times in a row at step {step} without "
                        "finishing it. `convoy doctor` tells whether ranks reach each other; "
                        f"go on with --resume {self.journal.folder.path}"
                    )
        finally:
            for sailor in self._sailors + self._joining:
                ray.kill(sailor.actor)

    def _hire(self, place: Place) -> Sailor:
        """Start an actor at `place`; it prepares in the background."""
        num_threads = threads_at(place, self._taking_part, self.job.settings)
        options: dict[str, Any] = {
            "max_concurrency": MAX_CONCURRENCY,
            "num_gpus": 1 if place.device.startswith("cuda") else 0,
            "num_cpus": num_threads if place.shared else 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node_id, soft=False),
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(num_threads)}},
        }
        berth = Berth(address=place.address, device=place.device, num_threads=num_threads)
        actor = ray.remote(Member).options(**options).remote(berth)
        return Sailor(place=place, actor=actor, ready=actor.prepare.remote(self._job_reference))

    def _await_ready(self, sailors: Sequence[Sailor]) -> None:
        for sailor in sailors:
            where = f"the rank on {sailor.place.machine} ({sailor.place.device})"
            try:
                sailor.pid = ray.get(sailor.ready, timeout=START_TIMEOUT_S)
            except GetTimeoutError:
                raise CrewError(
                    f"{where} did not start within {START_TIMEOUT_S:.0f} s. Does the cluster have "
                    f"free cores there? `convoy doctor` tells more"
                ) from None
            except RayTaskError as error:
                raise self._foreign(error, where) from None
            except RayActorError as error:
                raise CrewError(f"{where} died while it started: {error}") from None

    def _form(self, step: int, source: int | None, checkpoint: Checkpoint | None) -> None:
        """Plan for who is there, and let them train from `step`."""
        self.generation += 1
        plan = self._plan_for(self._sailors)
        parts: list[Part | None] = [None] * len(plan.shares)
        if source is None:
            parts, source = parts_for(checkpoint, len(plan.shares))
        formation = Formation(
            generation=self.generation,
            rank=0,
            plan=plan,
            machines=tuple(s.place.machine for s in self._sailors),
            first_step=step,
            backend=_backend(self._sailors),
            source_rank=source,
            layout=self.journal.layout,
        )
        self.formation = formation
        self.journal.begin(formation)
        leader = self._sailors[0]
        try:
            ray.get([s.actor.muster.remote(step) for s in self._sailors])
            port = ray.get(leader.actor.open_store.remote()) if len(self._sailors) > 1 else 0
        except RayActorError:
            port = 0  # who died will be noticed by `_watch`
        for rank, sailor in enumerate(self._sailors):
            sailor.outcome = None
            orders = replace(formation, rank=rank, part=parts[rank])
            sailor.ready = sailor.actor.train.remote(orders, leader.place.address, port)

    def _plan_for(self, sailors: Sequence[Sailor]) -> Plan:
        workers = tuple(s.place.worker() for s in sailors)
        problem = Problem(
            batch_size=self.job.settings.batch_size,
            workers=workers,
            network=self.network,
            element_bytes=self.element_bytes,
        )
        return self.job.strategy.plan(problem)

    def _watch(self) -> bool:
        """Wait until every rank's part has ended; True if the user interrupted it."""
        stopping = False
        deadline: float | None = None
        while waiting := [s for s in self._sailors if s.outcome is None]:
            done, _ = ray.wait([s.ready for s in waiting], num_returns=1, timeout=POLL_S)
            for sailor in [s for s in waiting if s.ready in done]:
                self._collect(sailor)
            lost = any(s.outcome and s.outcome.kind == "peer lost" for s in self._sailors)
            if lost and deadline is None:
                self._notice_loss()
                deadline = time.monotonic() + self.job.settings.timeout_s + 10
            if deadline is not None and time.monotonic() > deadline:
                self._give_up_on([s for s in self._sailors if s.outcome is None])
            self._drain()
            self._note_progress()
            if self.interrupt.asked and not stopping and deadline is None:
                self.observer.say("stopping after the step under way; a checkpoint is kept")
                stopping = self._stop_all("checkpoint")
            elif self._joining and not stopping and deadline is None:
                stopping = self._admit_ready()
        self._drain()
        return self.interrupt.asked

    def _collect(self, sailor: Sailor) -> None:
        try:
            sailor.outcome = ray.get(sailor.ready)
        except RayTaskError as error:
            where = f"the rank on {sailor.place.machine}"
            raise self._foreign(error, where) from None
        except RayActorError:
            sailor.outcome = Outcome(kind="peer lost", step=None, detail="died")
            sailor.pid = None

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
        for sailor in self._sailors:
            if sailor.outcome is None:
                sailor.actor.release.remote(0, "lost")

    def _give_up_on(self, silent: Sequence[Sailor]) -> None:
        """Ranks that neither answer nor die count as dead, and are made so."""
        for sailor in silent:
            ray.kill(sailor.actor)
            sailor.outcome = Outcome(kind="peer lost", step=None, detail="silent")
            sailor.pid = None

    def _regroup(self) -> tuple[int, int | None, Checkpoint | None]:
        """After a formation has ended: who goes on, from which step, with whose state."""
        assert self.formation is not None
        dead = [s for s in self._sailors if s.pid is None]
        self._sailors = [s for s in self._sailors if s.pid is not None]
        candidates = [s for s in self._sailors if s.outcome and s.outcome.step is not None]
        best = max(candidates, key=_committed, default=None)
        saved = self.journal.last_checkpoint
        step = _committed(best) if best else -1
        if best is None or (saved is not None and saved.step > step):
            step, best = (saved.step if saved else 0), None
        self.journal.settle(self.formation.generation, step)
        if self.recoveries and self.recoveries[-1].generation == self.generation:
            self._report(dead, step)
        if not self._sailors and not self._joining:
            raise CrewError(
                f"every rank is lost; the last step done is {self.journal.last_step}. Go on "
                f"from the newest checkpoint with --resume {self.journal.folder.path}"
            )
        if not self._sailors:  # those that were on their way go on from the checkpoint
            self._await_ready(self._joining)
        for sailor in dead:
            self._replace(sailor)
        ready = [s for s in self._joining if s.pid is not None]
        self._joining = [s for s in self._joining if s.pid is None]
        source = self._sailors.index(best) if best else None
        if ready:
            names = ", ".join(s.place.machine for s in ready)
            self.observer.say(f"{names} joins at step {step}")
        order = {id(s): s for s in sorted(self._sailors + ready, key=lambda s: s.place.index)}
        crew = list(order.values())
        if source is not None:
            source = crew.index(self._sailors[source])
        self._sailors = crew
        return step, source, saved

    def _report(self, dead: Sequence[Sailor], step: int) -> None:
        assert self.formation is not None
        recovery = self.recoveries[-1]
        old = list(self.formation.plan.problem.workers)
        for sailor in dead:
            rank = next(i for i, w in enumerate(old) if w.index == sailor.place.index)
            recovery.lost.append(sailor.place.machine)
            self.observer.say(
                f"rank {rank} on {sailor.place.machine} died in step {step}; "
                f"{len(self._sailors)} of {len(old)} go on from there",
                "warning",
            )
        if not dead:
            details = next(s.outcome.detail for s in self._sailors if s.outcome)
            self.observer.say(
                f"ranks lost touch in step {step} and form anew: {details}", "warning"
            )

    def _replace(self, dead: Sailor) -> None:
        """Start the lost rank again, if its machine lives and has not lost it too often."""
        index = dead.place.index
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._restarts[index] = self._restarts.get(index, 0) + 1
        if dead.place.node_id not in alive:
            self.observer.say(
                f"{dead.place.machine} itself is gone: going on without it", "warning"
            )
        elif self._restarts[index] > RESTARTS_PER_PLACE:
            self.observer.say(
                f"{dead.place.machine} has lost its rank {RESTARTS_PER_PLACE} times: going on "
                "without it",
                "warning",
            )
        else:
            self._joining.append(self._hire(dead.place))

    def _admit_ready(self) -> bool:
        """Stop at a step boundary if somebody who joins is ready; whether it stops."""
        for sailor in list(self._joining):
            done, _ = ray.wait([sailor.ready], timeout=0)
            if not done:
                continue
            try:
                sailor.pid = ray.get(sailor.ready)
            except (RayActorError, RayTaskError) as error:
                self._joining.remove(sailor)
                self.observer.say(
                    f"{sailor.place.machine} could not be started again: {describe(error)}",
                    "warning",
                )
        if not any(s.pid is not None for s in self._joining):
            return False
        return self._stop_all("regroup")

    def _stop_all(self, reason: str) -> bool:
        """Have all ranks stop at one boundary; False if one is lost meanwhile."""
        try:
            begun = ray.get([s.actor.hold.remote() for s in self._sailors], timeout=10)
            boundary = max(begun) + 1
            ray.get([s.actor.release.remote(boundary, reason) for s in self._sailors], timeout=10)
        except (RayActorError, GetTimeoutError):
            for sailor in self._sailors:
                sailor.actor.release.remote(0, "lost")
            return False
        return True

    def _drain(self) -> None:
        """Take what living ranks have reported."""
        polls = [s.actor.poll.remote() for s in self._sailors]
        events = []
        for poll in polls:
            try:
                events += ray.get(poll, timeout=10)
            except (RayActorError, GetTimeoutError):
                continue
        self.journal.take(events)

    def _note_progress(self) -> None:
        """Close the account of a recovery once the next crew has done a step."""
        done = self.journal.first_step_done_s
        recovery = self.recoveries[-1] if self.recoveries else None
        if recovery is None or recovery.seconds is not None or done is None:
            return
        if recovery.generation < self.generation:
            recovery.seconds = done - recovery.noticed

    def _foreign(self, error: RayTaskError, where: str) -> ConvoyError:
        cause = error.cause
        if isinstance(cause, ConvoyError):
            return cause
        return CrewError(f"{where} failed: {describe(error)}\n{error}")


def _committed(sailor: Sailor) -> int:
    """The step that `sailor`'s state goes on from; -1 where it has none to offer."""
    step = sailor.outcome.step if sailor.outcome else None
    return -1 if step is None else step


def _backend(sailors: Sequence[Sailor]) -> str:
    """NCCL where every rank has a GPU of its own; Gloo, which moves both kinds, otherwise."""
    return "nccl" if all(s.place.device.startswith("cuda") for s in sailors) else "gloo"

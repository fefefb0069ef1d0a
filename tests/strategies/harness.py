"""Strategies over real ranks: processes that meet through Gloo on the loopback interface.

    report, *_ = crew.run(job_for(network="plain", strategy="data"), weights=(1, 2, 5))
    report.state, report.records, report.outcome

Starting a process takes seconds, so a `Crew` keeps its processes and gives them one job after
another, each formation under a store of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from convoy import networks
from convoy.cost.layers import facts_of
from convoy.runtime.formation import Formation, Job, Outcome, Part
from convoy.runtime.settings import TrainSettings
from convoy.state import Tensors
from convoy.strategies import Plan, Problem, Worker, make_strategy

from . import small_networks
from .members import Member, Nursery


def job_for(
    network: str = "plain",
    strategy: str = "data",
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Job:
    """A short training: 7 steps of 8, 8, 2, 8, 8, 2 and 8 samples in double precision."""
    values: dict[str, Any] = {"batch_size": 8, "steps": 7, "lr": 0.1, "seed": 3}
    values |= {"precision": "fp64", "memory_format": "contiguous", "timeout_s": 30.0}
    return Job(
        settings=TrainSettings(strategy=strategy, **(values | settings)),
        strategy=make_strategy(strategy, options or {}),
        network=f"small_networks:{network}",
        dataset=small_networks.DATA,
    )


def network_of(job: Job) -> Any:
    """The job's network, with torch's own first weights."""
    assert isinstance(job.network, str)
    module, _, function = job.network.partition(":")
    if module == "small_networks":
        return getattr(small_networks, function)()
    _, _, classes, _ = str(job.dataset).split(":")
    return networks.build(job.network, input_shape=shape_of(job), num_classes=int(classes))


def shape_of(job: Job) -> tuple[int, int, int]:
    """Of the images of the job's data set, which is synthetic:CxHxW:classes:samples."""
    channels, height, width = map(int, str(job.dataset).split(":")[1].split("x"))
    return channels, height, width


def plan_of(job: Job, weights: Sequence[float]) -> Plan:
    """The plan of the job's strategy for workers of these weights."""
    workers = tuple(
        Worker(index=i, machine=f"m{i}", device="cpu", weight=w) for i, w in enumerate(weights)
    )
    problem = Problem(
        batch_size=job.settings.batch_size,
        workers=workers,
        network=facts_of(network_of(job), shape_of(job)),
        element_bytes=8 if job.settings.precision == "fp64" else 4,
        mixed=job.settings.precision == "bf16",
    )
    return job.strategy.plan(problem)


@dataclass(frozen=True, kw_only=True)
class Halt:
    """Where one rank stops and says so, until it is killed or told to go on.

    `place` is "forward" or "backward", in the middle of that pass of `step`, or "record", once
    `step` is done.
    """

    rank: int
    place: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a rank leaves when its part in a formation has ended."""

    rank: int
    outcome: Outcome
    state: Tensors
    """As `convoy.state` packs it."""
    records: list[dict[str, Any]]
    checkpoints: list[tuple[int, Part, bool]]
    """Step, part, and whether it stands for every rank."""
    evaluations: list[dict[str, Any]]


class Formed:
    """A formation under way."""

    def __init__(self, members: Sequence[Member], halt: Halt | None) -> None:
        self._members, self._halt = list(members), halt
        self._reported = 0

    def await_halt(self) -> None:
        """Wait until the rank that is to halt has done so."""
        assert self._halt is not None
        self._members[self._halt.rank].expect("halted")

    def go_on(self) -> None:
        """Wake the rank that has halted."""
        assert self._halt is not None
        self._members[self._halt.rank].ask("go_on")

    def kill(self, rank: int) -> None:
        """End a rank's process; it will not report."""
        self._members.pop(rank).kill()

    def hold(self) -> list[int]:
        """Hold every rank's gate; the last step that each has begun."""
        return [member.ask("hold") for member in self._members]

    def release(self, stop_before: int, reason: str = "checkpoint") -> None:
        """Let every rank run the steps before `stop_before`."""
        for member in self._members:
            member.ask("release", stop_before=stop_before, reason=reason)

    def reports(self) -> list[Report]:
        """Wait for the end; what each rank that still lives leaves."""
        return [self.report(rank) for rank in range(len(self._members))]

    def report(self, place: int) -> Report:
        """Wait for the end of one rank's part: of those that live, that at `place`."""
        report = Report(**self._members[place].expect("report"))
        self._reported += 1
        return report

    @property
    def ended(self) -> bool:
        """Whether all have reported that still live."""
        return self._reported == len(self._members)


class Crew:
    """Processes that become ranks of one formation after another. End it with `end`."""

    def __init__(self, size: int) -> None:
        self._nursery = Nursery()
        self._size = size
        self._members: list[Member] = []
        self._generation = 0
        self._formed: Formed | None = None
        self._layout = "contiguous"

    @property
    def pids(self) -> set[int]:
        """The processes that live on between tests."""
        return {self._nursery.pid} | {member.pid for member in self._members}

    def build(self, job: Job) -> None:
        """Give every process the job; starts those that are missing, were killed or hang."""
        self._layout = job.settings.memory_format
        if self._formed is not None and not self._formed.ended:  # a test has failed half-way
            for member in self._members:
                if member.alive:
                    member.kill()
        for place in range(self._size):
            if place == len(self._members):
                self._members.append(Member(self._nursery))
            elif not self._members[place].alive:
                self._members[place] = Member(self._nursery)
        for member in self._members:
            member.ask("build", job=job)

    def form(
        self,
        plan: Plan,
        *,
        places: Sequence[int] | None = None,
        first_step: int = 0,
        parts: Mapping[int, Part] | None = None,
        source_rank: int | None = 0,
        halt: Halt | None = None,
        stop_before: int | None = None,
    ) -> Formed:
        """Have the processes at `places` train as ranks 0, 1, ... from `first_step`.

        `parts` is what ranks load first. With `stop_before` they stop there, to regroup. Where
        there are fewer places than ranks in the plan, the last ranks do not turn up.
        """
        self._generation += 1
        members = [self._members[p] for p in places or range(len(plan.shares))]
        port = members[0].ask("open_store")
        for rank, member in enumerate(members):
            formation = Formation(
                generation=self._generation,
                rank=rank,
                plan=plan,
                machines=tuple(worker.machine for worker in plan.problem.workers),
                first_step=first_step,
                backend="gloo",
                part=(parts or {}).get(rank),
                source_rank=source_rank,
                layout=self._layout,
            )
            member.ask(
                "train",
                formation=formation,
                port=port if rank else None,
                halt=(halt.place, halt.step) if halt and halt.rank == rank else None,
                stop_before=stop_before,
            )
        self._formed = Formed(members, halt)
        return self._formed

    def run(self, job: Job, weights: Sequence[float], part: Part | None = None) -> list[Report]:
        """Train `job` from first to last step; one report per rank. Rank 0 loads `part`."""
        self.build(job)
        return self.form(plan_of(job, weights), parts={0: part} if part else None).reports()

    def end(self) -> None:
        """End every process."""
        with ExitStack() as stack:  # whatever becomes of the one, the others end too
            stack.callback(self._nursery.end)
            for member in self._members:
                if member.alive:
                    stack.callback(member.end)

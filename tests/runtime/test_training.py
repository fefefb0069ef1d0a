"""What a trainee does around a program of steps, in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from convoy.comm import Comm
from convoy.cost.schedule import Schedule
from convoy.errors import DivergedError
from convoy.runtime.events import EventSink
from convoy.runtime.formation import Formation, Job
from convoy.runtime.gate import Gate
from convoy.runtime.settings import TrainSettings
from convoy.runtime.training import Trainee
from convoy.strategies import Completed, Plan, Problem, Strategy
from convoy.strategies.base import Program, Rank


@dataclass(frozen=True, kw_only=True)
class Ruinous(Strategy):
    """One step, after which the weights are no numbers; notes when it is let go of."""

    name: ClassVar[str] = "ruinous"
    summary: ClassVar[str] = "for this test"
    notes: list[str]

    def plan(self, problem: Problem) -> Plan:
        raise NotImplementedError

    def schedule(self, plan: Plan, step: int) -> Schedule:
        raise NotImplementedError

    def run(self, rank: Rank) -> Program:
        try:
            for batch in rank.batches:
                next(iter(rank.model.parameters())).data.fill_(torch.nan)
                yield Completed(batch=batch, loss_sum=torch.tensor(1.0))
        finally:
            self.notes.append("program closed")


def test_a_program_is_closed_before_its_group(
    formation: Callable[..., Formation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a step is good and what follows is not: what holds the group goes before it."""
    notes: list[str] = []
    monkeypatch.setattr(Comm, "close", lambda self: notes.append("group left"))
    job = Job(
        settings=TrainSettings(batch_size=2, steps=2, checkpoint_every=1, memory_format="auto"),
        strategy=Ruinous(notes=notes),
        network=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)),
        dataset="synthetic:1x4x4:3:6",
    )
    gate, reports = Gate(), list[Any]()
    gate.reset(0)
    trainee = Trainee(job, torch.device("cpu"), torch.get_num_threads())
    with pytest.raises(DivergedError, match="no longer finite after step 0") as raised:
        trainee.train(formation([2]), gate, EventSink(reports.append), None)
    assert raised.value.__traceback__ is not None  # which holds the frames, as Ray does
    assert notes == ["program closed", "group left"]
    assert reports

"""`single`: one device does everything. The baseline that any distribution has to beat.

forward ─▶ backward ─▶ update
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from convoy.cost.schedule import Schedule
from convoy.strategies.base import Completed, Plan, Problem, Program, Rank, Strategy
from convoy.strategies.passes import Drawing, draw_passes


@dataclass(frozen=True, kw_only=True)
class Single(Strategy):
    """Train on the worker with the highest weight; the others stay out."""

    name: ClassVar[str] = "single"
    summary: ClassVar[str] = "one device, the baseline"
    uses_several: ClassVar[bool] = False

    def plan(self, problem: Problem) -> Plan:
        """Choose the fastest worker (the first of equals)."""
        size = problem.batch_size
        if all(worker.seconds for worker in problem.workers):
            fastest = min(problem.workers, key=lambda w: w.seconds(size) if w.seconds else 0.0)
        else:
            fastest = max(problem.workers, key=lambda worker: worker.weight)
        return Plan(
            problem=replace(problem, workers=(fastest,)),
            shares=(problem.batch_size,),
        )

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """Forward, backward, update, one after another. Nothing is sent."""
        del step  # every step is alike
        drawing = Drawing()
        last, _ = draw_passes(drawing, plan.problem.network, plan.shares)
        drawing.compute("update", [0], last, "")
        return drawing.schedule()

    def run(self, rank: Rank) -> Program:
        """Plain PyTorch."""
        for batch in rank.batches:
            loss_sum = rank.loss(rank.model, batch)
            (loss_sum / batch.step_samples).backward()
            rank.update(batch, loss_sum)
            rank.commit(batch.step + 1, False)
            if batch.evaluates:
                rank.evaluate(batch.step)
            yield Completed(batch=batch, loss_sum=loss_sum)

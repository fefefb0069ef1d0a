"""`averaging`: ranks run SGD on their own and average their parameters every H steps.

                 ┌── H steps ──┐   ┌── H steps ──┐
    rank 0   sync│step step ...│ A │step step ...│ A      A: all-reduce of parameters,
    rank 1   sync│step step ...│ A │step step ...│ A         buffers and optimizer state,
             └ sync_first      └───┘                         weighted by samples

H = 'end' is 'parallel SGD': run alone, average once (Chavan & Kulkarni, algorithm 4;
Zinkevich et al. 2010, algorithm 3). `sync_first` steps of synchronous SGD before the first
local one make it post-local SGD (Lin et al. 2020, section 3).

The optimizer's state (momentum, second moments) is averaged with the parameters: a momentum
that belongs to other parameters would push the average away from where it stands. Averages
are weighted by the samples that each rank trained on since the last one, so unequal shares
count for what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from convoy.cost.schedule import Schedule
from convoy.errors import UsageError
from convoy.strategies.averages import average, averaged_tensors, network_tensors
from convoy.strategies.base import (
    Completed,
    Pending,
    Plan,
    Problem,
    Program,
    Rank,
    Strategy,
    shares_for,
)
from convoy.strategies.passes import Drawing, draw_passes


@dataclass(frozen=True, kw_only=True)
class ParameterAveraging(Strategy):
    """Local SGD with averages weighted by sample count."""

    name: ClassVar[str] = "averaging"
    summary: ClassVar[str] = "each rank trains alone; parameters are averaged every H steps"
    exact: ClassVar[bool] = False

    average_every: int | Literal["end"] = field(
        default=8, metadata={"help": "steps between averages, or end"}
    )
    """H: steps between averages, or 'end' for one average when training ends."""
    sync_first: int = field(default=0, metadata={"help": "synchronous steps first"})
    """Steps at the start with gradients summed every step, as `data` does."""

    def __post_init__(self) -> None:
        every = self.average_every
        if every != "end" and (type(every) is not int or every < 1):
            raise UsageError(f"--average-every {every}: expected 1 or more steps, or 'end'")
        if type(self.sync_first) is not int or self.sync_first < 0:
            raise UsageError(f"--sync-first {self.sync_first}: expected 0 or more steps")

    def plan(self, problem: Problem) -> Plan:
        """Share each step's samples so that all finish together, at least one per worker."""
        return Plan(problem=problem, shares=shares_for(problem))

    def period(self, plan: Plan) -> tuple[int, int]:
        """The local steps up to an average, past those of `sync_first`."""
        del plan
        every = 1 if self.average_every == "end" else self.average_every
        return self.sync_first, every

    def averages_after(self, step: int) -> bool:
        """Whether an average follows `step` by the schedule (one always ends the run)."""
        if step < self.sync_first or self.average_every == "end":
            return False
        return (step - self.sync_first + 1) % self.average_every == 0

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """A step alone, or with gradients summed (`sync_first`), or with an average after it.

        With plain SGD; each tensor of optimizer state per parameter travels as the parameters.
        """
        network, width = plan.problem.network, plan.problem.element_bytes
        several, drawing = len(plan.shares) > 1, Drawing()
        synchronous = several and step < self.sync_first
        last, _ = draw_passes(drawing, network, plan.shares)
        if synchronous:
            last = [(drawing.all_reduce(network.num_parameters * width, last),)] * len(last)
        last = drawing.compute("update", [0] * len(plan.shares), last, "")
        if several and self.averages_after(step):
            last = drawing.compute("average", [0] * len(plan.shares), last, "")
            of_parameters = network.num_parameters * (1 + plan.problem.optimizer_states)
            drawing.all_reduce((of_parameters + network.num_buffers) * width, last)
        return drawing.schedule()

    def run(self, rank: Rank) -> Program:
        """Local steps; an average every H of them, and one after the last."""
        alone = rank.comm.world_size == 1
        pending = rank.pending
        step = rank.first_step
        if pending == Pending():
            rank.commit(step, not alone)
        for batch in rank.batches:
            synchronous = alone or batch.step < self.sync_first
            loss_sum = torch.zeros(())
            if batch.samples:  # a stand-in for none would leave its mark on running statistics
                loss_sum = rank.loss(rank.model, batch)
                (loss_sum / (batch.step_samples if synchronous else batch.samples)).backward()
            if synchronous:
                _sum_gradients(rank)
            if batch.samples or synchronous:
                rank.update(batch, loss_sum)
            if not synchronous:
                pending = Pending(
                    samples=pending.samples + batch.samples,
                    step_samples=pending.step_samples + batch.step_samples,
                )
            if self.averages_after(batch.step) or batch.ends_run:
                pending = _average_all(rank, pending)
            step = batch.step + 1
            if pending == Pending():
                rank.commit(step, not alone)
            else:
                rank.diverge(pending)
            if batch.evaluates:
                with _as_average(rank, pending):
                    rank.evaluate(batch.step)
            yield Completed(batch=batch, loss_sum=loss_sum)
        if pending != Pending() and rank.regroups():
            _average_all(rank, pending)
            rank.commit(step, True)


def _sum_gradients(rank: Rank) -> None:
    """Sum the ranks' gradients, weighted already by the divisor of the loss. Blocks."""
    if rank.comm.world_size == 1:
        return
    gradients = [
        p.grad if p.grad is not None else torch.zeros_like(p)
        for p in rank.model.parameters()
        if p.requires_grad
    ]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rank.comm.all_reduce(flat)
    trainable = [p for p in rank.model.parameters() if p.requires_grad]
    for p, part in zip(trainable, flat.split([g.numel() for g in gradients]), strict=True):
        p.grad = part.view_as(p)


def _average_all(rank: Rank, pending: Pending) -> Pending:
    """Average everything, weighted by the samples of `pending`; nothing is pending then."""
    if pending != Pending():
        tensors = averaged_tensors(rank.model, rank.optimizer)
        average(tensors, rank.comm, pending.samples / pending.step_samples)
    return Pending()


@contextmanager
def _as_average(rank: Rank, pending: Pending) -> Iterator[None]:
    """Within it the model is the average that training would return if it ended here."""
    if pending == Pending():
        yield
        return
    tensors = network_tensors(rank.model)
    own = [t.clone() for t in tensors]
    average(tensors, rank.comm, pending.samples / pending.step_samples)
    yield
    with torch.no_grad():
        for tensor, value in zip(tensors, own, strict=True):
            tensor.copy_(value)

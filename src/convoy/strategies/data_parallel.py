"""`data`: every rank holds the network and takes a share of each batch; synchronous.

    rank 0   forward ─ backward ────────┐ wait ┌ update
                         └ bucket 1 ══╗ │      │
                            bucket 2 ═╬═╪══════┤        ══ all-reduce of gradients,
                         ┌ bucket 1 ══╝ │      │           overlapping backward
    rank 1   forward ─ backward ────────┘      └ update

The loss of a rank is the sum over its samples divided by the samples of the whole step, so
gradients are weighted before they are sent and their sum is the gradient that one machine
would compute, whatever the shares (Sakiyama et al.; Chavan & Kulkarni, algorithm 2, both
with equal shares).

DistributedDataParallel does the bucketing and the overlap (`replica.py`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from convoy.comm import peer_loss
from convoy.cost.schedule import Schedule
from convoy.errors import UnknownNameError
from convoy.strategies.base import Completed, Plan, Problem, Program, Rank, Strategy, shares_for
from convoy.strategies.passes import Drawing, draw_passes
from convoy.strategies.replica import buffers_kept, replicated

WIRES = ("fp32", "bf16")
BATCH_NORMS = ("sync", "local")


@dataclass(frozen=True, kw_only=True)
class DataParallel(Strategy):
    """Synchronous data parallelism with shares in proportion to the workers' weights."""

    name: ClassVar[str] = "data"
    summary: ClassVar[str] = "the batch is cut by speed; gradients are summed every step"
    exchanges_gradients: ClassVar[bool] = True
    rebalances: ClassVar[bool] = True

    wire: Literal["fp32", "bf16"] = field(
        default="fp32", metadata={"help": "fp32 or bf16 between ranks"}
    )
    """What gradients travel as: parameters' own precision, or bfloat16 (half the bytes)."""
    batch_norm: Literal["sync", "local"] = field(
        default="sync", metadata={"help": "sync (as one machine) or local statistics"}
    )
    """`sync`: statistics over the whole batch, as one machine would take them. `local`: over
    each rank's share, as plain DDP does; fewer messages, other mathematics."""

    def __post_init__(self) -> None:
        if self.wire not in WIRES:
            raise UnknownNameError("--wire", str(self.wire), WIRES)
        if self.batch_norm not in BATCH_NORMS:
            raise UnknownNameError("--batch-norm", str(self.batch_norm), BATCH_NORMS)

    def plan(self, problem: Problem) -> Plan:
        """Share the batch so that all finish together, at least one sample per worker."""
        return Plan(problem=problem, shares=shares_for(problem))

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """Buckets of gradients travel as the backward pass fills them; see `passes.py`."""
        del step  # every step is alike
        problem, drawing = plan.problem, Drawing()
        several = len(plan.shares) > 1
        last, reductions = draw_passes(
            drawing,
            problem.network,
            plan.shares,
            gradient_bytes=problem.element_bytes if several else 0,
            wire_bytes=2 if self.wire == "bf16" else 0,
            synchronises_batch_norm=several and self.batch_norm == "sync",
        )
        done = [(*indices, *reductions) for indices in last]
        drawing.compute("update", [0] * len(plan.shares), done, "")
        return drawing.schedule()

    def run(self, rank: Rank) -> Program:
        """Forward, backward with overlapping all-reduce, update; every step ends in agreement."""
        with replicated(rank, wire=self.wire, batch_norm=self.batch_norm) as model:
            for batch in rank.batches:
                # A stand-in for no samples is not to leave its mark on statistics of one's own.
                stands_in = self.batch_norm == "local" and not batch.samples
                with buffers_kept(rank.model) if stands_in else nullcontext():
                    loss_sum = rank.loss(model, batch)
                    with peer_loss():
                        (loss_sum / batch.step_samples).backward()
                rank.comm.settle()
                rank.update(batch, loss_sum)
                rank.commit(batch.step + 1, False)
                if batch.evaluates:
                    rank.evaluate(batch.step)
                yield Completed(batch=batch, loss_sum=loss_sum)

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

DistributedDataParallel does the bucketing and the overlap; a communication hook replaces its
averaging, which assumes equal shares, by a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convoy.comm import peer_loss
from convoy.cost.schedule import Schedule
from convoy.errors import UnknownNameError
from convoy.strategies.base import Completed, Equipment, Plan, Problem, Rank, Strategy, shares_for
from convoy.strategies.batch_norm import synchronise_batch_norm
from convoy.strategies.gradient_hooks import sum_gradients, sum_gradients_as_bfloat16
from convoy.strategies.passes import Drawing, draw_passes

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
        width = 2 if self.wire == "bf16" else problem.element_bytes
        last, reductions = draw_passes(
            drawing,
            problem.network,
            plan.shares,
            gradient_bytes=width if several else 0,
            synchronises_batch_norm=several and self.batch_norm == "sync",
        )
        done = [(*indices, *reductions) for indices in last]
        drawing.compute("update", [0] * len(plan.shares), done, "")
        return drawing.schedule()

    def run(self, rank: Rank) -> Iterator[Completed]:
        """Forward, backward with overlapping all-reduce, update; every step ends in agreement."""
        model = self.replicate(rank)
        for batch in rank.batches:
            # A stand-in for no samples is not to leave its mark on statistics of one's own.
            stands_in = self.batch_norm == "local" and not batch.samples
            with _buffers_kept(rank.model) if stands_in else nullcontext():
                loss_sum = rank.loss(model, batch)
                with peer_loss():
                    (loss_sum / batch.step_samples).backward()
            rank.comm.settle()
            rank.update(batch, loss_sum)
            rank.commit(batch.step + 1, False)
            if batch.evaluates:
                rank.evaluate(batch.step)
            yield Completed(batch=batch, loss_sum=loss_sum)

    def replicate(self, rank: Equipment) -> nn.Module:
        """The model as DDP wraps it; as it is where there is nobody to share with."""
        if self.batch_norm == "sync":  # alone too: it may have been one of several before
            synchronise_batch_norm(rank.model, rank.comm)
        if rank.comm.world_size == 1:
            return rank.model
        replica = DistributedDataParallel(
            rank.model,
            device_ids=[rank.device] if rank.device.type == "cuda" else None,
            init_sync=False,  # the crew has handed every rank the same state
            gradient_as_bucket_view=True,
            find_unused_parameters=bool(_unused_parameters(rank)),
        )
        # Equal already, or meant to differ. As an argument, torch 2.13 calls it deprecated.
        replica.broadcast_buffers = False
        hook = sum_gradients_as_bfloat16 if self.wire == "bf16" else sum_gradients
        replica.register_comm_hook(rank.comm, hook)
        _settle_buckets(rank, replica)
        return replica


def _unused_parameters(rank: Equipment) -> list[str]:
    """Names of the parameters that a forward pass leaves without a gradient.

    DDP waits for every gradient unless it is told that some never come.
    """
    with _untouched(rank):
        rank.loss(rank.model, rank.example).backward()
        return [
            name for name, p in rank.model.named_parameters() if p.requires_grad and p.grad is None
        ]


def _settle_buckets(rank: Equipment, replica: nn.Module) -> None:
    """Run one step that changes nothing, after which DDP's buckets keep their layout.

    DDP lays its buckets out anew after the first backward pass. The order of a ring's
    additions depends on the layout, so without this the first step after a resumption would
    round otherwise than the same step of an undisturbed run.
    """
    with _untouched(rank), peer_loss():
        rank.loss(replica, rank.example).backward()


@contextmanager
def _untouched(rank: Equipment) -> Iterator[None]:
    """Within it the model may run; afterwards its buffers and gradients are as before."""
    rank.comm.step_samples = rank.example.samples
    with _buffers_kept(rank.model):
        yield
    rank.optimizer.zero_grad(set_to_none=True)
    rank.comm.take()


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Within it the model may run forward and backward; afterwards its buffers are as before."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

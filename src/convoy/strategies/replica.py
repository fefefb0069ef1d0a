"""A network as a rank of a crew has it that exchanges gradients every step.

DistributedDataParallel does the bucketing and the overlap; a communication hook replaces its
averaging, which assumes equal shares, by a sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convoy.comm import peer_loss
from convoy.strategies.base import Equipment
from convoy.strategies.batch_norm import synchronise_batch_norm
from convoy.strategies.gradient_hooks import sum_gradients, sum_gradients_as_bfloat16


@contextmanager
def replicated(
    rank: Equipment,
    *,
    wire: str = "fp32",
    batch_norm: str = "sync",
    leave_out: Collection[str] = (),
) -> Iterator[nn.Module]:
    """Within it, the model as DDP wraps it; as it is where there is nothing to exchange.

    Args:
        rank: whose model, optimizer and comm they are.
        wire: as `data`'s option.
        batch_norm: likewise.
        leave_out: names of parameters whose gradients are not exchanged.
    """
    if batch_norm == "sync":  # alone too: it may have been one of several before
        synchronise_batch_norm(rank.model, rank.comm)
    exchanged = [n for n, p in rank.model.named_parameters() if p.requires_grad]
    if rank.comm.world_size == 1 or not set(exchanged) - set(leave_out):
        yield rank.model
        return
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(rank.model, leave_out)
    replica = DistributedDataParallel(
        rank.model,
        device_ids=[rank.device] if rank.device.type == "cuda" else None,
        init_sync=False,  # the crew has handed every rank the same state
        gradient_as_bucket_view=True,
        find_unused_parameters=bool(_unused_parameters(rank)),
    )
    # Equal already, or meant to differ. As an argument, torch 2.13 calls it deprecated.
    replica.broadcast_buffers = False
    try:
        hook = sum_gradients_as_bfloat16 if wire == "bf16" else sum_gradients
        replica.register_comm_hook(rank.comm, hook)
        _settle_buckets(rank, replica)
        yield replica
    finally:
        # They hold the process group. Were they the last to let go of it, they would wait for
        # its threads with the interpreter's lock in hand, which those may be waiting for.
        del replica.reducer, replica.logger


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
    with buffers_kept(rank.model):
        yield
    rank.optimizer.zero_grad(set_to_none=True)
    rank.comm.take()


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Within it the model may run forward and backward; afterwards its buffers are as before."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

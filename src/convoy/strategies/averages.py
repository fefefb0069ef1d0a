"""Averages of what ranks have trained: parameters, floating-point buffers, optimizer state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convoy.comm import Comm


def averaged_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an average of everything covers, in an order that all ranks share."""
    tensors = network_tensors(model)
    for parameter in model.parameters():
        state = optimizer.state.get(parameter, {})
        tensors += [state[key] for key in sorted(state) if isinstance(state[key], Tensor)]
    return tensors


def network_tensors(model: nn.Module) -> list[Tensor]:
    """The network's part of it: trained parameters and floating-point buffers."""
    tensors = [p.data for p in model.parameters() if p.requires_grad]
    return tensors + [b for b in model.buffers() if b.is_floating_point()]


@torch.no_grad()
def average(tensors: list[Tensor], comm: Comm, weight: float) -> None:
    """Replace `tensors` by their average over ranks, in place. Blocks.

    Args:
        tensors: of the same shapes on all ranks.
        comm: the ranks.
        weight: this rank's; all ranks' sum to 1.
    """
    if comm.world_size == 1:
        return
    dtype = next(t.dtype for t in tensors)
    flat = torch.cat([t.reshape(-1).to(dtype) for t in tensors]).mul_(weight)
    comm.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        # A 0-dimensional state counts updates; it stays a whole number.
        tensor.copy_((part.round() if tensor.dim() == 0 else part).view(tensor.shape))

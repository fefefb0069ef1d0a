"""State of which each rank has a part while it trains, and all of it in between.

    whole on every rank ──part──▶ own rows of some tensors ──train──▶ join ──▶ whole on every rank

A tensor is cut along its first dimension: a convolution's filters, a dense layer's neurons, and
what an optimizer keeps for each of them. One that is whole on one rank has all its rows there,
and a single number counts as one row. What is not cut belongs to the first rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from convoy import state
from convoy.strategies.base import Batch, Completed, Equipment, Pending, Program, Rank


class PartedState:
    """A rank's network and optimizer, parted or whole."""

    def __init__(self, rank: Equipment, rows: Mapping[str, tuple[int, ...]]) -> None:
        """Leave everything whole.

        Args:
            rank: whose network, optimizer and comm they are.
            rows: of tensors by their names in the network's state, how many rows of its first
                dimension each rank has.
        """
        self._model, self._optimizer = rank.model, rank.optimizer
        self._comm, self._device = rank.comm, rank.device
        self._rows = rows
        self._full: dict[str, Tensor] = {}
        """What parted tensors were when they were whole: their memory is used again."""

    @property
    def is_whole(self) -> bool:
        """Whether every tensor has its full shape."""
        return not self._full

    @torch.no_grad()
    def part(self) -> None:
        """Keep this rank's rows only."""
        if not self.is_whole:
            return
        tensors = self._tensors()
        for name, counts in self._rows.items():
            tensor = tensors.get(name)
            if tensor is None or not tensor.dim():
                continue  # another name of one that is there, or a single number
            full = tensor.data
            own = slice(sum(counts[: self._comm.rank]), sum(counts[: self._comm.rank + 1]))
            kept = self._optimizer.state.get(tensor, {})
            for key, value in kept.items():
                if isinstance(value, Tensor) and value.shape == full.shape:
                    kept[key] = value[own].clone()
            self._full[name] = full
            tensor.data = full[own].clone()

    def join(self) -> None:
        """Give every rank all rows, of all tensors. Blocks; all ranks take part."""
        mine = self._own()
        parts = [
            state.hand_over(
                self._comm, mine if source == self._comm.rank else None, source, self._device
            )
            for source in range(self._comm.world_size)
        ]
        whole: state.Tensors = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            pieces = [part[name] for part in parts if name in part]
            whole[name] = torch.cat(pieces) if pieces[0].dim() and len(pieces) > 1 else pieces[0]
        self.release()
        state.load(self._model, self._optimizer, whole)

    def release(self) -> None:
        """Give every tensor its full shape; what is in those that were parted is out of date."""
        tensors = self._tensors()
        for name, full in self._full.items():
            tensors[name].data = full
        self._full.clear()

    def _own(self) -> state.Tensors:
        """What this rank has to give: its rows, and of the first rank the rest besides."""
        packed = state.pack(self._model, self._optimizer)
        return {name: tensor for name, tensor in packed.items() if self._has(name)}

    def _has(self, name: str) -> bool:
        """Whether this rank has something of a packed tensor."""
        kind, _, owner = name.partition("/")
        if kind == "optimizer":
            owner = owner.rpartition("/")[0]
        rows = self._rows.get(owner)
        return self._comm.rank == 0 if rows is None else rows[self._comm.rank] > 0

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters()) | dict(self._model.named_buffers())


def train_in_parts(
    rank: Rank, parted: PartedState, step: Callable[[Batch], Tensor], *, snapshot_every: int
) -> Program:
    """Steps with parted state, and all of it on every rank where somebody wants to see it.

    Args:
        step: forward and backward pass; returns the sum of the loss over the rank's samples.
        snapshot_every: steps after which all ranks are given the whole state in any case, which
            the crew goes on from if a rank dies.
    """
    next_step, pending = rank.first_step, Pending()
    rank.commit(next_step, True)
    try:
        for batch in rank.batches:
            parted.part()
            loss_sum = step(batch)
            rank.update(batch, loss_sum)
            pending = Pending(
                samples=pending.samples + batch.samples,
                step_samples=pending.step_samples + batch.step_samples,
            )
            next_step = batch.step + 1
            rank.diverge(pending)
            if batch.evaluates or batch.keeps or next_step % snapshot_every == 0:
                parted.join()
                pending = Pending()
                rank.commit(next_step, True)
            if batch.evaluates:
                rank.evaluate(batch.step)
            yield Completed(batch=batch, loss_sum=loss_sum)
        if pending != Pending():
            parted.join()
            rank.commit(next_step, True)
    finally:
        parted.release()

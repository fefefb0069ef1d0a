"""State of which each rank has a part while it trains, and all of it in between.

    whole on every rank ──part──▶ own rows of some tensors ──train──▶ join ──▶ whole on every rank

A tensor is cut along its first dimension: a convolution's filters, a dense layer's neurons, and
what an optimizer keeps for each of them. What is not cut belongs to the first rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from convoy import state
from convoy.strategies.base import Equipment


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
            tensor = tensors[name]
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
            whole[name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
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
        parted = {n: t for n, t in packed.items() if self._rows_of(n, t) is not None and len(t)}
        return packed | parted if self._comm.rank == 0 else parted

    def _rows_of(self, name: str, tensor: Tensor) -> tuple[int, ...] | None:
        """Of a packed tensor, how it is cut; None if it is not."""
        kind, _, owner = name.partition("/")
        if kind == "optimizer":
            owner = owner.rpartition("/")[0]
        return self._rows.get(owner) if tensor.dim() else None

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters()) | dict(self._model.named_buffers())

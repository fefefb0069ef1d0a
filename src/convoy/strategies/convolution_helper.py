"""The side of a divided convolution that helps; `convolution_lead` says what goes between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.strategies.base import Batch, Rank
from convoy.strategies.convolution_side import (
    BACKWARD,
    FORWARD,
    GOES_ON,
    LEARNS,
    MIXED,
    Block,
    Side,
)
from convoy.strategies.filter_shares import HEADER_BYTES, SharedLayer, Terms


@dataclass(frozen=True, kw_only=True)
class _Open:
    """What a helper keeps between the two passes through a convolution."""

    maps: Tensor
    """What the convolution gave."""
    cut: Tensor
    """The same, from which the tail goes on: where it is bare, what has been sent."""
    made: Tensor
    filters: list[Tensor]
    """That are trained."""
    x: Tensor | None
    """If a gradient of it is wanted."""


class Helper(Side):
    """Computes what it is sent."""

    def __init__(self, rank: Rank, layers: Sequence[SharedLayer], terms: Terms) -> None:
        super().__init__(rank, layers, terms)
        self._open: dict[int, _Open] = {}

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    def step(self, batch: Batch) -> Tensor:
        """Serve until the lead's step ends; there is no loss here."""
        del batch
        while True:
            ahead = torch.empty(HEADER_BYTES // 8, dtype=torch.int64)
            self.comm.receive(ahead, 0)
            kind, index, call, flags, *shape = ahead.tolist()
            if kind == FORWARD:
                self._forward(self.blocks[index], call, flags, shape)
            elif kind == BACKWARD:
                self._backward(self._open.pop(call))
            else:
                self.comm.finish()
                return torch.zeros((), device=self.device)

    def _forward(self, block: Block, call: int, flags: int, shape: Sequence[int]) -> None:
        own = block.filters()
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=bool(flags & MIXED))
        dtype = torch.bfloat16 if flags & MIXED else own[0].dtype
        x = self._received(shape, dtype)
        if not self.terms.resident:
            count = block.shared.filters[self.comm.rank]
            shapes = [(count, *tensor.shape[1:]) for tensor in own]
            own = [self._received(s, own[0].dtype, maps=False).requires_grad_() for s in shapes]
        learns = bool(flags & LEARNS)
        with torch.set_grad_enabled(learns), mixed:
            maps = block.convolved(x.requires_grad_(learns and bool(flags & GOES_ON)), own)
            cut = made = maps
            if block.tail:
                cut = maps.detach().requires_grad_(learns)
                made = block.finished(cut.clone() if block.changes_in_place else cut)
        self.comm.send_async(self.packed(made), 0)
        if learns:
            trained = [tensor for tensor in own if tensor.requires_grad]
            wanted = x if x.requires_grad else None
            self._open[call] = _Open(maps=maps, cut=cut, made=made, filters=trained, x=wanted)

    def _backward(self, kept: _Open) -> None:
        """First what is waited for: the gradient of the maps that came."""
        gradient = self._received(kept.made.shape, kept.made.dtype)
        if kept.cut is not kept.maps:
            kept.made.backward(gradient)
            assert kept.cut.grad is not None
            gradient = kept.cut.grad
        if kept.x is not None:
            (below,) = torch.autograd.grad(
                kept.maps, kept.x, gradient, retain_graph=bool(kept.filters)
            )
            self.comm.send_async(self.packed(below), 0)
        if not kept.filters:
            return
        found = torch.autograd.grad(kept.maps, kept.filters, gradient)
        for tensor, of_filters in zip(kept.filters, found, strict=True):
            if self.terms.resident:
                tensor.grad = of_filters if tensor.grad is None else tensor.grad + of_filters
            else:
                self.comm.send_async(self.packed(of_filters, maps=False), 0)

    def _received(self, shape: Sequence[int], dtype: torch.dtype, *, maps: bool = True) -> Tensor:
        room = self.room(shape, dtype, maps=maps)
        self.comm.receive(room, 0)
        return self.unpacked(room, dtype)

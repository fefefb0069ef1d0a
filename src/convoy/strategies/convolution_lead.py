"""Convolutions of which other ranks compute some filters: the side that asks.

    Lead                                              Helper
    conv(x)   ── header, x ─────────────────────────▶ its filters, and their tail
              own filters ... ◀──────────── its maps ──┘  kept for the backward pass
    backward  ── header, gradient of its maps ──────▶ gradient of x
              own gradients ... ◀────── gradient of x ──┘ gradient of its filters, meanwhile
    end of step ── header ──────────────────────────▶ its optimizer's step

A helper knows nothing of the network but its convolutions; it does what it is sent, in the order
in which it comes. The lead runs the user's own forward pass, in which the modules of divided
convolutions do the above, and those that run with them pass on what they get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from convoy.strategies.base import Batch, Rank
from convoy.strategies.convolution_side import (
    BACKWARD,
    END,
    FORWARD,
    GOES_ON,
    LEARNS,
    MIXED,
    Side,
    header,
)
from convoy.strategies.filter_shares import SharedLayer, Terms


class Lead(Side):
    """Runs the network. Within a step, modules of divided convolutions ask the helpers."""

    def __init__(self, rank: Rank, layers: Sequence[SharedLayer], terms: Terms) -> None:
        super().__init__(rank, layers, terms)
        self._calls = 0
        self._anchor = torch.zeros((), device=rank.device, requires_grad=True)
        """Through which gradients reach a convolution of what is not trained: of images."""

    def __enter__(self) -> Self:
        for index, block in enumerate(self.blocks):
            block.conv.forward = partial(self._convolve, index)
            for layer in block.tail:
                layer.forward = _passed_on
        return self

    def __exit__(self, *_: object) -> None:
        for block in self.blocks:
            for module in (block.conv, *block.tail):
                del module.forward

    def step(self, batch: Batch) -> Tensor:
        """Run the network; at the end, let the helpers go on to their update."""
        loss_sum = self.rank.loss(self.rank.model, batch)
        (loss_sum / batch.step_samples).backward()
        for helper in range(1, self.comm.world_size):
            self.comm.send_async(header(END), helper)
        self.comm.finish()
        return loss_sum

    def _convolve(self, index: int, x: Tensor) -> Tensor:
        """A divided convolution and its tail: [N, C, H, W] to [N, K, H', W']."""
        mixed = torch.is_autocast_enabled(x.device.type)
        if mixed:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        block = self.blocks[index]
        self._calls += 1
        call = _Call(self, index, self._calls, mixed=mixed)
        own: list[Tensor] | None = None
        theirs: list[Tensor] = []
        if not self.terms.resident:
            cuts = [filters.split(block.shared.filters) for filters in block.filters()]
            own = [cut[0] for cut in cuts]
            theirs = [part for cut in cuts for part in cut[1:]]
        token = _Ask.apply(call, self._anchor, x, *theirs)  # type: ignore[no-untyped-call]
        maps = block.finished(block.convolved(x, own))
        joined: Tensor = _Join.apply(call, token, maps)  # type: ignore[no-untyped-call]
        return joined


def _passed_on(x: Tensor) -> Tensor:
    """Stands for the forward of a layer that has run already."""
    return x


class _Call:
    """One time that the lead's forward pass comes to a divided convolution."""

    def __init__(self, lead: Lead, index: int, number: int, *, mixed: bool) -> None:
        self.lead, self.index, self.number = lead, index, number
        self.shared = lead.blocks[index].shared
        self.learns, self.mixed = torch.is_grad_enabled(), mixed
        self.goes_on = False
        self._maps: list[Callable[[], Tensor]] = []
        self._filters: dict[int, Callable[[], Tensor]] = {}
        """Gradients that are coming, of what was sent: by position among the filters."""

    def ask(self, x: Tensor, filters: Sequence[Tensor]) -> None:
        """Send the maps, and the filters of those who do not keep them."""
        lead, send = self.lead, self.lead.comm.send_async
        self.shape, self.dtype = x.shape, x.dtype
        self.sent = [(f.shape, f.dtype) for f in filters]
        flags = LEARNS * self.learns | GOES_ON * self.goes_on | MIXED * self.mixed
        packed = lead.packed(x)
        for helper, _ in self.shared.helpers():
            send(header(FORWARD, self.index, self.number, flags, *x.shape), helper)
            send(packed, helper)
            for position in self._positions(helper):
                send(lead.packed(filters[position], maps=False), helper)

    def join(self, maps: Tensor) -> Tensor:
        """The maps of all ranks; `maps` are this one's."""
        lead = self.lead
        n, _, *size = maps.shape
        coming = [
            lead.comm.receive_async(
                lead.room((n, self.shared.filters[helper], *size), maps.dtype), helper
            )
            for helper, _ in self.shared.helpers()
        ]
        parts = [lead.unpacked(part(), maps.dtype) for part in coming]
        return torch.cat([maps, *parts], dim=1)

    def hand_back(self, gradient: Tensor) -> Tensor:
        """Send each helper the gradient of its maps; returns that of the lead's own."""
        lead, comm = self.lead, self.lead.comm
        own, *parts = gradient.split(self.shared.filters, dim=1)
        for helper, _ in self.shared.helpers():
            comm.send_async(header(BACKWARD, self.index, self.number), helper)
            comm.send_async(lead.packed(parts[helper - 1]), helper)
            if self.goes_on:
                room = lead.room(self.shape, self.dtype)
                self._maps.append(comm.receive_async(room, helper))
            for position in self._positions(helper):
                shape, dtype = self.sent[position]
                room = lead.room(shape, dtype, maps=False)
                self._filters[position] = comm.receive_async(room, helper)
        first: Tensor = own
        return first

    def gradients(self) -> tuple[Tensor | None, list[Tensor | None]]:
        """Of the maps, summed over helpers, and of filters that were sent. Blocks."""
        lead = self.lead
        total: Tensor | None = None
        for part in self._maps:
            gradient = lead.unpacked(part(), self.dtype)
            total = gradient if total is None else total.add_(gradient)
        filters: list[Tensor | None] = []
        for position, (shape, dtype) in enumerate(self.sent):
            came = self._filters.get(position)
            blank = torch.zeros(shape, dtype=dtype, device=lead.device)
            filters.append(lead.unpacked(came(), dtype) if came else blank)
        return total, filters

    def _positions(self, helper: int) -> range:
        """Where in a list of cut tensors, less the lead's cuts, those of `helper` stand."""
        return range(helper - 1, len(self.sent), len(self.shared.filters) - 1)


class _Ask(torch.autograd.Function):
    """Forward: sends maps. Backward: takes in the gradients of them, computed meanwhile."""

    @staticmethod
    def forward(ctx: Any, call: _Call, anchor: Tensor, x: Tensor, *filters: Tensor) -> Tensor:
        ctx.call = call
        call.goes_on = call.learns and ctx.needs_input_grad[2]
        call.ask(x, filters)
        return anchor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        maps, filters = ctx.call.gradients()
        return (None, None, maps, *filters)


class _Join(torch.autograd.Function):
    """Forward: takes in the others' maps. Backward: sends them the gradients of those.

    Autograd runs what came last in the forward pass first: this, then the lead's own part, then
    `_Ask`. So gradients are on their way while the lead computes.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, token: Tensor, maps: Tensor) -> Tensor:
        del token
        ctx.call = call
        return call.join(maps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return None, gradient.new_zeros(()), ctx.call.hand_back(gradient)

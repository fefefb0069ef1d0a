"""What both sides of a divided convolution have: its layers, and how maps are packed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from convoy.strategies.base import Batch, Rank
from convoy.strategies.filter_shares import HEADER_BYTES, SharedLayer, Terms

FORWARD, BACKWARD, END = 1, 2, 3
LEARNS, GOES_ON, MIXED = 1, 2, 4
"""Flags: a backward pass follows; it goes on below this layer; computed as bfloat16."""


class Block:
    """A divided convolution with the layers that run with it, as this rank has them."""

    def __init__(self, model: nn.Module, shared: SharedLayer) -> None:
        self.shared = shared
        self.conv = model.get_submodule(shared.name)
        self.tail = [model.get_submodule(name) for name in shared.tail]
        assert isinstance(self.conv, nn.Conv2d)

    def convolved(self, x: Tensor, filters: list[Tensor] | None = None) -> Tensor:
        """The maps of this rank's filters; of `filters` (weight, bias) if they are given."""
        conv = self.conv
        assert isinstance(conv, nn.Conv2d)
        weight, *bias = filters or self.filters()
        maps: Tensor = conv._conv_forward(x, weight, bias[0] if bias else None)
        return maps

    def filters(self) -> list[Tensor]:
        """Weight, and bias if there is one."""
        assert isinstance(self.conv, nn.Conv2d)
        return [self.conv.weight, *([self.conv.bias] if self.conv.bias is not None else [])]

    def finished(self, maps: Tensor) -> Tensor:
        """What comes out of the tail."""
        for layer in self.tail:
            maps = type(layer).forward(layer, maps)
        return maps

    @property
    def changes_in_place(self) -> bool:
        """Whether the tail overwrites what it is given."""
        return any(getattr(layer, "inplace", False) for layer in self.tail)

    def rows(self) -> dict[str, tuple[int, ...]]:
        """The tensors that have a row for each filter, by name in the network's state."""
        names = dict.fromkeys(
            f"{owner}.{name}"
            for owner, module in zip(
                (self.shared.name, *self.shared.tail), (self.conv, *self.tail), strict=True
            )
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if tensor.dim() and len(tensor) == sum(self.shared.filters)
        )
        return dict.fromkeys(names, self.shared.filters)


class Side:
    """What lead and helpers have in common. Within it, they work on a step."""

    def __init__(self, rank: Rank, layers: Sequence[SharedLayer], terms: Terms) -> None:
        self.rank, self.comm, self.device, self.terms = rank, rank.comm, rank.device, terms
        self.blocks = [Block(rank.model, shared) for shared in layers]
        self.rows: dict[str, tuple[int, ...]] = {}
        """How tensors are parted."""
        if terms.resident:
            for block in self.blocks:
                self.rows |= block.rows()
        self._channels_last = any(_is_channels_last(block.filters()[0]) for block in self.blocks)

    @abstractmethod
    def step(self, batch: Batch) -> Tensor:
        """Forward and backward pass; the sum of the loss over this rank's samples."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing of the step behind."""

    def packed(self, tensor: Tensor, *, maps: bool = True) -> Tensor:
        """As it travels: on the host, its elements in the order in which they lie in memory."""
        if maps and self.terms.narrow:
            tensor = tensor.to(torch.bfloat16)
        if tensor.dim() == 4 and self._channels_last:
            tensor = tensor.permute(0, 2, 3, 1)
        return tensor.detach().to("cpu").contiguous()

    def room(self, shape: Sequence[int], dtype: torch.dtype, *, maps: bool = True) -> Tensor:
        """Where what another rank has packed is to come."""
        if maps and self.terms.narrow:
            dtype = torch.bfloat16
        if len(shape) == 4 and self._channels_last:
            n, c, h, w = shape
            shape = (n, h, w, c)
        return torch.empty(tuple(shape), dtype=dtype)

    def unpacked(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """What came, as it is worked with."""
        tensor = tensor.to(self.device, dtype)
        last = tensor.dim() == 4 and self._channels_last
        return tensor.permute(0, 3, 1, 2) if last else tensor


def header(*values: int) -> Tensor:
    """What goes ahead: kind, convolution, call, flags, and the shape of the maps."""
    padded = [*values, *[0] * (HEADER_BYTES // 8 - len(values))]
    return torch.tensor(padded, dtype=torch.int64)


def _is_channels_last(tensor: Tensor) -> bool:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()

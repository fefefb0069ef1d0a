"""The part of a network that is one stage of a pipeline, as a module of its own.

    what came ─ unpacked ─▶ the stage's part of the network's graph ─ packed ─▶ what goes on

Its layers are those of the network, not copies: what trains here is trained there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convoy.cost.cuts import Cut, tensors_at
from convoy.cost.graph import UntraceableError, graph_of
from convoy.cost.layers import leaves
from convoy.errors import UsageError


class Wire:
    """How maps travel between stages: on the host, in one type, as they lie in memory."""

    def __init__(self, model: nn.Module, device: torch.device, *, mixed: bool) -> None:
        first = next(p for p in model.parameters() if p.is_floating_point())
        self.dtype = torch.bfloat16 if mixed else first.dtype
        """Of maps and their gradients."""
        self._device = device
        self._channels_last = any(map(_is_channels_last, model.parameters()))

    def packed(self, maps: Tensor) -> Tensor:
        """[N, C, H, W], or whatever it is, as it travels."""
        if maps.dim() == 4 and self._channels_last:
            maps = maps.permute(0, 2, 3, 1)
        return maps.to("cpu", self.dtype).contiguous()

    def unpacked(self, maps: Tensor) -> Tensor:
        """What came as it is worked with: not itself, since a layer may overwrite its input."""
        maps = maps.to(self._device)
        if maps.dim() == 4 and self._channels_last:
            maps = maps.permute(0, 3, 1, 2)
        return maps.clone()

    def room(self, samples: int, cut: Cut, *, gradient: bool) -> Tensor:
        """What travels through a cut, by its shape and type alone."""
        shape = cut.shape
        if len(shape) == 3 and self._channels_last:
            channels, height, width = shape
            shape = (height, width, channels)
        empty = torch.empty((samples, *shape), dtype=self.dtype, device="meta")
        return empty.requires_grad_(gradient)


class StageModule(nn.Module):
    """One stage: maps in, maps out; the first gets images, and the last gives what the network
    does."""

    def __init__(
        self, part: nn.Module, wire: Wire, *, before: Cut | None, after: Cut | None, mixed: bool
    ) -> None:
        super().__init__()
        self._part, self._wire = part, wire
        self._before, self._after, self._mixed = before, after, mixed

    def forward(self, x: Tensor) -> Any:
        """One micro-batch."""
        if self._before is not None:
            x = self._wire.unpacked(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._mixed):
            x = self._part(x)
        if self._after is None:
            return x
        maps = self._wire.packed(x)
        return maps if self._after.gradient else maps.detach()


def parts_of(model: nn.Module, cuts: Sequence[Cut]) -> tuple[list[nn.Module], dict[str, int]]:
    """The network between cuts, and which part uses what of its state, by name.

    Args:
        cuts: in order of execution; as many as there are parts, but for one.

    Raises:
        UsageError: the network is not that in which the cuts were found.
    """
    try:
        nodes = list(graph_of(model, dict(leaves(model))).nodes)
    except UntraceableError as error:
        raise UsageError(
            f"torch.fx cannot follow this network's forward pass ({error}). Use --strategy data"
        ) from error
    at = {node.name: index for index, node in enumerate(nodes)}
    missing = [cut.after for cut in cuts if cut.after not in at or cut.crossing not in at]
    if missing:
        raise UsageError(
            f"the network's forward pass has no {missing[0]!r} here, where it was to be cut: it "
            "must be the same on every machine. Use --strategy data"
        )
    ends = [*(at[cut.after] + 1 for cut in cuts), len(nodes)]
    parts: list[nn.Module] = []
    users: dict[int, int] = {}
    start, comes = 0, ""
    for part, end in enumerate(ends):
        own = nodes[start:end]
        goes = cuts[part].crossing if part < len(cuts) else ""
        parts.append(torch.fx.GraphModule(model, _between(own, comes, goes)))
        users |= {id(t): part for node in own for t in tensors_at(model, node)}
        start, comes = end, goes
    state = model.state_dict(keep_vars=True)
    return parts, {name: users[id(t)] for name, t in state.items() if id(t) in users}


def _between(nodes: Sequence[torch.fx.Node], comes: str, goes: str) -> torch.fx.Graph:
    """A graph of these nodes, from the value of the one named `comes` to that of `goes`."""
    graph = torch.fx.Graph()
    own = {node.name for node in nodes}
    copies: dict[str, torch.fx.Node] = {}
    if comes:
        copies[comes] = graph.placeholder("came")

    def copy_of(node: torch.fx.Node) -> torch.fx.Node:
        return copies[node.name]

    for node in nodes:
        copies[node.name] = graph.node_copy(node, copy_of)
    if goes:
        assert goes in own or goes == comes
        graph.output(copies[goes])
    return graph


def _is_channels_last(tensor: Tensor) -> bool:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()

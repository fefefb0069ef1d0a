"""Where a network can be cut in two: the places that a single tensor crosses.

conv1 ─ relu1 ┬ conv2 ─ conv3 ┬ add ─ pool ┊ dense        between conv2 and conv3 two are alive,
            ┊ └───────────────┘     ┊      ┊              at the three places marked only one
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convoy.cost.graph import UntraceableError, graph_of

IMAGES = 3
"""How many are sent through, to see whether a tensor has a row for each."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A place that a single tensor crosses: a floating-point one with a row for each image."""

    after: str
    """The last node before it, by its name in the graph."""
    crossing: str
    """The node whose value crosses."""
    layers: int
    """How many of the network's layers begin before it."""
    shape: tuple[int, ...]
    """Of what crosses, for one image."""
    gradient: bool
    """Whether a gradient comes back."""

    @property
    def elements(self) -> int:
        """Of what crosses, for one image."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """All places, in order of execution: of those between the same two layers, the thinnest."""

    places: tuple[Cut, ...] = ()
    reason: str = ""
    """Why there is none, if that is so."""
    users: tuple[tuple[str, int], ...] = ()
    """Of what a pass uses of the network's state, by name: how many places are before its use."""


UNKNOWN = Cuts(reason="nobody has traced its layers")


def cuts_of(
    network: nn.Module, leaves: Mapping[nn.Module, str], input_shape: tuple[int, ...]
) -> Cuts:
    """Where `network` can be cut, for images of this shape that go through it.

    Parameters and buffers that both sides use forbid a cut: they would have to be in two places.

    Args:
        network: it is not changed.
        leaves: its modules that count as one layer, by name.
        input_shape: of one image.
    """
    if network in leaves:
        return Cuts(reason="it is one layer")
    try:
        graph = graph_of(network, leaves)
    except UntraceableError as error:
        return Cuts(reason=f"torch.fx cannot follow its forward pass ({error})")
    values = _values(network, graph, input_shape)
    if values is None:
        return Cuts(reason="its forward pass cannot be played node by node")
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    nodes, count = list(graph.nodes), len(leaves)
    shared = _shared(network, nodes)
    thinnest: dict[int, Cut] = {}
    begun: set[str] = set()
    position = {node.name: at for at, node in enumerate(nodes)}
    for at, node in enumerate(nodes[:-1]):
        begun |= {str(node.target)} if node.op == "call_module" else set()
        crossing = _alive(nodes, at)
        value = values.get(crossing[0]) if len(crossing) == 1 else None
        if value is None or not 0 < len(begun) < count or any(a <= at < b for a, b in shared):
            continue
        if value.shape[:1] != (IMAGES,) or value.dtype != dtype:
            continue
        cut = Cut(
            after=node.name,
            crossing=crossing[0].name,
            layers=len(begun),
            shape=tuple(value.shape[1:]),
            gradient=value.gradient,
        )
        if cut.layers not in thinnest or cut.elements <= thinnest[cut.layers].elements:
            thinnest[cut.layers] = cut
    called = len(begun)
    places = tuple(cut for cut in thinnest.values() if cut.layers < called)
    if called < 2:
        return Cuts(reason="it is one layer")
    reason = "" if places else "at every place of it more than a single tensor of maps is alive"
    ends = [position[cut.after] for cut in places]
    first_used = {
        id(tensor): at
        for at, node in reversed(list(enumerate(nodes)))
        for tensor in tensors_at(network, node)
    }
    users = tuple(
        (name, bisect.bisect_left(ends, first_used[id(tensor)]))
        for name, tensor in network.state_dict(keep_vars=True).items()
        if id(tensor) in first_used
    )
    return Cuts(places=places, reason=reason, users=users)


def _alive(nodes: list[torch.fx.Node], at: int) -> list[torch.fx.Node]:
    """What nodes up to `at` have made and later ones read."""
    later = set(nodes[at + 1 :])
    return [node for node in nodes[: at + 1] if not later.isdisjoint(node.users)]


def _shared(network: nn.Module, nodes: list[torch.fx.Node]) -> list[tuple[int, int]]:
    """Of each parameter and buffer, the first and the last place where it is used."""
    spans: dict[int, tuple[int, int]] = {}
    for at, node in enumerate(nodes):
        for tensor in tensors_at(network, node):
            spans[id(tensor)] = (spans.get(id(tensor), (at, at))[0], at)
    return [(first, last) for first, last in spans.values() if first < last]


def tensors_at(network: nn.Module, node: torch.fx.Node) -> Iterable[Tensor]:
    """The network's parameters and buffers that a node of its graph uses."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return [*module.parameters(), *module.buffers()]
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(network.get_submodule(owner), name)
        return [value] if isinstance(value, Tensor) else []
    return []


@dataclass(frozen=True, kw_only=True)
class _Value:
    """What is known of a tensor that a node gives."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    gradient: bool
    """Whether a backward pass finds its gradient, and goes on from there."""


def _values(
    network: nn.Module, graph: torch.fx.Graph, input_shape: tuple[int, ...]
) -> dict[torch.fx.Node, _Value] | None:
    """Of each node that gives a tensor; without computing, where the network allows it."""

    class Player(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                found[n] = value
            return value

    for device in ("meta", "cpu"):
        found: dict[torch.fx.Node, Tensor] = {}
        module = copy.deepcopy(network).to(device).train()
        dtype = next((p.dtype for p in module.parameters()), torch.float32)
        image = torch.zeros((IMAGES, *input_shape), device=device, dtype=dtype)
        try:
            with torch.random.fork_rng(devices=[]):
                output = Player(module, graph=graph).run(image)
        except Exception:  # an operator without meta, or a tensor made on the host
            continue
        reached = _reached(output, list(found.values()))
        return {
            node: _Value(shape=tuple(value.shape), dtype=value.dtype, gradient=id(value) in reached)
            for node, value in found.items()
        }
    return None


def _reached(output: Any, values: list[Tensor]) -> set[int]:
    """Which of the values, by identity, a backward pass from the network's output comes to."""
    tracked = [value for value in values if value.requires_grad]
    if tracked and isinstance(output, Tensor) and output.requires_grad:
        with contextlib.suppress(Exception):  # an operator without meta: then all of them
            gradients = torch.autograd.grad(output.sum(), tracked, allow_unused=True)
            pairs = zip(tracked, gradients, strict=True)
            return {id(value) for value, gradient in pairs if gradient is not None}
    return {id(value) for value in tracked}

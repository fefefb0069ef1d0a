"""Parts of schedules that strategies share: a rank's passes through the network, and buckets.

    load ─ forward conv1 ─ ... ─ forward fc ─ [replica] ─ backward fc ─ ... ─ backward conv1

A network whose layers nobody has traced is one layer, called ''.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from convoy.cost.layers import LayerSize, NetworkFacts
from convoy.cost.schedule import Collective, Compute, Operation, Phase, Schedule
from convoy.strategies.batch_norm import exchanged_bytes

Last = list[tuple[int, ...]]
"""What each rank did last."""
DrawLayer = Callable[[Literal["forward", "backward"], Last], Last]
"""Draws one pass through a layer, after what each rank did last; returns what it then did last."""

FIRST_BUCKET_BYTES = 1024**2
BUCKET_BYTES = 25 * 1024**2
"""DistributedDataParallel's, as torch 2.13 has them."""


@dataclass
class Drawing:
    """A schedule in the making. Methods return the indices of what they added."""

    operations: list[Operation] = field(default_factory=list)

    def add(self, operation: Operation) -> int:
        """Append one operation."""
        self.operations.append(operation)
        return len(self.operations) - 1

    def compute(
        self, phase: Phase, samples: Sequence[int], after: Sequence[tuple[int, ...]], layer: str
    ) -> list[tuple[int, ...]]:
        """The same work on every rank, each after its own `after`, with its own samples."""
        return [
            (self.add(Compute(rank=r, phase=phase, samples=n, layer=layer, after=after[r])),)
            for r, n in enumerate(samples)
        ]

    def all_reduce(self, payload_bytes: int, after: Sequence[tuple[int, ...]]) -> int:
        """A sum over all ranks, once each has done its `after`."""
        return self.add(
            Collective(
                kind="all-reduce",
                ranks=tuple(range(len(after))),
                payload_bytes=payload_bytes,
                after=tuple(index for indices in after for index in indices),
            )
        )

    def schedule(self) -> Schedule:
        """What was drawn."""
        return tuple(self.operations)


def layers_or_whole(network: NetworkFacts) -> tuple[LayerSize, ...]:
    """The network's layers; itself as the only one where they are not known."""
    return network.layers or (LayerSize(name="", parameters=(network.num_parameters,)),)


def draw_passes(
    drawing: Drawing,
    network: NetworkFacts,
    samples: Sequence[int],
    *,
    gradient_bytes: int = 0,
    wire_bytes: int = 0,
    synchronises_batch_norm: bool = False,
    otherwise: Mapping[str, DrawLayer] | None = None,
) -> tuple[Last, list[int]]:
    """All ranks' passes, from loading to the last gradient.

    Args:
        samples: by rank.
        gradient_bytes: of an element of a gradient; 0 where none travels.
        wire_bytes: of one as it travels, if that is less.
        synchronises_batch_norm: whether statistics travel.
        otherwise: layers, by name, that are drawn by a function of their own, and whose gradients
            do not travel.

    Returns:
        What each rank did last, and the all-reduces of gradients.
    """
    layers, otherwise = layers_or_whole(network), otherwise or {}
    exchanges = gradient_bytes > 0
    last = drawing.compute("load", samples, [()] * len(samples), "")
    for layer in layers:
        if layer.name in otherwise:
            last = otherwise[layer.name]("forward", last)
            continue
        last = drawing.compute("forward", samples, last, layer.name)
        if synchronises_batch_norm and layer.batch_norm_channels:
            size = exchanged_bytes([layer.batch_norm_channels])[0]
            last = [(drawing.all_reduce(size, last),)] * len(samples)
    if exchanges:
        last = drawing.compute("replica", samples, last, "")
    buckets = Buckets(gradient_bytes, wire_bytes or gradient_bytes)
    reductions: list[int] = []
    for layer in reversed(layers):
        if layer.name in otherwise:
            last = otherwise[layer.name]("backward", last)
            continue
        last = drawing.compute("backward", samples, last, layer.name)
        if synchronises_batch_norm and layer.batch_norm_channels:
            size = exchanged_bytes([layer.batch_norm_channels])[1]
            last = [(drawing.all_reduce(size, last),)] * len(samples)
        if exchanges:
            reductions += [drawing.all_reduce(size, last) for size in buckets.fill(layer)]
    if exchanges and (rest := buckets.rest()):
        reductions.append(drawing.all_reduce(rest, last))
    if synchronises_batch_norm and not network.layers:
        reductions += [
            drawing.all_reduce(size, last) for size in exchanged_bytes(network.batch_norm_channels)
        ]
    return last, reductions


class Buckets:
    """How DistributedDataParallel groups gradients: in the order in which they come.

    A bucket goes out when it has reached its size, as gradients are computed and not as they
    travel; the first is small, so that something travels early.

    For a network with parameters that a pass does not use DDP keeps the groups that it made
    before it had seen an order: sizes differ from these then, and their sum does not.
    """

    def __init__(self, gradient_bytes: int, wire_bytes: int) -> None:
        self._gradient_bytes, self._wire_bytes = gradient_bytes, wire_bytes
        self._limit, self._filled = FIRST_BUCKET_BYTES, 0

    def fill(self, layer: LayerSize) -> list[int]:
        """Payload bytes of the buckets that `layer`'s gradients complete."""
        full = []
        for parameters in layer.parameters:
            self._filled += parameters
            if self._filled * self._gradient_bytes >= self._limit:
                full.append(self.rest())
                self._limit, self._filled = BUCKET_BYTES, 0
        return full

    def rest(self) -> int:
        """Payload bytes of the bucket that is not full when the pass ends."""
        return self._filled * self._wire_bytes

"""How a step's split dense layers are drawn: pair by pair, or as exchanges of all.

    forward     maps of all samples ═▶ each rank's neurons ═▶ outputs of its own samples
    backward    gradients of outputs ═▶ through each rank's neurons ═▶ gradients of maps
                                                       └─▶ gradients of weights

Ranks send to one another directly: there are as many transfers as pairs. Among few ranks each is
drawn. Among hundreds there would be a million, and there they are drawn together, some of the
turns at a time, so that computing overlaps with what travels next, as it does in truth.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy
from numpy.typing import NDArray

from convoy.cost.layers import LayerSize
from convoy.cost.schedule import Compute, Exchange, Transfer
from convoy.strategies.base import Problem
from convoy.strategies.dense_shares import SplitLayer, rounds
from convoy.strategies.passes import Drawing, DrawLayer, Last

PAIRS_UP_TO = 16
"""Among more ranks than these, transfers are drawn together."""
PARTS = 8
"""In so many parts, if samples are computed in turns."""

Phase = Literal["forward", "backward"]
Array = NDArray[numpy.int64]


class Sketch(ABC):
    """Draws split layers."""

    def __init__(
        self, problem: Problem, shares: Sequence[int], drawing: Drawing, *, in_turns: bool
    ) -> None:
        self._problem, self._shares, self._drawing = problem, tuple(shares), drawing
        self._ranks, self._in_turns = range(len(shares)), in_turns

    def layers(self, split: Sequence[SplitLayer]) -> dict[str, DrawLayer]:
        """Functions that draw a pass through each of these layers, by name."""
        sizes = {size.name: size for size in self._problem.network.layers}

        def drawn(size: LayerSize, layer: SplitLayer) -> DrawLayer:
            def draw(phase: Phase, last: Last) -> Last:
                return (self._forward if phase == "forward" else self._backward)(size, layer, last)

            return draw

        return {layer.name: drawn(sizes[layer.name], layer) for layer in split}

    @abstractmethod
    def _pass(
        self, phase: Phase, split: SplitLayer, comes: list[int], goes: list[int] | None, last: Last
    ) -> tuple[Last, Last]:
        """Send to those who compute, compute, and send back to whose samples they are.

        Args:
            comes: elements that each rank gets of each sample, if it has neurons.
            goes: elements that it sends back of each; None where nothing is computed with them.

        Returns:
            What each rank did last, and what comes back to it.
        """

    def _forward(self, size: LayerSize, split: SplitLayer, last: Last) -> Last:
        done, back = self._pass(
            "forward", split, [size.inputs] * len(last), self._outputs(size, split), last
        )
        return [(*d, *b) for d, b in zip(done, back, strict=True)]

    def _backward(self, size: LayerSize, split: SplitLayer, last: Last) -> Last:
        outputs = self._outputs(size, split)
        if not size.input_gradient:
            arrived, _ = self._pass("backward", split, outputs, None, last)
            return self._weights(split, arrived, 1.0)
        done, back = self._pass("backward", split, outputs, [size.inputs] * len(last), last)
        weights = self._weights(split, done, 0.5)  # while what is below travels
        return [(*w, *b) for w, b in zip(weights, back, strict=True)]

    @staticmethod
    def _outputs(size: LayerSize, split: SplitLayer) -> list[int]:
        """Of one sample, by rank."""
        return [size.activations // size.neurons * neurons for neurons in split.neurons]

    def _weights(self, split: SplitLayer, after: Last, portion: float) -> Last:
        """The gradients of weights, of all samples at once."""
        whole = self._problem.batch_size
        return [
            (self._compute(rank, "backward", whole, split, a, portion), *a)
            if split.neurons[rank]
            else a
            for rank, a in enumerate(after)
        ]

    def _compute(
        self,
        rank: int,
        phase: Phase,
        samples: int,
        split: SplitLayer,
        after: tuple[int, ...],
        portion: float,
    ) -> int:
        return self._drawing.add(
            Compute(
                rank=rank,
                phase=phase,
                samples=samples,
                layer=split.name,
                part=split.part(rank),
                portion=portion,
                after=after,
            )
        )


class PairwiseSketch(Sketch):
    """A transfer for each pair of ranks."""

    def _pass(
        self, phase: Phase, split: SplitLayer, comes: list[int], goes: list[int] | None, last: Last
    ) -> tuple[Last, Last]:
        shares, several = self._shares, len(self._ranks)
        came = {
            (rank, to): self._send(rank, to, shares[rank] * comes[to], last[rank])
            for turn in self._ranks[1:]
            for rank in self._ranks
            if split.neurons[to := (rank + turn) % several] and shares[rank]
        }
        if goes is None:
            arrived = [
                tuple(i for (_, to), i in came.items() if to == rank) for rank in self._ranks
            ]
            return [(*own, *new) for own, new in zip(last, arrived, strict=True)], []
        done: list[tuple[int, ...]] = list(last)
        back: list[tuple[int, ...]] = [() for _ in self._ranks]
        portion = 1.0 if phase == "forward" else 0.5
        for rank in self._ranks:
            in_rounds = rounds(rank, several, in_turns=self._in_turns)
            for together in in_rounds if split.neurons[rank] else ():
                needs = tuple(came[other, rank] for other in together if (other, rank) in came)
                samples = sum(shares[other] for other in together)
                if not samples:
                    continue
                after = (*done[rank], *needs)
                done[rank] = (self._compute(rank, phase, samples, split, after, portion),)
                for other in together:
                    if other != rank and shares[other]:
                        size = shares[other] * goes[rank]
                        back[other] += (self._send(rank, other, size, done[rank]),)
        return done, back

    def _send(self, source: int, destination: int, elements: int, after: tuple[int, ...]) -> int:
        size = elements * self._problem.map_bytes
        return self._drawing.add(
            Transfer(source=source, destination=destination, payload_bytes=size, after=after)
        )


class JointSketch(Sketch):
    """Exchanges among all ranks."""

    def _pass(
        self, phase: Phase, split: SplitLayer, comes: list[int], goes: list[int] | None, last: Last
    ) -> tuple[Last, Last]:
        several = len(self._ranks)
        shares = numpy.array(self._shares)
        computes = numpy.array(split.neurons) > 0
        to_each = numpy.where(computes, comes, 0)
        turns = [0, *(1 + (several - 1) * i // PARTS for i in range(PARTS)), several]
        parts = list(itertools.pairwise(turns)) if self._in_turns else [(0, several)]
        everyone = tuple(sorted({index for own in last for index in own}))
        done, came = list(last), everyone
        back: tuple[int, ...] = ()
        portion = 1.0 if phase == "forward" else 0.5
        for first, end in parts:
            others = max(first, 1), end
            if others[0] < end:  # all but a rank's own samples
                out, arrives = shares * _behind(to_each, *others), to_each * _ahead(shares, *others)
                came = (self._exchange(out, arrives, end - others[0], came),)
            elif not first:
                came = everyone
            if goes is None:
                continue
            samples = _ahead(shares, first, end)
            for rank in self._ranks:
                if computes[rank] and samples[rank]:
                    after = (*done[rank], *(came if others[0] < end else ()))
                    made = self._compute(rank, phase, int(samples[rank]), split, after, portion)
                    done[rank] = (made,)
            if others[0] < end:
                from_each = numpy.where(computes, goes, 0)
                out, arrives = (
                    from_each * _ahead(shares, *others),
                    shares * _behind(from_each, *others),
                )
                after = tuple(sorted({index for own in done for index in own}))
                back += (self._exchange(out, arrives, end - others[0], after),)
        if goes is None:
            return [(*own, *came) for own in last], []
        return done, [back] * several

    def _exchange(self, out: Array, arrives: Array, peers: int, after: tuple[int, ...]) -> int:
        size = self._problem.map_bytes
        return self._drawing.add(
            Exchange(
                ranks=tuple(self._ranks),
                sends=tuple((out * size).tolist()),
                receives=tuple((arrives * size).tolist()),
                peers=peers,
                after=after,
            )
        )


def sketch_of(
    problem: Problem, shares: Sequence[int], drawing: Drawing, *, in_turns: bool
) -> Sketch:
    """How to draw split layers among so many ranks."""
    kind = PairwiseSketch if len(shares) <= PAIRS_UP_TO else JointSketch
    return kind(problem, shares, drawing, in_turns=in_turns)


def _ahead(values: Array, first: int, end: int) -> Array:
    """For each rank, the sum over the ranks that are `first` up to without `end` places on."""
    sums = numpy.concatenate([[0], numpy.cumsum(numpy.tile(values, 2))])
    ranks = numpy.arange(len(values))
    between: Array = sums[ranks + end] - sums[ranks + first]
    return between


def _behind(values: Array, first: int, end: int) -> Array:
    """Likewise, over those that are so many places back."""
    return _ahead(values[::-1], first, end)[::-1]

"""A step of a pipeline as operations: passes by layer and micro-batch, and what goes between."""

from __future__ import annotations

from collections.abc import Sequence

from convoy.cost.layers import NetworkFacts
from convoy.cost.schedule import Collective, Compute, Phase, Schedule, Transfer
from convoy.cost.simulate import Played
from convoy.strategies.base import Problem
from convoy.strategies.passes import Drawing, layers_or_whole
from convoy.strategies.pipeline_stages import Kind, Stage, micro_batch_sizes, passes

TARGET_BYTES = 8
"""Of one sample's class: an int64."""


def draw_pipelines(
    problem: Problem,
    stages: Sequence[Stage],
    shares: Sequence[int],
    micro_batches: int,
    kind: Kind,
) -> Schedule:
    """A full batch's step: every stage's passes in its order, each after what it is sent.

    Args:
        shares: samples of each pipeline, of which the first has the first ranks.
        micro_batches: of each pipeline's share.
    """
    drawing, network = Drawing(), problem.network
    last: list[tuple[int, ...]] = []
    for number, share in enumerate(shares):
        sizes = micro_batch_sizes(network, share, micro_batches)
        sketch = _Sketch(problem, stages, sizes, kind, drawing, first_rank=number * len(stages))
        last += sketch.draw()
    for stage, part in enumerate(parameters_by_stage(network, stages)):
        ranks = tuple(range(stage, len(last), len(stages)))
        if len(ranks) > 1:
            summed = Collective(
                kind="all-reduce",
                ranks=ranks,
                payload_bytes=part * problem.element_bytes,
                after=tuple(index for rank in ranks for index in last[rank]),
            )
            index = drawing.add(summed)
            for rank in ranks:
                last[rank] = (index,)
        for rank in ranks:
            update = Compute(
                rank=rank,
                phase="update",
                samples=0,
                part=part / max(1, network.num_parameters),
                after=last[rank],
            )
            drawing.add(update)
    return drawing.schedule()


def idle_fraction(played: Played) -> float:
    """The part of all ranks' time in a step for which they do not compute: the bubble."""
    whole = played.step_s * len(played.ranks)
    return 1 - sum(rank.compute_s for rank in played.ranks) / whole if whole else 0.0


class _Sketch:
    """A pipeline's passes in the making."""

    def __init__(
        self,
        problem: Problem,
        stages: Sequence[Stage],
        sizes: Sequence[int],
        kind: Kind,
        drawing: Drawing,
        *,
        first_rank: int,
    ) -> None:
        self._problem, self._stages, self._sizes = problem, stages, sizes
        self._drawing, self._first_rank = drawing, first_rank
        self._todo = [list(passes(kind, s, len(stages), len(sizes))) for s in range(len(stages))]
        self._last: list[tuple[int, ...]] = [() for _ in stages]
        """What each stage did last."""
        self._arrived: dict[tuple[Phase, int, int], int] = {}
        """Transfers by pass, stage that they are for, and micro-batch."""
        self._sent: dict[tuple[int, int], int] = {}
        """The last transfer from one stage to another: they go in a row."""

    def draw(self) -> list[tuple[int, ...]]:
        """What each stage did last, and what it sent."""
        drawing, batch, end = self._drawing, sum(self._sizes), len(self._stages) - 1
        load = Compute(rank=self._first_rank, phase="load", samples=batch)
        self._last[0] = (drawing.add(load),)
        if end:
            self._arrived["forward", end, -1] = self._send(0, end, batch * TARGET_BYTES)
        while any(self._todo):
            for stage, todo in enumerate(self._todo):
                while todo and self._is_ready(stage, *todo[0]):
                    self._pass(stage, *todo.pop(0))
        if end:
            self._arrived["backward", 0, -1] = self._send(end, 0, self._problem.element_bytes)
        ended = []
        for stage, last in enumerate(self._last):
            gone = [sent for (source, _), sent in self._sent.items() if source == stage]
            came = [self._arrived["backward", 0, -1]] if end and stage == 0 else []
            ended.append((*last, *gone, *came))
        return ended

    def _is_ready(self, stage: int, phase: Phase, batch: int) -> bool:
        """Whether what the pass needs of another stage has been drawn."""
        return not self._waits(stage, phase) or (phase, stage, batch) in self._arrived

    def _waits(self, stage: int, phase: Phase) -> bool:
        """Whether something is sent to the stage for this pass."""
        if phase == "forward":
            return stage > 0
        cut = self._stages[stage].cut
        return cut is not None and cut.gradient

    def _pass(self, stage: int, phase: Phase, batch: int) -> None:
        layers, after = self._stages[stage].layers, self._last[stage]
        if self._waits(stage, phase):
            after += (self._arrived[phase, stage, batch],)
        end = len(self._stages) - 1
        if end and stage == end and phase == "forward" and batch == 0:
            after += (self._arrived["forward", end, -1],)  # what it is to find out
        for layer in layers if phase == "forward" else reversed(layers):
            compute = Compute(
                rank=self._first_rank + stage,
                phase=phase,
                samples=self._sizes[batch],
                layer=layer,
                after=after,
            )
            after = (self._drawing.add(compute),)
        self._last[stage] = after
        onward = stage + 1 if phase == "forward" else stage - 1
        cut = self._stages[min(stage, onward)].cut if onward >= 0 else None
        if cut is not None and (phase == "forward" or cut.gradient):
            size = self._sizes[batch] * cut.elements * self._problem.map_bytes
            self._arrived[phase, onward, batch] = self._send(stage, onward, size)

    def _send(self, source: int, destination: int, size: int) -> int:
        before = self._sent.get((source, destination))
        after = self._last[source] + (() if before is None else (before,))
        transfer = Transfer(
            source=self._first_rank + source,
            destination=self._first_rank + destination,
            payload_bytes=size,
            after=after,
        )
        sent = self._drawing.add(transfer)
        self._sent[source, destination] = sent
        return sent


def parameters_by_stage(network: NetworkFacts, stages: Sequence[Stage]) -> tuple[int, ...]:
    """Trainable parameters of each stage."""
    of = {layer.name: sum(layer.parameters) for layer in layers_or_whole(network)}
    return tuple(sum(of[name] for name in stage.layers) for stage in stages)

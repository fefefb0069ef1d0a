"""A step of a pipeline as operations: passes by layer and micro-batch, and what goes between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from convoy.cost.layers import NetworkFacts
from convoy.cost.schedule import Collective, Compute, Phase, Schedule, Transfer
from convoy.cost.simulate import Played
from convoy.strategies.base import Problem
from convoy.strategies.passes import Drawing, layers_or_whole
from convoy.strategies.pipeline_costs import part_of
from convoy.strategies.pipeline_orders import Kind, Pass, micro_batch_sizes, passes
from convoy.strategies.pipeline_stages import Stage

TARGET_BYTES = 8
"""Of one sample's class: an int64."""


def draw_pipelines(
    problem: Problem,
    stages: Sequence[Stage],
    shares: Sequence[int],
    micro_batches: int,
    kind: Kind,
    *,
    by_layer: bool = True,
) -> Schedule:
    """A full batch's step: every device's passes in their order, each after what it is sent.

    Args:
        shares: samples of each pipeline, of which the first has the first ranks.
        micro_batches: of each pipeline's share.
        by_layer: whether a pass is an operation for each layer, or one whose `layer` is the number
            of the stage: what a step takes is the same (`seconds_by_stage`).
    """
    drawing, network = Drawing(), problem.network
    depth = len(problem.workers) // len(shares)
    last: list[tuple[int, ...]] = []
    for number, share in enumerate(shares):
        sizes = micro_batch_sizes(network, share, micro_batches)
        ranks = range(number * depth, (number + 1) * depth)
        sketch = _Sketch(problem, stages, sizes, kind, drawing, ranks, by_layer=by_layer)
        last += sketch.draw([()] * depth)
    for place, part in enumerate(parameters_by_place(network, stages, depth)):
        alike = tuple(range(place, len(last), depth))
        if len(alike) > 1:
            summed = Collective(
                kind="all-reduce",
                ranks=alike,
                payload_bytes=part * problem.element_bytes,
                after=tuple(index for rank in alike for index in last[rank]),
            )
            index = drawing.add(summed)
            for rank in alike:
                last[rank] = (index,)
        for rank in alike:
            update = Compute(
                rank=rank,
                phase="update",
                samples=0,
                part=part / max(1, network.num_parameters),
                after=last[rank],
            )
            drawing.add(update)
    return drawing.schedule()


def draw_pipeline(
    drawing: Drawing,
    problem: Problem,
    stages: Sequence[Stage],
    micro_batches: int,
    kind: Kind,
    ranks: range,
    after: Sequence[tuple[int, ...]],
    *,
    by_layer: bool = True,
) -> list[tuple[int, ...]]:
    """Add the passes of a whole batch through one pipeline, without an update.

    Args:
        ranks: those of the pipeline.
        after: what each of them does before.

    Returns:
        What each did last, and sent.
    """
    sizes = micro_batch_sizes(problem.network, problem.batch_size, micro_batches)
    return _Sketch(problem, stages, sizes, kind, drawing, ranks, by_layer=by_layer).draw(after)


def whole(stage: int) -> str:
    """What stands for all layers of a stage in a schedule that is not drawn by layer."""
    return f"all of stage {stage}"  # no layer is called so: names have no spaces


def seconds_by_stage(
    seconds: Callable[[Compute], float], stages: Sequence[Stage]
) -> Callable[[Compute], float]:
    """What operations of a schedule that is not drawn by layer take."""

    layers = {whole(number): stage.layers for number, stage in enumerate(stages)}

    @cache
    def of_pass(rank: int, phase: Phase, samples: int, stage: str) -> float:
        return sum(
            seconds(Compute(rank=rank, phase=phase, samples=samples, layer=layer))
            for layer in layers[stage]
        )

    def of(compute: Compute) -> float:
        if compute.layer not in layers:
            return seconds(compute)
        return of_pass(compute.rank, compute.phase, compute.samples, compute.layer)

    return of


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
        ranks: range,
        *,
        by_layer: bool,
    ) -> None:
        self._problem, self._stages, self._sizes = problem, stages, sizes
        self._drawing, self._first_rank, self._depth = drawing, ranks[0], len(ranks)
        self._layers = [s.layers if by_layer else (whole(n),) for n, s in enumerate(stages)]
        """What a pass through each stage is made of."""
        self._parts = parts_by_stage(problem.network, stages)
        each = len(stages) // self._depth
        self._todo = [
            list(passes(kind, place, self._depth, each, len(sizes))) for place in range(self._depth)
        ]
        self._last: list[tuple[int, ...]] = [() for _ in ranks]
        """What the device in each place did last."""
        self._arrived: dict[Pass, int] = {}
        """Transfers, by the pass that they are for."""
        self._sent: dict[tuple[int, int], int] = {}
        """The last transfer from one place to another: they go in a row."""
        self._begun: set[int] = set()
        """Stages that a micro-batch has come back through: others add their gradients."""

    def draw(self, after: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """What each device did last, and what it sent; `after` is what each does before."""
        drawing, batch, end = self._drawing, sum(self._sizes), self._depth - 1
        load = Compute(rank=self._first_rank, phase="load", samples=batch, after=after[0])
        self._last = [(drawing.add(load),), *after[1:]]
        targets = None
        if end:
            targets = self._send(0, end, batch * TARGET_BYTES)
        while any(self._todo):
            left = sum(map(len, self._todo))
            for place, todo in enumerate(self._todo):
                while todo and self._is_ready(todo[0]):
                    self._pass(place, todo.pop(0), targets)
            assert sum(map(len, self._todo)) < left, "passes wait for one another in a circle"
        loss = self._send(end, 0, self._problem.element_bytes) if end else None
        ended = []
        for place, last in enumerate(self._last):
            gone = [sent for (source, _), sent in self._sent.items() if source == place]
            came = [loss] if loss is not None and place == 0 else []
            ended.append((*last, *gone, *came))
        return ended

    def _is_ready(self, due: Pass) -> bool:
        """Whether what the pass needs of another stage has been drawn."""
        return not self._waits(due) or due in self._arrived

    def _waits(self, due: Pass) -> bool:
        """Whether something is sent to the stage for this pass."""
        phase, stage, _ = due
        if phase == "forward":
            return stage > 0
        cut = self._stages[stage].cut
        return cut is not None and cut.gradient

    def _pass(self, place: int, due: Pass, targets: int | None) -> None:
        phase, stage, batch = due
        layers, after = self._layers[stage], self._last[place]
        if self._waits(due):
            after += (self._arrived[due],)
        if targets is not None and (phase, stage, batch) == ("forward", len(self._stages) - 1, 0):
            after += (targets,)  # what it is to find out
        for layer in layers if phase == "forward" else reversed(layers):
            compute = Compute(
                rank=self._first_rank + place,
                phase=phase,
                samples=self._sizes[batch],
                layer=layer,
                after=after,
            )
            after = (self._drawing.add(compute),)
        if phase == "backward":
            after = self._added(place, stage, after)
        self._last[place] = after
        onward = stage + 1 if phase == "forward" else stage - 1
        cut = self._stages[min(stage, onward)].cut if onward >= 0 else None
        if cut is not None and (phase == "forward" or cut.gradient):
            size = self._sizes[batch] * cut.elements * self._problem.map_bytes
            self._arrived[phase, onward, batch] = self._send(place, onward % self._depth, size)

    def _added(self, place: int, stage: int, after: tuple[int, ...]) -> tuple[int, ...]:
        """Gradients of a stage, added to those that are there; the first are not."""
        if stage not in self._begun:
            self._begun.add(stage)
            return after
        accumulate = Compute(
            rank=self._first_rank + place,
            phase="accumulate",
            samples=0,
            part=self._parts[stage],
            after=after,
        )
        return (self._drawing.add(accumulate),)

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


def parts_by_stage(network: NetworkFacts, stages: Sequence[Stage]) -> list[float]:
    """Which part of all parameters each stage has."""
    of = {layer.name: part_of(network, layer) for layer in layers_or_whole(network)}
    return [sum(of[name] for name in stage.layers) for stage in stages]


def parameters_by_place(
    network: NetworkFacts, stages: Sequence[Stage], depth: int
) -> tuple[int, ...]:
    """Trainable parameters of the stages that each device of a pipeline has."""
    of = {layer.name: sum(layer.parameters) for layer in layers_or_whole(network)}
    each = [sum(of[name] for name in stage.layers) for stage in stages]
    return tuple(sum(each[place::depth]) for place in range(depth))

"""Asynchronous training as operations: each replica's steps, and its exchanges with the servers.

replica    load ─ forward ─ backward ─┬─ load ─ forward ─ ...        with a push in flight
shard                                 └─▶ push ─ update ─ fetch ─▶   before the step after that
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from convoy.cost.schedule import Compute, Schedule, Transfer
from convoy.strategies.downpour_plan import KIND, DownpourPlan
from convoy.strategies.passes import Drawing, layers_or_whole
from convoy.strategies.pipeline_drawing import draw_pipeline
from convoy.strategies.push_codec import Wire

After = list[tuple[int, ...]]
"""By device of a replica: operations."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A replica's step, drawn."""

    last: After
    """What each device computed last."""
    answers: After
    """What has come back to it when the step's exchange is over."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """Draws the steps of a plan."""

    plan: DownpourPlan
    wire: Wire
    push_every: int
    fetch_every: int

    def step(self, number: int, step: int) -> Schedule:
        """A single step of the replica that takes it, as its own step `number`."""
        drawing, nothing = Drawing(), [()] * self.plan.team
        self._step(drawing, self.plan.takers[step % len(self.plan.takers)], number, [*nothing], 0)
        return drawing.schedule()

    def stretch(self) -> Schedule:
        """Steps of all replicas side by side, each at its own pace."""
        plan, drawing = self.plan, Drawing()
        done: list[list[Ended]] = [[] for _ in plan.speeds]
        depth = plan.depth if len(plan.shares) > 1 else 0
        for step, replica in enumerate(plan.takers):
            earlier = done[replica]
            # what a step begins with: the last computation, and the answer `depth` pushes ago
            after: After = [*earlier[-1].last] if earlier else [()] * plan.team
            if len(earlier) > depth:
                came = earlier[-1 - depth].answers
                after = [(*own, *new) for own, new in zip(after, came, strict=True)]
            earlier.append(self._step(drawing, replica, len(earlier), after, step))
        return drawing.schedule()

    def _step(self, drawing: Drawing, replica: int, number: int, after: After, step: int) -> Ended:
        plan, first = self.plan, len(drawing.operations)
        if plan.team == 1:
            last = [self._passes(drawing, replica, after[0])]
        else:
            ranks = range(replica * plan.team, (replica + 1) * plan.team)
            problem, stages = plan.problem, plan.stages
            last = draw_pipeline(
                *(drawing, problem, stages, plan.micro_batches, KIND, ranks, after)
            )
        answers = self._exchange(drawing, replica, number, last)
        for index, operation in enumerate(drawing.operations[first:], start=first):
            if isinstance(operation, Compute):
                drawing.operations[index] = replace(operation, step=step)
        return Ended(last=last, answers=answers)

    def _passes(self, drawing: Drawing, rank: int, after: tuple[int, ...]) -> tuple[int, ...]:
        """Of a replica of one device."""
        problem = self.plan.problem
        layers = layers_or_whole(problem.network)
        passes: list[tuple[Literal["load", "forward", "backward"], str]] = [("load", "")]
        passes += [("forward", layer.name) for layer in layers]
        passes += [("backward", layer.name) for layer in reversed(layers)]
        for phase, layer in passes:
            compute = Compute(
                rank=rank, phase=phase, samples=problem.batch_size, layer=layer, after=after
            )
            after = (drawing.add(compute),)
        return after

    def _exchange(
        self, drawing: Drawing, replica: int, number: int, last: Sequence[tuple[int, ...]]
    ) -> After:
        """Pushes and fetches after a replica's step `number`: what comes of them."""
        plan = self.plan
        pushes, fetches = (number + 1) % self.push_every == 0, (number + 1) % self.fetch_every == 0
        answers: After = [() for _ in last]
        total, width = sum(plan.sizes), plan.problem.element_bytes
        shards = zip(plan.homes, plan.sizes, plan.layout.places, strict=True)
        for home, elements, place in shards if pushes or fetches else ():
            rank, arrived = replica * plan.team + place, last[place]
            if pushes:
                push = Transfer(
                    source=rank,
                    destination=home,
                    payload_bytes=self.wire.push_bytes(elements, width),
                    after=arrived,
                )
                update = Compute(
                    rank=home,
                    phase="update",
                    samples=0,
                    part=elements / total,
                    after=(drawing.add(push),),
                )
                arrived = (drawing.add(update),)
            if fetches:
                fetch = Transfer(
                    source=home,
                    destination=rank,
                    payload_bytes=self.wire.fetch_bytes(elements, width),
                    after=arrived,
                )
                arrived = (drawing.add(fetch),)
            answers[place] += arrived
        return answers

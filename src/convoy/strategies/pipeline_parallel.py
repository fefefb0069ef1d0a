"""`pipeline`: consecutive layers on each device; parts of the batch follow one another through.

    rank 0   load F0 F1 F2 F3 ─────── B0 ── B1 ── B2 ── B3 update      F2: forward pass of
                ║  ║  ║  ║            ▲     ▲     ▲     ▲                   micro-batch 2
    rank 1      F0 F1 F2 F3 ────── B0 ── B1 ── B2 ── B3 ── update      ║ ▲: maps on, gradients back
                   ║  ║  ║  ║      ▲     ▲     ▲     ▲
    rank 2         F0 F1 F2 F3 B0 ── B1 ── B2 ── B3 ────── update

The network is cut where a single tensor is alive, at such places, and with the stages on such
devices, that the busiest device or link is as little busy as can be, and a batch is through as
early as can be (`pipeline_partition`). The batch is cut into micro-batches that go through one
after another, so that all stages work at once; gradients are summed over them. The more there
are, the shorter is the time for which stages stand empty, and the less efficiently each is
computed: their number is planned too.

`schedule` is the order of passes: `gpipe`, all forward passes first (as drawn), or `1f1b`, which
begins with backward passes as soon as it can, and so keeps the maps of fewer micro-batches.

Where there are more devices than stages pay for, several pipelines stand side by side, each with a
share of the batch and the same cuts; gradients of a stage are summed over all that have it.

A rank trains its own stage's parameters only. Every `snapshot_every` steps, and wherever a
checkpoint or an evaluation is due, all ranks get the whole state: that is what the crew goes on
from if one of them dies.

Sources: J. Dean et al., "Large scale distributed deep networks", NIPS 2012, section 3 (a model
partitioned over machines); Y. Huang et al., "GPipe: efficient training of giant neural networks
using pipeline parallelism", NeurIPS 2019, section 2 (micro-batches, `gpipe`); D. Narayanan et al.,
"PipeDream: generalized pipeline parallelism for DNN training", SOSP 2019, section 3 (`1f1b`,
there without an end of the batch; partition by measured times).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from convoy.cost.schedule import Schedule
from convoy.cost.simulate import simulate
from convoy.errors import UnknownNameError, UsageError
from convoy.strategies.base import Batch, PartingStrategy, Plan, Problem, Program, Rank
from convoy.strategies.parted_state import PartedState, train_in_parts
from convoy.strategies.passes import layers_or_whole
from convoy.strategies.pipeline_drawing import draw_pipelines, parameters_by_stage
from convoy.strategies.pipeline_stages import Stage, divisions, micro_batch_sizes, passes

SCHEDULES = ("gpipe", "1f1b")


@dataclass(frozen=True, kw_only=True)
class PipelinePlan(Plan):
    """Samples for the first rank of each pipeline, and who has which layers."""

    stages: tuple[Stage, ...]
    """S of them: rank r S + s has stage s of pipeline r."""
    micro_batches: int
    """Of a pipeline's part of a full batch."""

    @property
    def pipelines(self) -> int:
        """How many stand side by side."""
        return len(self.shares) // len(self.stages)

    def stage_of(self, rank: int) -> Stage:
        """What a rank has."""
        return self.stages[rank % len(self.stages)]

    @property
    def exact(self) -> bool:
        """Not where batches are normalised in parts: each micro-batch is, by itself."""
        normalises = bool(self.problem.network.batch_norm_channels)
        return not normalises or self.micro_batches == self.pipelines == 1

    @property
    def divided(self) -> dict[str, tuple[int, ...]]:
        """Whole layers: 1 for a rank that has it."""
        if len(self.stages) == 1:
            return {}
        ranks = range(len(self.shares))
        return {
            name: tuple(int(rank % len(self.stages) == own) for rank in ranks)
            for own, stage in enumerate(self.stages)
            for name in stage.layers
        }

    @property
    def portions(self) -> tuple[float, ...]:
        """Parts of the work, by multiply-adds."""
        total = sum(stage.work for stage in self.stages)
        if not total:
            return super().portions
        size, count = self.problem.batch_size, len(self.stages)
        return tuple(
            self.shares[rank - rank % count] / size * self.stage_of(rank).work / total
            for rank in range(len(self.shares))
        )


@dataclass(frozen=True, kw_only=True)
class PipelineParallel(PartingStrategy):
    """Stages of consecutive layers, through which micro-batches go."""

    name: ClassVar[str] = "pipeline"
    summary: ClassVar[str] = "each device has some layers; micro-batches go from one to the next"

    pipeline_schedule: Literal["gpipe", "1f1b"] = field(
        default="gpipe", metadata={"help": "gpipe or 1f1b: the order of passes"}
    )
    """Forward passes of all micro-batches first, or backward passes as soon as can be."""
    micro_batches: int | Literal["auto"] = field(
        default="auto", metadata={"help": "into how many parts a batch is cut; auto: planned"}
    )
    """`auto`: as many as make the shortest step. Fewer where a step has fewer samples."""
    pipelines: int | Literal["auto"] = field(
        default="auto", metadata={"help": "at most so many pipelines side by side; auto: planned"}
    )
    """`auto`: as many as make the shortest step. All have as many stages, two or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pipeline_schedule not in SCHEDULES:
            raise UnknownNameError("--pipeline-schedule", str(self.pipeline_schedule), SCHEDULES)
        for option in ("micro_batches", "pipelines"):
            number = getattr(self, option)
            if number != "auto" and (type(number) is not int or number < 1):
                flag = "--" + option.replace("_", "-")
                raise UsageError(f"{flag} {number}: expected 1 or more, or auto")

    def plan(self, problem: Problem) -> PipelinePlan:
        """Cut the network so that a step is short; ranks are in the order of their stages, pipeline
        by pipeline.

        Raises:
            UsageError: the network cannot be cut into so many stages.
        """
        asked = (None if n == "auto" else n for n in (self.micro_batches, self.pipelines))
        plans = [
            PipelinePlan(
                problem=found.problem,
                shares=tuple(
                    share if stage == 0 else 0
                    for share in found.shares
                    for stage in range(len(found.stages))
                ),
                stages=found.stages,
                micro_batches=found.micro_batches,
            )
            for found in divisions(problem, *asked)
        ]
        return plans[0] if len(plans) == 1 else min(plans, key=self._step_s)

    def _step_s(self, plan: PipelinePlan) -> float:
        world = plan.problem.world
        assert world is not None  # else there is one plan only
        picks = tuple(worker.index for worker in plan.problem.workers)
        return simulate(self.schedule(plan, 0), world.seconds(picks), world.fabric(picks)).step_s

    def activations(self, plan: Plan) -> tuple[int, ...]:
        """A stage's maps of the micro-batches under way, and all that travels in a step."""
        assert isinstance(plan, PipelinePlan)
        network, count = plan.problem.network, len(plan.stages)
        of = {layer.name: layer.activations for layer in layers_or_whole(network)}
        held = []
        for rank in range(len(plan.shares)):
            index, stage = rank % count, plan.stage_of(rank)
            batch = plan.shares[rank - index]
            sizes = micro_batch_sizes(network, batch, plan.micro_batches)
            order = passes(self.pipeline_schedule, index, len(plan.stages), len(sizes))
            ahead = next(at for at, (phase, _) in enumerate(order) if phase == "backward")
            cuts = (plan.stages[index - 1].cut if index else None, stage.cut)
            moved = sum(cut.elements * (1 + cut.gradient) for cut in cuts if cut)
            held.append(sum(sizes[:ahead]) * sum(of[n] for n in stage.layers) + batch * moved)
        return tuple(held)

    def parameters(self, plan: Plan) -> tuple[int, ...]:
        """Those of each stage."""
        assert isinstance(plan, PipelinePlan)
        return parameters_by_stage(plan.problem.network, plan.stages) * plan.pipelines

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """Each stage's passes in their order, and what goes between them."""
        del step  # every step is alike
        assert isinstance(plan, PipelinePlan)
        shares = plan.shares[:: len(plan.stages)]
        return draw_pipelines(
            *(plan.problem, plan.stages, shares, plan.micro_batches, self.pipeline_schedule)
        )

    def run(self, rank: Rank) -> Program:
        """Each rank computes its stage; the first has the images, the last finds the loss."""
        plan = rank.plan
        assert isinstance(plan, PipelinePlan)
        every = self.snapshot_every
        if len(plan.shares) == 1:

            def step(batch: Batch) -> Tensor:
                return _whole_step(rank, batch, plan.micro_batches)

            yield from train_in_parts(rank, PartedState(rank, {}), step, snapshot_every=every)
            return
        # It brings much of torch along, which takes seconds and only ranks want.
        from convoy.strategies.pipeline_stage import PipelineRank

        shares = plan.shares[:: len(plan.stages)]
        with PipelineRank(
            *(rank, plan.stages, shares, plan.micro_batches, self.pipeline_schedule)
        ) as own:
            parted = PartedState(rank, own.rows, copies=plan.pipelines)
            yield from train_in_parts(rank, parted, own.step, snapshot_every=every)


def _whole_step(rank: Rank, batch: Batch, micro_batches: int) -> Tensor:
    """Both passes through the whole network, one micro-batch after another; the loss's sum."""
    network = rank.plan.problem.network
    sizes = micro_batch_sizes(network, batch.samples, micro_batches)
    total = torch.zeros((), device=rank.device)
    pieces = zip(batch.inputs.split(sizes), batch.targets.split(sizes), strict=True)
    for inputs, targets in pieces:
        part = replace(batch, inputs=inputs, targets=targets, samples=len(targets))
        loss_sum = rank.loss(rank.model, part)
        (loss_sum / batch.step_samples).backward()
        total = total + loss_sum.detach()
    return total

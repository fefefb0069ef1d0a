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

A device may have several stages that are far apart, so that a batch goes round the devices more
than once: the pipeline is filled sooner with the same micro-batches, and more travels. How many is
planned too. The order of passes is `gpipe`, all forward passes first (as drawn), or `1f1b`, which
begins with backward passes as soon as it can, and so keeps the maps of fewer micro-batches; with
several stages on a device both are interleaved (`pipeline_orders`).

Where there are more devices than stages pay for, several pipelines stand side by side, each with a
share of the batch and the same cuts; gradients of a stage are summed over all that have it.

A rank trains its own stage's parameters only. Every `snapshot_every` steps, and wherever a
checkpoint or an evaluation is due, all ranks get the whole state: that is what the crew goes on
from if one of them dies.

Sources: J. Dean et al., "Large scale distributed deep networks", NIPS 2012, section 3 (a model
partitioned over machines); Y. Huang et al., "GPipe: efficient training of giant neural networks
using pipeline parallelism", NeurIPS 2019, section 2 (micro-batches, `gpipe`); D. Narayanan et al.,
"PipeDream: generalized pipeline parallelism for DNN training", SOSP 2019, section 3 (`1f1b`,
there without an end of the batch; partition by measured times); D. Narayanan et al., "Efficient
large-scale language model training on GPU clusters using Megatron-LM", SC 2021, section 2.2
(several stages on a device).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from convoy.cost.schedule import Schedule
from convoy.cost.simulate import simulate
from convoy.errors import UnknownNameError, UsageError
from convoy.strategies.base import Batch, PartingStrategy, Plan, Problem, Program, Rank
from convoy.strategies.parted_state import PartedState, train_in_parts
from convoy.strategies.pipeline_drawing import (
    draw_pipelines,
    parameters_by_place,
    seconds_by_stage,
)
from convoy.strategies.pipeline_orders import KINDS, Kind, micro_batch_sizes, takes_turns
from convoy.strategies.pipeline_stages import (
    Asked,
    Division,
    Stage,
    activations_by_place,
    divisions,
)


@dataclass(frozen=True, kw_only=True)
class PipelinePlan(Plan):
    """Samples for the first rank of each pipeline, and who has which layers."""

    depth: int
    """D, devices of each pipeline."""
    stages: tuple[Stage, ...]
    """Of a pipeline: rank r D + d has stages d, d + D and so on of pipeline r."""
    micro_batches: int
    """Of a pipeline's part of a full batch."""
    kind: Kind
    """The order of passes."""

    @property
    def order(self) -> Kind:
        """That of a full batch: not every number of micro-batches can be computed as 1f1b."""
        number = micro_batch_sizes(self.problem.network, max(self.shares), self.micro_batches)
        turns = takes_turns(self.kind, self.depth, self.stages_per_device, len(number))
        return "1f1b" if turns else "gpipe"

    @property
    def pipelines(self) -> int:
        """How many stand side by side."""
        return len(self.shares) // self.depth

    @property
    def stages_per_device(self) -> int:
        """How many each device has."""
        return len(self.stages) // self.depth

    def stages_of(self, rank: int) -> tuple[Stage, ...]:
        """What a rank has."""
        return self.stages[rank % self.depth :: self.depth]

    @property
    def exact(self) -> bool:
        """Not where batches are normalised in parts: each micro-batch is, by itself."""
        normalises = bool(self.problem.network.batch_norm_channels)
        return not normalises or self.micro_batches == self.pipelines == 1

    @property
    def divided(self) -> dict[str, tuple[int, ...]]:
        """Whole layers: 1 for a rank that has it."""
        if self.depth == 1:
            return {}
        ranks = range(len(self.shares))
        return {
            name: tuple(int(stage in self.stages_of(rank)) for rank in ranks)
            for stage in self.stages
            for name in stage.layers
        }

    @property
    def settled(self) -> dict[str, float | str]:
        """What was planned, or asked for."""
        return {
            "pipelines": self.pipelines,
            "stages_per_device": self.stages_per_device,
            "micro_batches": self.micro_batches,
            "pipeline_schedule": self.order,
        }

    @property
    def portions(self) -> tuple[float, ...]:
        """Parts of the work, by multiply-adds."""
        total = sum(stage.work for stage in self.stages)
        if not total:
            return super().portions
        size = self.problem.batch_size
        return tuple(
            self.shares[rank - rank % self.depth] / size * stage_work / total
            for rank in range(len(self.shares))
            for stage_work in [sum(stage.work for stage in self.stages_of(rank))]
        )


@dataclass(frozen=True, kw_only=True)
class PipelineParallel(PartingStrategy):
    """Stages of consecutive layers, through which micro-batches go."""

    name: ClassVar[str] = "pipeline"
    summary: ClassVar[str] = "each device has some layers; micro-batches go from one to the next"

    pipeline_schedule: Literal["auto", "gpipe", "1f1b"] = field(
        default="auto", metadata={"help": "gpipe or 1f1b: the order of passes; auto: planned"}
    )
    """Forward passes of all micro-batches first, or backward passes as soon as can be. `auto`:
    whatever makes the shorter step, or `1f1b` where that is the same or nothing was measured."""
    micro_batches: int | Literal["auto"] = field(
        default="auto", metadata={"help": "into how many parts a batch is cut; auto: planned"}
    )
    """`auto`: as many as make the shortest step. Fewer where a step has fewer samples."""
    pipelines: int | Literal["auto"] = field(
        default="auto", metadata={"help": "at most so many pipelines side by side; auto: planned"}
    )
    """`auto`: as many as make the shortest step. All have as many devices, two or more."""
    stages_per_device: int | Literal["auto"] = field(
        default="auto",
        metadata={"help": "at most so many stages on each device, interleaved; auto: planned"},
    )
    """`auto`: as many as make the shortest step; one where nothing was measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pipeline_schedule not in ("auto", *KINDS):
            raise UnknownNameError(
                "--pipeline-schedule", str(self.pipeline_schedule), ("auto", *KINDS)
            )
        for option in ("micro_batches", "pipelines", "stages_per_device"):
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
        kinds = KINDS if self.pipeline_schedule == "auto" else (self.pipeline_schedule,)
        asked = Asked(
            pipelines=_number(self.pipelines),
            stages_per_device=_number(self.stages_per_device),
            micro_batches=_number(self.micro_batches),
        )
        plan = self._best([_plan(found, kinds[0]) for found in divisions(problem, asked)])
        if problem.world is None or plan.depth == 1:
            return plan
        return self._best([plan, *(replace(plan, kind=kind) for kind in kinds[1:])])

    def _best(self, plans: Sequence[PipelinePlan]) -> PipelinePlan:
        """The one with the shortest step, of those for which there is memory if there are any."""
        return plans[0] if len(plans) == 1 else min(plans, key=self._cost)

    def _cost(self, plan: PipelinePlan) -> tuple[bool, float]:
        world = plan.problem.world
        assert world is not None  # else there is one plan only
        picks = tuple(worker.index for worker in plan.problem.workers)
        seconds = seconds_by_stage(world.seconds(picks), plan.stages)
        step_s = simulate(_drawn(plan, by_layer=False), seconds, world.fabric(picks)).step_s
        return bool(world.shortage(picks, self.peak_bytes(plan))), step_s

    def activations(self, plan: Plan) -> tuple[int, ...]:
        """A stage's maps of the micro-batches under way, and all that travels in a step."""
        assert isinstance(plan, PipelinePlan)
        network = plan.problem.network
        by_pipeline = (
            activations_by_place(
                network, plan.stages, plan.depth, samples, plan.micro_batches, plan.kind
            )
            for samples in plan.shares[:: plan.depth]
        )
        return tuple(peak for peaks in by_pipeline for peak in peaks)

    def parameters(self, plan: Plan) -> tuple[int, ...]:
        """Those of each device's stages."""
        assert isinstance(plan, PipelinePlan)
        return parameters_by_place(plan.problem.network, plan.stages, plan.depth) * plan.pipelines

    def schedule(self, plan: Plan, step: int) -> Schedule:
        """Each device's passes in their order, and what goes between them."""
        del step  # every step is alike
        assert isinstance(plan, PipelinePlan)
        return _drawn(plan)

    def run(self, rank: Rank) -> Program:
        """Each rank computes its stages; the first has the images, the last finds the loss."""
        plan = rank.plan
        assert isinstance(plan, PipelinePlan)
        every = self.snapshot_every
        if len(plan.shares) == 1:

            def step(batch: Batch) -> Tensor:
                return _whole_step(rank, batch, plan.micro_batches)

            yield from train_in_parts(rank, PartedState(rank, {}), step, snapshot_every=every)
            return
        # It brings much of torch along, which takes seconds and only ranks want.
        from convoy.strategies.pipeline_rank import PipelineRank

        shares = plan.shares[:: plan.depth]
        with PipelineRank(rank, plan.stages, shares, plan.micro_batches, plan.kind) as own:
            parted = PartedState(rank, own.rows, copies=plan.pipelines)
            yield from train_in_parts(rank, parted, own.step, snapshot_every=every)


def _number(asked: int | Literal["auto"]) -> int | None:
    return None if asked == "auto" else asked


def _plan(found: Division, kind: Kind) -> PipelinePlan:
    return PipelinePlan(
        problem=found.problem,
        shares=tuple(
            share if place == 0 else 0 for share in found.shares for place in range(found.depth)
        ),
        depth=found.depth,
        stages=found.stages,
        micro_batches=found.micro_batches,
        kind=kind,
    )


def _drawn(plan: PipelinePlan, *, by_layer: bool = True) -> Schedule:
    shares = plan.shares[:: plan.depth]
    return draw_pipelines(
        *(plan.problem, plan.stages, shares, plan.micro_batches, plan.kind), by_layer=by_layer
    )


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

"""A rank's stages of a pipeline at work.

torch.distributed.pipelining decides what is computed when, keeps what backward passes need and
hands gradients on. How tensors travel between ranks is our own (`pipeline_stage`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleLoopedBFS,
)

from convoy.comm import Team
from convoy.strategies.base import Batch, Rank
from convoy.strategies.passes import BUCKET_BYTES
from convoy.strategies.pipeline_orders import Kind, micro_batch_sizes, takes_turns
from convoy.strategies.pipeline_stage import TravellingStage
from convoy.strategies.pipeline_stages import Stage
from convoy.strategies.shares import cut
from convoy.strategies.stage_module import StageModule, Wire, parts_of

_Schedule = ScheduleGPipe | Schedule1F1B | ScheduleLoopedBFS | ScheduleInterleaved1F1B


class PipelineRank:
    """What a rank of a pipeline of several devices does in each step, until it is left."""

    def __init__(
        self,
        rank: Rank,
        stages: Sequence[Stage],
        shares: Sequence[int],
        micro_batches: int,
        kind: Kind,
    ) -> None:
        self._rank, self._comm, self._kind = rank, rank.comm, kind
        self._network, self._micro_batches = rank.plan.problem.network, micro_batches
        self._shares, self._count = shares, len(stages)
        self._depth = depth = rank.comm.world_size // len(shares)
        self._pipeline, self._place = divmod(rank.comm.rank, depth)
        self._first = self._pipeline * depth
        """The rank with this pipeline's first stage, and"""
        self._last = self._first + depth - 1
        """that with its last."""
        self._group: dist.ProcessGroup | None = None
        self._replicas: Team | None = None
        """Those that have the same stages as this rank."""
        if len(shares) > 1:
            ranks = range(len(shares) * depth)
            pipelines = [tuple(ranks[i : i + depth]) for i in ranks[::depth]]
            self._group = self._comm.team(pipelines).group
            self._replicas = self._comm.team([tuple(ranks[i::depth]) for i in ranks[:depth]])
        cuts = [stage.cut for stage in stages if stage.cut]
        self._before, self._after = [None, *cuts], [*cuts, None]
        """Where each stage begins and ends."""
        mixed = rank.plan.problem.mixed
        self._wire = Wire(rank.model, rank.device, mixed=mixed)
        parts, users = parts_of(rank.model, cuts)
        self._places = {name: stage % depth for name, stage in users.items()}
        """Of what some stage uses of the network's state: who has that stage."""
        self._modules = {
            stage: StageModule(
                parts[stage],
                self._wire,
                before=self._before[stage],
                after=self._after[stage],
                mixed=mixed,
            )
            for stage in range(self._place, self._count, depth)
        }
        self._schedules: dict[tuple[int, ...], _Schedule] = {}
        """By samples of the micro-batches: torch's are made for certain shapes."""
        self._stages: list[TravellingStage] = []
        """Of all of them."""
        self._batch = rank.example
        self._loss_sum = torch.zeros(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of what was to come, and of groups, which last as long as anyone has them.

        Schedules, stages and this refer to one another, and may be there for long.
        """
        for stage in self._stages:
            stage.group, stage.own = None, ()
        self._stages.clear()
        self._schedules.clear()
        self._group = self._replicas = None

    @property
    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """How state is parted in a pipeline: a tensor is whole at the place that uses it."""
        state = self._rank.model.state_dict()
        size = {name: len(tensor) if tensor.dim() else 1 for name, tensor in state.items()}
        return {
            name: tuple(size[name] if place == user else 0 for place in range(self._depth))
            for name, user in self._places.items()
        }

    def step(self, batch: Batch) -> Tensor:
        """Forward and backward pass; on a pipeline's first rank and last, the sum of the loss."""
        self._batch = batch
        self._loss_sum = torch.zeros((), dtype=next(self._rank.model.parameters()).dtype)
        samples = cut(batch.step_samples, self._shares)[self._pipeline]
        if samples:
            self._pass_through(batch, samples)
        if self._replicas is not None:
            self._sum_gradients(self._replicas)
        self._comm.finish()
        return self._loss_sum

    def _pass_through(self, batch: Batch, samples: int) -> None:
        """Both passes of this pipeline's samples."""
        comm = self._comm
        sizes = micro_batch_sizes(self._network, samples, self._micro_batches)
        if sizes not in self._schedules:
            self._schedules[sizes] = self._schedule(sizes, batch.inputs)
        schedule = self._schedules[sizes]
        with _silent():
            if self._place == 0:
                comm.send_async(batch.targets.to("cpu"), self._last)
                schedule.step(batch.inputs, return_outputs=False)
                comm.receive(self._loss_sum, self._last)
            elif self._place < self._depth - 1:
                schedule.step(return_outputs=False)
            else:
                targets = torch.empty(samples, dtype=torch.int64)
                comm.receive(targets, self._first)
                schedule.step(target=targets.to(self._rank.device), return_outputs=False)
                comm.send_async(self._loss_sum, self._first)

    def _sum_gradients(self, replicas: Team) -> None:
        """Of this rank's stages, over all pipelines; one without samples has zeros.

        What no pass uses travels with the first stage's, as `data` sends it, and changes nothing.
        What one uses has a gradient with every sample, so that one without is one without samples.
        """
        used = {
            name: parameter
            for name, parameter in self._rank.model.named_parameters()
            if parameter.requires_grad and self._places.get(name, 0) == self._place
        }
        for bucket in _buckets(used):
            gradients = {
                name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for name, parameter in bucket.items()
            }
            flat = torch.cat([gradient.flatten() for gradient in gradients.values()]).to("cpu")
            replicas.all_reduce([flat])
            parts = flat.split([gradient.numel() for gradient in gradients.values()])
            for (name, gradient), part in zip(gradients.items(), parts, strict=True):
                if name in self._places:
                    used[name].grad = gradient.copy_(part.view_as(gradient))

    def _schedule(self, sizes: tuple[int, ...], images: Tensor) -> _Schedule:
        """torch's schedule for micro-batches of these sizes, with what travels known already."""
        stages = [
            self._stage(stage, module, sizes, images) for stage, module in self._modules.items()
        ]
        for stage in stages:
            stage.own = stages
        self._stages += stages
        in_turns = takes_turns(self._kind, self._depth, len(stages), len(sizes))
        if len(stages) == 1:
            single = Schedule1F1B if in_turns else ScheduleGPipe
            return single(stages[0], len(sizes), loss_fn=self._loss, scale_grads=False)
        several = ScheduleInterleaved1F1B if in_turns else ScheduleLoopedBFS
        return several([*stages], len(sizes), loss_fn=self._loss, scale_grads=False)

    def _stage(
        self, index: int, module: StageModule, sizes: Sequence[int], images: Tensor
    ) -> TravellingStage:
        before, after = self._before[index], self._after[index]
        comes = images[: sizes[0]].to("meta")
        if before is not None:
            comes = self._wire.room(sizes[0], before, gradient=before.gradient)
        goes = torch.empty((sizes[0], 1), device="meta")  # what the network gives goes nowhere
        if after is not None:
            goes = self._wire.room(sizes[0], after, gradient=after.gradient)
        return TravellingStage(
            module,
            index,
            self._count,
            device=torch.device("cpu"),  # that of what travels
            input_args=(comes,),
            output_args=(goes,),
            group=self._group,
            comm=self._comm,
            sizes=sizes,
        )

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A micro-batch's part of the mean over the step."""
        part = replace(self._batch, inputs=outputs, targets=targets, samples=len(targets))
        loss = self._rank.loss(nn.Identity(), part)
        self._loss_sum += loss.detach().to(self._loss_sum)
        return loss / self._batch.step_samples


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """torch prints its whole schedule where a peer is lost, which the crew sees to."""
    logger = logging.getLogger("torch.distributed.pipelining.schedules")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _buckets(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    """Some at a time, of about `BUCKET_BYTES`."""
    bucket: dict[str, nn.Parameter] = {}
    for name, parameter in parameters.items():
        bucket[name] = parameter
        if sum(held.nbytes for held in bucket.values()) >= BUCKET_BYTES:
            yield bucket
            bucket = {}
    if bucket:
        yield bucket

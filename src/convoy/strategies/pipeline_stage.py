"""A rank's stages of a pipeline at work.

torch.distributed.pipelining decides what is computed when, keeps what backward passes need and
hands gradients on. What travels goes through `Comm`, which counts and times it. torch's schedules
ask for a tensor when they are about to wait for it, and Gloo sends nothing before it is asked
for, so that nothing would travel while anything is computed. Here a rank asks for everything as
the step begins, and waits where it needs it:

    torch's schedule    forward_one_chunk(0)     get_fwd_send_ops(0)  forward_one_chunk(1)  ...
    here   ask for all ─ wait for maps 0, compute ─ send maps 0 ────── wait for maps 1, compute ...

Each tensor has a tag of its own, since maps and gradients of several stages may come from one rank.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleLoopedBFS,
)

from convoy.comm import Comm, Team
from convoy.strategies.base import Batch, Rank
from convoy.strategies.passes import BUCKET_BYTES
from convoy.strategies.pipeline_orders import Kind, micro_batch_sizes, takes_turns
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
        self._stages: list[_Stage] = []
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
    ) -> _Stage:
        before, after = self._before[index], self._after[index]
        comes = images[: sizes[0]].to("meta")
        if before is not None:
            comes = self._wire.room(sizes[0], before, gradient=before.gradient)
        goes = torch.empty((sizes[0], 1), device="meta")  # what the network gives goes nowhere
        if after is not None:
            goes = self._wire.room(sizes[0], after, gradient=after.gradient)
        return _Stage(
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


class _Stage(PipelineStage):
    """torch's, but for how tensors travel."""

    def __init__(self, *args: Any, comm: Comm, sizes: Sequence[int], **kwargs: Any) -> None:
        """As torch's.

        Args:
            comm: what it sends and receives with.
            sizes: samples, by micro-batch.
        """
        super().__init__(*args, **kwargs)
        self._comm, self._sizes = comm, sizes
        self.own: Sequence[_Stage] = (self,)
        """All stages of this rank."""
        self._maps: list[Callable[[], Any]] = []
        self._gradients: list[Callable[[], Any]] = []

    def clear_runtime_states(self) -> None:
        """Begin a step."""
        super().clear_runtime_states()
        self._maps, self._gradients = [], []

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Nothing: all is asked for as the step begins."""
        del fwd_chunk_id
        return []

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Nothing: all is asked for as the step begins."""
        del bwd_chunk_id
        return []

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Send maps."""
        operations = super().get_fwd_send_ops(fwd_chunk_id)
        return self._send(
            operations, fwd_chunk_id, self._tag(self.stage_index + 1, "forward", fwd_chunk_id)
        )

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Send gradients."""
        operations = super().get_bwd_send_ops(bwd_chunk_id)
        return self._send(
            operations, bwd_chunk_id, self._tag(self.stage_index - 1, "backward", bwd_chunk_id)
        )

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Wait for the maps, then compute; every step begins with this, of one stage or other."""
        if not self._maps:
            for stage in self.own:
                stage.ask()
        self._maps[fwd_chunk_id]()
        return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        """Wait for the gradients, then compute."""
        self._gradients[bwd_chunk_id]()
        super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def ask(self) -> None:
        """Ask for all that is to come in this step."""
        maps, gradients = super().get_fwd_recv_ops, super().get_bwd_recv_ops
        self._maps, self._gradients = (
            [
                self._ask(coming, operations, chunk, self._tag(self.stage_index, phase, chunk))
                for chunk in range(len(self._sizes))
            ]
            for phase, coming, operations in (
                ("forward", self.args_recv_info, maps),
                ("backward", self.grad_recv_info, gradients),
            )
        )

    def _tag(self, stage: int, phase: str, chunk: int) -> int:
        """Of what a stage gets for a pass of a micro-batch; 0 is the tag of all else."""
        return 1 + (2 * stage + (phase == "backward")) * len(self._sizes) + chunk

    def _warmup_forward_vote(self, *_: Any, **__: Any) -> Tensor:
        """Whether shapes are known: they are, on every rank, and nothing need travel for it."""
        return torch.ones(1, dtype=torch.int32)

    def _warmup_backward_result(self, *_: Any, **__: Any) -> Tensor:
        return torch.ones(1, dtype=torch.int32)

    def _ask(
        self,
        coming: Mapping[int, Sequence[Any]],
        operations: Callable[[int], list[dist.P2POp]],
        chunk: int,
        tag: int,
    ) -> Callable[[], Any]:
        """Receive what comes of a micro-batch; what it returns waits for that."""
        for info in coming.get(chunk, ()):
            if info.buffer is not None and len(info.buffer) != self._sizes[chunk]:
                info.buffer = info.buffer.new_empty((self._sizes[chunk], *info.buffer.shape[1:]))
        waits = [self._comm.receive_async(op.tensor, op.peer, tag) for op in operations(chunk)]

        def wait() -> None:
            for came in waits:
                came()

        return wait

    def _send(self, operations: list[dist.P2POp], chunk: int, tag: int) -> list[dist.P2POp]:
        for operation in operations:
            tensor = operation.tensor[: self._sizes[chunk]].contiguous()
            self._comm.send_async(tensor, operation.peer, tag)
        return []

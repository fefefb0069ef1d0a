"""What a rank does around a strategy's step.

A `Trainee` is built once per process: data, network, optimizer. Each time the crew (re-)forms
it is given a `Formation` and trains until the run ends, the gate stops it or a peer is lost:

    trainee.train(formation, gate, sink)
      ├─ join the group, take over the state that the formation names
      ├─ for each step of strategy.run(rank):   gate ─ batch ─ step ─ record ─ checkpoint
      └─ Outcome("finished" | "stopped" | "peer lost", step to go on from)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from convoy import state
from convoy.comm import Comm, PeerLostError
from convoy.datasets import augment
from convoy.errors import DivergedError
from convoy.runtime.arrangement import Arrangement
from convoy.runtime.common_state import CommonState
from convoy.runtime.evaluation import Sums, evaluate
from convoy.runtime.formation import Formation, Job, Outcome, Part, Sink
from convoy.runtime.gate import Gate
from convoy.runtime.ingredients import (
    DTYPES,
    autocast,
    num_steps,
    open_data,
    seed_all,
    seed_torch,
    starting_network,
)
from convoy.runtime.layout import laid_out
from convoy.runtime.optimization import lr_at, make_optimizer
from convoy.runtime.sampler import GlobalOrder, Slice, derive_seed
from convoy.runtime.step_clock import StepClock
from convoy.strategies import Batch, Pending, Rank
from convoy.strategies.shares import cut


class Trainee:
    """A process's data, network and optimizer, which outlive any one crew."""

    def __init__(self, job: Job, device: torch.device, num_threads: int) -> None:
        self.job, self.device, self.num_threads = job, device, num_threads
        settings = job.settings
        torch.set_num_threads(num_threads)
        self.data = open_data(job)
        self.dtype = DTYPES[settings.precision]
        self.model = starting_network(job, self.data).to(device=device, dtype=self.dtype)
        self.optimizer = make_optimizer(self.model, settings)
        self.order = GlobalOrder(
            num_samples=len(self.data.train), batch_size=settings.batch_size, seed=settings.seed
        )
        self.num_steps = num_steps(settings, self.order)
        self._common = CommonState(self.model, self.optimizer)
        self._is_new = True
        self.arrangement = Arrangement(
            self.model,
            settings,
            samples=self._first,
            autocast=self.autocast,
            num_threads=num_threads,
        )

    def train(
        self, formation: Formation, gate: Gate, sink: Sink, store: dist.Store | None
    ) -> Outcome:
        """Take part in `formation` until it ends.

        Raises:
            DivergedError: this rank's loss is not finite.
        """
        torch.set_num_threads(self.num_threads)  # per thread, and each formation has its own
        layout = formation.layout
        comm: Comm | None = None
        try:
            comm = self._join(formation, store)
            self._take_over(formation, comm)
            if layout is None:
                count = formation.plan.shares[formation.rank]
                layout = self.arrangement.choose_layout(count, partial(self._slowest, comm))
                sink.layout(layout)
            self.arrangement.lay_out(layout)
            sink.convolutions(formation.rank, self.arrangement.algorithms(layout))
            ran_to = self._run(formation, comm, gate, sink, layout)
        except PeerLostError as lost:
            return self.lost(lost)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            if comm is not None:
                comm.close()
        kind: Literal["finished", "stopped"] = "finished" if ran_to == self.num_steps else "stopped"
        self._common.restore()
        return Outcome(kind=kind, step=self._common.step)

    def lost(self, error: PeerLostError) -> Outcome:
        """Return to the last commit and say that a peer is lost."""
        self._common.restore()
        return Outcome(kind="peer lost", step=self._common.step, detail=str(error))

    def final_state(self) -> state.Tensors:
        """The trained network's tensors, on the host."""
        return state.copy_of(self.model.state_dict(), "cpu")

    def _join(self, formation: Formation, store: dist.Store | None) -> Comm:
        world_size = len(formation.plan.shares)
        return Comm(
            rank=formation.rank,
            world_size=world_size,
            backend=formation.backend,
            store=store and dist.PrefixStore(f"generation-{formation.generation}", store),
            timeout_s=self.job.settings.timeout_s,
        )

    def _take_over(self, formation: Formation, comm: Comm) -> None:
        source = formation.source_rank
        if formation.part is None and source == formation.rank and self._common.step is None:
            self._begin_anew()
        if formation.part is not None:
            self._common.step = None  # until all have it, this is no state to go on from
            state.load(self.model, self.optimizer, formation.part.tensors)
        if source is not None and comm.world_size > 1:
            mine = formation.rank == source
            tensors = state.pack(self.model, self.optimizer) if mine else None
            taken = state.hand_over(comm, tensors, source, self.device)
            if not mine:
                state.load(self.model, self.optimizer, taken)
        comm.take()
        pending = formation.part.pending if formation.part else Pending()
        self._common.step = None
        if pending == Pending():
            self._common.commit(formation.first_step, copy=False)

    def _begin_anew(self) -> None:
        """Be as before the first step: nothing of what was done since has been kept."""
        if not self._is_new:
            self.model.load_state_dict(starting_network(self.job, self.data).state_dict())
            self.optimizer.state.clear()

    def _run(self, formation: Formation, comm: Comm, gate: Gate, sink: Sink, layout: str) -> int:
        """Drive the strategy's program; return the step it stopped before."""
        clock = StepClock(comm, self.device)
        self._is_new = False
        next_step = formation.first_step

        def commit(step: int, copy: bool) -> None:
            clock.stop()
            self._common.commit(step, copy=copy)

        def diverge(pending: Pending) -> None:
            clock.stop()
            self._common.pending = pending

        rank = Rank(
            comm=comm,
            plan=formation.plan,
            device=self.device,
            model=self.model,
            optimizer=self.optimizer,
            example=self.example(layout),
            batches=self._batches(formation, gate, layout, comm, clock),
            loss=self.loss,
            update=lambda batch, loss_sum: self._update(batch, loss_sum, formation),
            learning_rate=lambda batch, loss_sum: self._checked_lr(batch, loss_sum, formation),
            commit=commit,
            forgo=self._common.forgo,
            diverge=diverge,
            evaluate=lambda step: self._evaluate(formation, step, layout, sink),
            regroups=lambda: gate.reason == "regroup",
            first_step=formation.first_step,
            pending=formation.part.pending if formation.part else Pending(),
        )
        self._common.pending = rank.pending
        place = {
            "rank": formation.rank,
            "machine": formation.machines[formation.rank],
            "generation": formation.generation,
        }
        with contextlib.closing(self.job.decided.run(rank)) as program:
            for completed in program:
                batch = completed.batch
                next_step = batch.step + 1
                sink.record(place | clock.record(batch, completed.loss_sum))
                if batch.keeps:
                    self.send_checkpoint(next_step, formation, sink)
        if formation.first_step == self.num_steps:  # a rank was lost after the last step
            self._evaluate(formation, self.num_steps - 1, layout, sink)
            self.send_checkpoint(next_step, formation, sink)
        if gate.reason == "checkpoint" and next_step < self.num_steps:
            self.send_checkpoint(next_step, formation, sink)
        return next_step

    def _batches(
        self, formation: Formation, gate: Gate, layout: str, comm: Comm, clock: StepClock
    ) -> Iterator[Batch]:
        for step in range(formation.first_step, self.num_steps):
            if not gate.admit(step):
                return
            part = self.order.slice(step, formation.plan.shares, formation.rank)
            clock.start(part.first)
            comm.step_samples = len(part.indices)
            yield replace(self._batch(part, formation.rank, layout), keeps=self._keeps(step))

    def whole_batch(
        self, step: int, layout: str, *, ends_lease: bool, place: int = 0, team: int = 1
    ) -> Batch:
        """All samples of `step`, to the first of `team` ranks that do it without any others."""
        shares = (self.order.batch_size,) + (0,) * (team - 1)
        part = self.order.slice(step, shares, place)
        return replace(self._batch(part, place, layout), ends_lease=ends_lease)

    def _batch(self, part: Slice, rank: int, layout: str) -> Batch:
        """What a rank takes of a step."""
        settings, step, samples = self.job.settings, part.step, len(part.indices)
        seed_all(derive_seed(settings.seed, 4, step, rank))  # users' transforms
        inputs, targets = self.fetch(part.indices if samples else torch.tensor([0]))
        if settings.augment == "flip-crop" and samples:
            generator = torch.Generator().manual_seed(derive_seed(settings.seed, 2, step))
            draws = augment.draw(part.step_samples, generator)
            mine = part.first - part.step_first
            inputs = augment.flip_crop(inputs, draws[mine : mine + samples].to(self.device))
        seed_torch(derive_seed(settings.seed, 3, step, rank))  # dropout
        return Batch(
            step=step,
            inputs=laid_out(inputs, layout),
            targets=targets,
            samples=samples,
            step_samples=part.step_samples,
            evaluates=self._ends_epoch(step) or step + 1 == self.num_steps,
            ends_run=step + 1 == self.num_steps,
        )

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Training images and labels of these indices, on the device."""
        images, labels = self.data.train.batch(indices)
        return images.to(self.device, self.dtype), labels.to(self.device)

    def _first(self, count: int) -> tuple[Tensor, Tensor]:
        """So many samples, or as many as there are."""
        return self.fetch(torch.arange(min(count, len(self.data.train))))

    def _slowest(self, comm: Comm, times: list[float]) -> list[float]:
        """Each time on the rank that takes longest."""
        return comm.maximum(times, self.device)

    def example(self, layout: str) -> Batch:
        """Real samples that belong to no step."""
        # Two where there are two: batch normalisation has no variance of one 1x1 sample.
        inputs, targets = self._first(2)
        return Batch(
            step=-1,
            inputs=laid_out(inputs, layout),
            targets=targets,
            samples=len(targets),
            step_samples=len(targets),
            evaluates=False,
            ends_run=False,
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Within it the network computes in the precision that was asked for."""
        return autocast(self.job.settings.precision, self.device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the loss over the batch's real samples, as `Rank.loss` is."""
        with self.autocast():
            loss = F.cross_entropy(model(batch.inputs), batch.targets, reduction="sum")
        return loss if batch.samples else loss * 0.0

    def _update(self, batch: Batch, loss_sum: Tensor, formation: Formation) -> None:
        lr = self._checked_lr(batch, loss_sum, formation)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _checked_lr(self, batch: Batch, loss_sum: Tensor, formation: Formation) -> float:
        loss = float(loss_sum.detach())
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss} at step {batch.step} on rank {formation.rank} "
                f"({formation.machines[formation.rank]}). Try a lower --lr"
                f"{'' if self.job.settings.warmup else ' or a --warmup'}"
            )
        return self.lr_of(batch.step)

    def lr_of(self, step: int) -> float:
        """The learning rate of `step`."""
        return lr_at(
            step,
            settings=self.job.settings,
            num_steps=self.num_steps,
            steps_per_epoch=self.order.steps_per_epoch,
        )

    def _keeps(self, step: int) -> bool:
        every = self.job.settings.checkpoint_every
        due = (step + 1) % every == 0 if every else self._ends_epoch(step)
        return due or step + 1 == self.num_steps

    def _ends_epoch(self, step: int) -> bool:
        return (step + 1) % self.order.steps_per_epoch == 0

    def send_checkpoint(self, next_step: int, formation: Formation, sink: Sink) -> None:
        """Hand this boundary's state to `sink`: by rank 0 if it is everyone's, else by each."""
        whole = self._common.pending == Pending()
        if whole and formation.rank != 0:
            return
        tensors = state.copy_of(state.pack(self.model, self.optimizer), "cpu")
        if name := state.broken(tensors):
            raise DivergedError(
                f"{name.removeprefix('model/')} is no longer finite after step "
                f"{next_step - 1} on rank {formation.rank} "
                f"({formation.machines[formation.rank]}). Try a lower --lr"
            )
        part = Part(tensors=tensors, pending=self._common.pending)
        sink.checkpoint(next_step, formation.generation, part, rank=formation.rank, whole=whole)

    def judge(self, tensors: state.Tensors, positions: range) -> dict[str, float]:
        """Judge a network of these tensors on the test samples at `positions`: sums."""
        self.model.load_state_dict(tensors)
        return self.evaluation(positions).reported

    def evaluation(self, positions: range, layout: str = "contiguous") -> Sums:
        """Judge the network as it is on the test samples at `positions`."""
        return evaluate(
            self.model,
            self.data,
            positions,
            device=self.device,
            dtype=self.dtype,
            layout=layout,
            autocast=self.autocast,
        )

    def _evaluate(self, formation: Formation, step: int, layout: str, sink: Sink) -> None:
        parts = cut(len(self.data.test), formation.plan.portions)
        first = sum(parts[: formation.rank])
        sums = self.evaluation(range(first, first + parts[formation.rank]), layout)
        place = {"step": step, "generation": formation.generation, "rank": formation.rank}
        sink.evaluation(place | sums.reported)

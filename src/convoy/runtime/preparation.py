"""What a run has before any rank exists: checked settings, data, network, and where it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from convoy.cost.layers import NetworkFacts, facts_of
from convoy.cost.optimizers import OPTIMIZER_STATES, has_momentum
from convoy.cost.world import World
from convoy.datasets import DataSet
from convoy.errors import CheckpointError, UsageError
from convoy.kernels.compiled import cpu
from convoy.kernels.passes import AUTO, TORCH
from convoy.planner import Prediction
from convoy.runtime.checkpoint import Checkpoint, newest_checkpoint
from convoy.runtime.formation import Job
from convoy.runtime.ingredients import DTYPES, num_steps, open_data, starting_network
from convoy.runtime.journal import Journal
from convoy.runtime.observer import Observer
from convoy.runtime.records import read_steps
from convoy.runtime.run_folder import (
    RunFolder,
    check_vacant,
    create_run_folder,
    host_facts,
    open_run_folder,
)
from convoy.runtime.sampler import GlobalOrder
from convoy.runtime.settings import TrainSettings
from convoy.runtime.timeline import Timeline
from convoy.strategies import Plan, Problem, Worker


@dataclass(kw_only=True)
class Preparation:
    """What a run has before any rank exists."""

    job: Job
    run_folder: RunFolder | None
    """There once it is sure that the run can be: see `open_folder`."""
    start: Checkpoint | None
    data: DataSet
    network: nn.Module
    facts: NetworkFacts
    order: GlobalOrder
    num_steps: int
    element_bytes: int
    begun: float
    """time.perf_counter() at the start."""
    timeline: Timeline
    prediction: Prediction | None = None
    """What the plan is expected to cost, where that was looked into."""
    world: World | None = None
    """What was measured to find that out."""

    @property
    def folder(self) -> RunFolder:
        """Where the run leaves everything."""
        assert self.run_folder is not None, "open_folder comes first"
        return self.run_folder

    @property
    def settings(self) -> TrainSettings:
        """The run's settings."""
        return self.job.settings

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters."""
        return DTYPES[self.settings.precision]

    def problem(self, workers: Sequence[Worker]) -> Problem:
        """What these workers are to do."""
        return Problem(
            batch_size=self.settings.batch_size,
            workers=tuple(workers),
            network=self.facts,
            element_bytes=self.element_bytes,
            optimizer_states=OPTIMIZER_STATES[self.settings.optimizer],
            has_momentum=has_momentum(self.settings.optimizer, self.settings.momentum),
            mixed=self.settings.precision == "bf16",
            world=self.world,
        )


def open_journal(preparation: Preparation, observer: Observer) -> Journal:
    """The journal of a run that starts anew, or goes on from a checkpoint."""
    journal = Journal(
        preparation.folder,
        preparation.settings,
        preparation.order,
        preparation.num_steps,
        observer,
        preparation.timeline,
    )
    if preparation.start is not None:
        journal.last_checkpoint = preparation.start
        journal.last_step = preparation.start.step - 1
        journal.layout = preparation.start.meta.get("layout")
    return journal


def last_generation(preparation: Preparation) -> int:
    """The highest generation that the run has seen: crews later than the checkpoint too."""
    if preparation.start is None:
        return 0
    known = [preparation.start.generation]
    if preparation.folder.steps.is_file():
        known += [step.generation for step in read_steps(preparation.folder.steps)]
    return max(known)


def prepare(job: Job, observer: Observer) -> Preparation:
    """Check the job against its data; a run that is resumed is opened."""
    begun = time.perf_counter()
    timeline = Timeline()
    timeline.mark("imports")
    settings = job.settings
    if settings.conv_algorithm != TORCH:
        cpu()  # whatever is missing is said at once
        work = "compiles convolutions first, for some seconds"
        if settings.conv_algorithm == AUTO:
            work = "compiles convolutions and times them first, for up to a minute"
        observer.say(
            f"--conv-algorithm {settings.conv_algorithm}: each rank {work}; what it finds is kept "
            "for later runs"
        )
    data = open_data(job)
    order = GlobalOrder(
        num_samples=len(data.train), batch_size=settings.batch_size, seed=settings.seed
    )
    steps = num_steps(settings, order)
    network = starting_network(job, data)
    start: Checkpoint | None = None
    folder: RunFolder | None = None
    if settings.resume is not None:
        if settings.out is not None and settings.out != settings.resume:
            raise UsageError(
                f"--resume {settings.resume} goes on in that folder: leave out --out "
                f"{settings.out}, or start a new run"
            )
        folder = open_run_folder(settings.resume)
        start = _start_of(folder, observer)
        if start.step >= steps and (start.step > steps or folder.steps_concluded() == steps):
            raise UsageError(
                f"{folder.path} is already at step {start.step} of {steps}: nothing is left to "
                "do. Give more --epochs or --steps to train it further"
            )
    elif settings.out is not None:
        check_vacant(settings.out)
    timeline.mark("data and network")
    return Preparation(
        job=job,
        run_folder=folder,
        start=start,
        data=data,
        network=network,
        facts=facts_of(network, data.train.image_shape if _needs_layers(job) else None),
        order=order,
        num_steps=steps,
        element_bytes=8 if settings.precision == "fp64" else 4,
        begun=begun,
        timeline=timeline,
    )


def open_folder(preparation: Preparation) -> None:
    """Make the run's folder, unless it is one that is resumed, and say in it what is to be.

    Comes after the plan, so that a request that cannot be carried out leaves nothing behind.
    """
    settings = preparation.settings
    if preparation.run_folder is None:
        preparation.run_folder = create_run_folder(settings)
    folder = preparation.folder
    folder.write_settings(replace(settings, resume=None, out=folder.path))
    folder.write_json("host.json", host_facts(settings))


def _start_of(folder: RunFolder, observer: Observer) -> Checkpoint:
    checkpoint, warnings = newest_checkpoint(folder.checkpoints)
    for warning in warnings:
        observer.say(f"{warning}; taking the one before it", "warning")
    if checkpoint is None:
        raise CheckpointError(
            f"{folder.path} has no valid checkpoint to go on from. Start the run again with the "
            f"settings in {folder.settings}: convoy train --config {folder.settings} --out NEW"
        )
    observer.say(f"going on from step {checkpoint.step} of {folder.path}")
    return checkpoint


def make_plan(preparation: Preparation, workers: Sequence[Worker]) -> Plan:
    """The strategy's plan for all workers there are."""
    return preparation.job.decided.plan(preparation.problem(workers))


def _needs_layers(job: Job) -> bool:
    planned = job.strategy is None or job.settings.profile is not None
    return planned or job.decided.needs_layers

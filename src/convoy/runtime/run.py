"""One training run from its settings to its result, whoever the ranks are.

prepare ──▶ crew (Ray)  ──┐
        └─▶ torchrun    ──┴──▶ conclude
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from convoy.cost.layers import NetworkFacts, facts_of
from convoy.datasets import DataSet
from convoy.errors import CheckpointError, UsageError
from convoy.planner import Prediction
from convoy.runtime import results, state
from convoy.runtime.checkpoint import Checkpoint, newest_checkpoint
from convoy.runtime.crew import Crew, Recovery
from convoy.runtime.deciding import Decision, decide
from convoy.runtime.formation import Formation, Job
from convoy.runtime.ingredients import build_network, num_steps, open_data
from convoy.runtime.interrupt import Interrupt
from convoy.runtime.journal import Journal
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place, places
from convoy.runtime.pool import Pool, pool
from convoy.runtime.rebalance import Rebalancing
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

    @property
    def folder(self) -> RunFolder:
        """Where the run leaves everything."""
        assert self.run_folder is not None, "open_folder comes first"
        return self.run_folder

    @property
    def settings(self) -> TrainSettings:
        """The run's settings."""
        return self.job.settings


def run_with_crew(job: Job, observer: Observer, *, verbose: bool = False) -> results.RunResult:
    """Train over Ray actors, as the job's settings say.

    Raises:
        ConvoyError: see errors.py.
        KeyboardInterrupt: after a first Ctrl-C, once everything is safe.
    """
    preparation = prepare(job, observer)
    settings = preparation.settings
    with (
        Interrupt() as interrupt,
        places(settings, verbose=verbose) as found,
        pool() as processes,
    ):
        preparation.timeline.mark("ray")
        decision = _decide(preparation, found, observer, processes)
        return run_at(preparation, decision, processes, interrupt, observer)


def run_at(
    preparation: Preparation,
    decision: Decision,
    processes: Pool,
    interrupt: Interrupt,
    observer: Observer,
) -> results.RunResult:
    """Train as decided, by processes out of the pool; raises as `run_with_crew` does."""
    preparation.job, preparation.prediction = decision.job, decision.prediction
    places = decision.places
    plan = make_plan(preparation, [places[i].worker() for i in decision.taking_part])
    open_folder(preparation)
    announce(preparation, plan, observer)
    journal = open_journal(preparation, observer)
    crew = Crew(
        job=preparation.job,
        plan=plan,
        places=places,
        journal=journal,
        observer=observer,
        interrupt=interrupt,
        num_steps=preparation.num_steps,
        network=preparation.facts,
        element_bytes=preparation.element_bytes,
        pool=processes,
        generation=last_generation(preparation),
    )
    try:
        tensors = crew.run(preparation.start)
        if tensors is not None:
            assert crew.formation is not None
            return conclude(
                *(preparation, journal, crew.formation, tensors, crew.recoveries, observer),
                rebalancings=crew.rebalancings,
            )
    finally:
        journal.close()
    kept = journal.last_checkpoint
    observer.say(
        f"stopped before step {journal.last_step + 1}; the checkpoint of step "
        f"{kept.step if kept else 0} is kept. Go on with: convoy train --resume "
        f"{preparation.folder.path}"
    )
    raise KeyboardInterrupt


def _decide(
    preparation: Preparation, found: Sequence[Place], observer: Observer, processes: Pool
) -> Decision:
    """Settle what is done: as asked, or as planned."""
    job = preparation.job
    if job.strategy is not None:
        return Decision(job=job, places=tuple(found), taking_part=tuple(range(len(found))))
    decision = decide(
        job,
        preparation.network,
        preparation.data.train.image_shape,
        found,
        observer,
        processes,
        given=job.settings.profile,
    )
    if decision.prediction is not None:
        preparation.timeline.mark("plan")
    return decision


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
    data = open_data(job)
    order = GlobalOrder(
        num_samples=len(data.train), batch_size=settings.batch_size, seed=settings.seed
    )
    steps = num_steps(settings, order)
    network = build_network(job.network, data, settings.seed)
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
        facts=facts_of(network),
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
    problem = Problem(
        batch_size=preparation.settings.batch_size,
        workers=tuple(workers),
        network=preparation.facts,
        element_bytes=preparation.element_bytes,
    )
    return preparation.job.decided.plan(problem)


def announce(preparation: Preparation, plan: Plan, observer: Observer) -> None:
    """Write plan.json and tell the observer what will be done."""
    settings, predicted = preparation.settings, preparation.prediction
    content: dict[str, Any] = {
        "strategy": preparation.job.decided.name,
        "strategy_options": asdict(preparation.job.decided),  # type: ignore[call-overload]
        "network": settings.network,
        "parameters": preparation.facts.num_parameters,
        "dataset": preparation.data.name,
        "train_samples": len(preparation.data.train),
        "test_samples": len(preparation.data.test),
        "image_shape": list(preparation.data.train.image_shape),
        "classes": preparation.data.train.num_classes,
        "batch_size": settings.batch_size,
        "steps": preparation.num_steps,
        "steps_per_epoch": preparation.order.steps_per_epoch,
        "optimizer": settings.optimizer,
        "machines": machines_of(plan),
        "predicted_step_s": predicted.step_s if predicted else None,
        "predicted_step_p90_s": predicted.step_p90_s if predicted else None,
        "predicted_images_per_s": predicted.images_per_s if predicted else None,
        "folder": str(preparation.folder.path),
    }
    preparation.folder.write_json("plan.json", content)
    observer.planned(content)


def machines_of(plan: Plan) -> list[dict[str, Any]]:
    """Each rank's machine, device and share of the batch."""
    return [
        {
            "name": worker.machine,
            "device": worker.device,
            "share": share / plan.problem.batch_size,
            "samples": share,
        }
        for worker, share in zip(plan.problem.workers, plan.shares, strict=True)
    ]


def conclude(
    preparation: Preparation,
    journal: Journal,
    formation: Formation,
    tensors: state.Tensors,
    recoveries: Sequence[Recovery],
    observer: Observer,
    *,
    rebalancings: Sequence[Rebalancing] = (),
) -> results.RunResult:
    """Write the trained network and result.json, from what is in the run folder."""
    settings, folder, order = preparation.settings, preparation.folder, preparation.order
    predicted = preparation.prediction
    steps = [s for s in read_steps(folder.steps) if s.step < preparation.num_steps]
    last_epoch = order.epoch_of(preparation.num_steps - 1)
    recent = [s for s in steps if order.epoch_of(s.step) == last_epoch]
    ranks = results.rank_times(steps)
    sent = [row["sent_bytes"] or 0 for s in steps for row in s.ranks]
    evaluation = journal.evaluation
    current = evaluation is not None and evaluation[0] == preparation.num_steps - 1
    result = results.RunResult(
        strategy=preparation.job.decided.name,
        network=settings.network,
        dataset=preparation.data.name,
        machines=machines_of(formation.plan),
        batch_size=settings.batch_size,
        steps=preparation.num_steps,
        epochs=preparation.num_steps / order.steps_per_epoch,
        seed=settings.seed,
        precision=settings.precision,
        memory_format=journal.layout or settings.memory_format,
        wall_s=time.perf_counter() - preparation.begun,
        **results.speed(steps),
        sent_bytes_per_step=sum(sent) / max(1, len(steps)),
        train_loss=sum(s.loss * s.samples for s in recent) / max(1, sum(s.samples for s in recent)),
        test_loss=evaluation[2] if evaluation and current else None,
        test_accuracy=evaluation[1] if evaluation and current else None,
        samples_seen=sum(s.samples for s in steps),
        reformations=len(recoveries),
        resumed_from_step=preparation.start.step if preparation.start else None,
        slowest=results.slowest(ranks),
        ranks=ranks,
        recoveries=[{"step": r.step, "lost": r.lost, "seconds": r.seconds} for r in recoveries],
        rebalancings=[
            {"step": r.step, "from": list(r.before), "to": list(r.after)} for r in rebalancings
        ],
        startup_s=preparation.timeline.phases(),
        predicted_step_s=predicted.step_s if predicted else None,
        predicted_images_per_s=predicted.images_per_s if predicted else None,
        folder=folder.path,
    )
    meta = {
        "network": settings.network,
        "input_shape": json.dumps(preparation.data.train.image_shape),
        "num_classes": str(preparation.data.train.num_classes),
        "dataset": preparation.data.name,
    }
    untraceable = journal.board.graph(preparation.network, preparation.data.train.image_shape)
    if untraceable is not None:
        observer.say(untraceable, "warning")
    folder.write_model(tensors, meta)
    folder.write_json("result.json", result.to_dict())
    if result.slowest and result.slowest["ratio"] > results.SLOW_RATIO:
        observer.say(
            f"rank {result.slowest['rank']} on {result.slowest['machine']} computes "
            f"{result.slowest['ratio']:.2f} times as long as the others: its share is too large "
            "for its speed. Give it less with --shares",
            "warning",
        )
    return result

"""The same training where torchrun (or Slurm, or Kubernetes) has started the ranks.

    torchrun --nproc-per-node=2 -m convoy train --network lenet --data mnist

Rank and address come from the environment, and nothing else does. Rank 0 keeps the run folder;
the others hand it their reports through the store at which they all met:

    rank 1 ── "events/1/0", "events/1/1", ... ─▶ store ─▶ rank 0 ─▶ journal

When a rank dies, torchrun ends the others and, with --max-restarts, starts them all again;
the run then goes on in its folder, which the agent's store remembers, from the newest checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from convoy.cost.layers import facts_of
from convoy.cost.optimizers import OPTIMIZER_STATES
from convoy.errors import CrewError, UsageError
from convoy.runtime.checkpoint import newest_checkpoint, parts_for
from convoy.runtime.concluding import announce, conclude
from convoy.runtime.events import Event, EventSink
from convoy.runtime.formation import Formation, Job, Outcome, Part
from convoy.runtime.gate import Gate
from convoy.runtime.journal import Journal
from convoy.runtime.memory import keep_freed_memory
from convoy.runtime.observer import Observer
from convoy.runtime.preparation import (
    Preparation,
    last_generation,
    open_folder,
    open_journal,
    prepare,
)
from convoy.runtime.results import RunResult
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.training import Trainee
from convoy.strategies import Pending, Plan, Problem, Worker

REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets."""
REPORT_S = 0.2


def is_present() -> bool:
    """Whether this process was started as one of several ranks."""
    return all(name in os.environ for name in REQUIRED)


def is_leader() -> bool:
    """Whether this process reports for the run: rank 0, or the only process there is."""
    return not is_present() or int(os.environ["RANK"]) == 0


def run(job: Job, observer: Observer) -> RunResult | None:
    """Be one rank of the run; rank 0 returns its result.

    Raises:
        UsageError: options that only make sense where Convoy starts the ranks itself.
        CrewError: a peer is lost; torchrun will end this process's peers too.
    """
    settings = job.settings
    if settings.workers is not None or settings.cluster is not None:
        raise UsageError(
            "torchrun decides how many ranks there are and where: leave out --workers, --cluster"
        )
    if job.decided.asynchronous:
        raise UsageError(
            f"--strategy {job.decided.name} needs processes of its own beside the ranks, which "
            "torchrun does not start: run convoy train without torchrun"
        )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if settings.shares is not None and len(settings.shares) != world_size:
        raise UsageError(f"--shares gives {len(settings.shares)} shares for {world_size} ranks")
    # The agent's store outlives a restart, and what the lost ranks left in it.
    lasting = _meet(settings.timeout_s)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"start-{restarts}", lasting)
    if rank == 0:
        job = _taken_up_again(job, lasting)
    keep_freed_memory()
    device = _device()
    trainee = Trainee(job, device, settings.threads_per_worker or torch.get_num_threads())
    shape = trainee.data.train.image_shape
    workers = _introduce(store, rank, world_size, device, settings.shares)
    plan = job.decided.plan(
        Problem(
            batch_size=settings.batch_size,
            workers=workers,
            network=facts_of(trainee.model, shape if job.decided.measures else None),
            element_bytes=8 if settings.precision == "fp64" else 4,
            optimizer_states=OPTIMIZER_STATES[settings.optimizer],
            mixed=settings.precision == "bf16",
        )
    )
    if len(plan.shares) != world_size:
        raise UsageError(
            f"--strategy {settings.strategy} uses {len(plan.shares)} of the {world_size} ranks "
            f"that torchrun has started: start it with --nproc-per-node={len(plan.shares)}"
        )
    if rank == 0:
        preparation = prepare(job, observer)
        open_folder(preparation)
        lasting.set("folder", str(preparation.folder.path))
        return _lead(preparation, plan, trainee, store, observer)
    _follow(rank, plan, trainee, store)
    return None


def _lead(
    preparation: Preparation, plan: Plan, trainee: Trainee, store: dist.Store, observer: Observer
) -> RunResult:
    """Rank 0: give the orders, train, keep the journal."""
    world_size, start = len(plan.shares), preparation.start
    parts, source = parts_for(start, world_size)
    for rank, part in enumerate(parts):
        if rank and part is not None:
            _send_part(store, f"part/{rank}", part)
    journal = open_journal(preparation, observer)
    formation = Formation(
        generation=last_generation(preparation) + 1,
        rank=0,
        plan=plan,
        machines=tuple(worker.machine for worker in plan.problem.workers),
        first_step=start.step if start else 0,
        backend=trainee.job.backend(plan),
        part=parts[0],
        source_rank=source,
        layout=journal.layout,
    )
    orders = {
        "generation": formation.generation,
        "first_step": formation.first_step,
        "source_rank": source,
        "layout": formation.layout,
    }
    store.set("orders", json.dumps(orders))
    announce(preparation, plan, observer)
    journal.begin(formation)
    inbox = _Inbox(store, world_size)

    def take(events: list[Event]) -> None:
        journal.take(events + inbox.fetch())

    courier = _Courier(take)
    try:
        outcome = trainee.train(formation, Gate(), EventSink(courier.emit), store)
        courier.flush()
        _require_finished(outcome, journal, preparation.folder)
        try:
            journal.take(inbox.fetch_rest(preparation.settings.timeout_s))
        except dist.DistError:
            observer.say("a rank died after the last step; its last records are lost", "warning")
            journal.settle(formation.generation, preparation.num_steps)
        return conclude(preparation, journal, formation, trainee.final_state(), (), observer)
    finally:
        journal.close()


def _follow(rank: int, plan: Plan, trainee: Trainee, store: dist.Store) -> None:
    """Any other rank: take orders, train, report through the store."""
    orders = json.loads(store.get("orders"))
    formation = Formation(
        rank=rank,
        plan=plan,
        machines=tuple(worker.machine for worker in plan.problem.workers),
        backend=trainee.job.backend(plan),
        part=_receive_part(store, f"part/{rank}") if orders["source_rank"] is None else None,
        **orders,
    )
    outbox = _Outbox(store, rank)
    courier = _Courier(outbox.send)
    outcome = trainee.train(formation, Gate(), EventSink(courier.emit), store)
    courier.flush()
    outbox.close()
    _require_finished(outcome, None, None)


def _meet(timeout_s: float) -> dist.TCPStore:
    """The store whose address torchrun gives: its agent hosts it, or rank 0 does."""
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=int(os.environ["RANK"]) == 0 and not hosted,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


def _taken_up_again(job: Job, lasting: dist.Store) -> Job:
    """If this run had begun before torchrun started its ranks again: the job that goes on."""
    if not lasting.check(["folder"]):
        return job
    path = Path(lasting.get("folder").decode())
    if newest_checkpoint(RunFolder(path).checkpoints)[0] is not None:
        return replace(job, settings=replace(job.settings, out=None, resume=path))
    # Nothing in it to go on from: the run begins again, beside what there was.
    path.rename(path.with_name(f"{path.name}.before-{os.environ['TORCHELASTIC_RESTART_COUNT']}"))
    return replace(job, settings=replace(job.settings, out=path))


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _introduce(
    store: dist.Store,
    rank: int,
    world_size: int,
    device: torch.device,
    shares: tuple[float, ...] | None,
) -> tuple[Worker, ...]:
    """Tell the others where this rank is, and learn where they are."""
    mine = {"machine": socket.gethostname(), "device": str(device)}
    store.set(f"worker/{rank}", json.dumps(mine))
    workers = []
    for index in range(world_size):
        told = json.loads(store.get(f"worker/{index}"))
        weight = shares[index] if shares else 1.0
        workers.append(Worker(index=index, weight=weight, **told))
    return tuple(workers)


def _require_finished(outcome: Outcome, journal: Journal | None, folder: RunFolder | None) -> None:
    if outcome.kind == "finished":
        return
    kept = journal.last_checkpoint if journal else None
    hint = f" Go on with --resume {folder.path}" if folder and kept else ""
    raise CrewError(f"a peer was lost: {outcome.detail}.{hint}")


class _Courier:
    """Collects a rank's events and hands them on a few times a second, not at every step."""

    def __init__(self, deliver: Callable[[list[Event]], None]) -> None:
        self._deliver = deliver
        self._events: list[Event] = []
        self._delivered = time.monotonic()

    def emit(self, event: Event) -> None:
        """Take one event; deliver what has gathered if it is time."""
        self._events.append(event)
        if event[0] == "checkpoint" or time.monotonic() - self._delivered > REPORT_S:
            self.flush()

    def flush(self) -> None:
        """Deliver what has gathered."""
        self._deliver(self._events)
        self._events = []
        self._delivered = time.monotonic()


class _Outbox:
    """Sends events of one rank through the store: JSON, and safetensors for states."""

    def __init__(self, store: dist.Store, rank: int) -> None:
        self._store, self._rank, self._count = store, rank, 0

    def send(self, events: list[Event]) -> None:
        """Send a bundle."""
        key = f"events/{self._rank}/{self._count}"
        plain = []
        for number, (kind, content) in enumerate(events):
            if kind == "checkpoint":
                _send_part(self._store, f"{key}/{number}", content["part"])
                content = content | {"part": f"{key}/{number}"}
            plain.append((kind, content))
        self._store.set(key, json.dumps(plain))
        self._count += 1

    def close(self) -> None:
        """Say how many bundles there were."""
        self._store.set(f"events/{self._rank}/total", str(self._count))


class _Inbox:
    """Rank 0's end of the others' outboxes."""

    def __init__(self, store: dist.Store, world_size: int) -> None:
        self._store = store
        self._next = dict.fromkeys(range(1, world_size), 0)

    def fetch(self) -> list[Event]:
        """What has arrived; does not wait."""
        events: list[Event] = []
        for rank in self._next:
            while self._store.check([f"events/{rank}/{self._next[rank]}"]):
                events += self._open(rank)
        return events

    def fetch_rest(self, timeout_s: float) -> list[Event]:
        """What is still to come, once all ranks have closed."""
        events: list[Event] = []
        for rank in self._next:
            total = f"events/{rank}/total"
            self._store.wait([total], timedelta(seconds=timeout_s))
            while self._next[rank] < int(self._store.get(total)):
                events += self._open(rank)
        return events

    def _open(self, rank: int) -> list[Event]:
        key = f"events/{rank}/{self._next[rank]}"
        self._next[rank] += 1
        events: list[Event] = []
        for kind, content in json.loads(self._store.get(key)):
            if kind == "checkpoint":
                content["part"] = _receive_part(self._store, content["part"])
            events.append((kind, content))
        self._store.delete_key(key)
        return events


def _send_part(store: dist.Store, key: str, part: Part) -> None:
    store.set(f"{key}/pending", json.dumps([part.pending.samples, part.pending.step_samples]))
    store.set(f"{key}/tensors", save_tensors(part.tensors))  # type: ignore[arg-type]


def _receive_part(store: dist.Store, key: str) -> Part:
    samples, step_samples = json.loads(store.get(f"{key}/pending"))
    tensors = load_tensors(store.get(f"{key}/tensors"))
    return Part(tensors=tensors, pending=Pending(samples=samples, step_samples=step_samples))

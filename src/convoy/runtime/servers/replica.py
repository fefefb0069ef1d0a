"""What a replica does around its strategy's program: leases, batches, times, reports.

for each command:   step   ─▶ batch ─▶ strategy.run ─▶ pushes ─▶ answers ─▶ record
                    judge  ─▶ the network as it is
                    pause, fetch, end

A replica of several devices does so on each of them, with the shards of its own part.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from convoy import state
from convoy.comm import Comm, PeerLostError
from convoy.errors import DivergedError
from convoy.runtime.evaluation import EVALUATION_BATCH
from convoy.runtime.events import EventSink
from convoy.runtime.formation import Outcome
from convoy.runtime.servers.client import HELD_PATIENCE_S, PATIENCE_S, ShardClient
from convoy.runtime.servers.commands import Command, asked, told
from convoy.runtime.servers.messages import Whereabouts
from convoy.runtime.servers.noting import Begun, Noting
from convoy.runtime.servers.overlap import Overlap
from convoy.runtime.training import Trainee
from convoy.state import Tensors
from convoy.strategies import Batch, Pending, Plan, Rank
from convoy.strategies.base import Parts
from convoy.strategies.server import ServerLayout, ServerTerms
from convoy.strategies.shares import cut

COMPANY_S = 5.0
"""How often a replica's first device, while it waits, tells the others that it is there."""


@dataclass(frozen=True, kw_only=True)
class ReplicaOrders:
    """What a replica is told when it begins."""

    replica: int
    """Its number in this run; one that is started again has a new one."""
    ranks: tuple[int, ...]
    """By device of this replica: the rank of its place in the plan."""
    position: int
    """Which of these devices this is."""
    machine: str
    generation: int
    plan: Plan
    layout: ServerLayout
    terms: ServerTerms
    session: str
    where: Whereabouts
    """All shards, at first."""
    coordinator: Any

    @property
    def shards(self) -> tuple[int, ...]:
        """Those that this device talks to."""
        return self.layout.shards_of(self.position)


class Replica:
    """One device's part in asynchronous training."""

    def __init__(
        self,
        trainee: Trainee,
        orders: ReplicaOrders,
        tensors: Tensors,
        sink: EventSink,
        store: dist.Store | None = None,
    ) -> None:
        """Begin with `tensors`, the network's state dict; what shards hold is fetched anew.

        Args:
            store: where the devices of this replica meet, if there are several.
        """
        trainee.model.load_state_dict(tensors)
        trainee.model.zero_grad(set_to_none=True)  # a replica that was lost may have left some
        self._trainee, self._orders, self._sink, self._store = trainee, orders, sink, store
        self._begun: deque[Begun] = deque()
        self._began_s = 0.0
        self._layout = "contiguous"
        self._comm = Comm(rank=0, world_size=1)
        self._rank: Rank | None = None
        self._last_buffers: Tensors | None = None
        self._overlap = Overlap(orders.terms)
        shards = orders.shards

        def look_up() -> Whereabouts:
            known: Whereabouts = ray.get(orders.coordinator.shards.remote())
            return known.of(shards)

        self._server = ShardClient(
            replica=orders.replica,
            look_up=look_up,
            session=orders.session,
            where=orders.where.of(shards),
            pieces=[orders.layout.pieces[i] for i in shards],
            wire=orders.terms.wire,
            model=trainee.model,
            depth=orders.terms.depth,
            patience_s=PATIENCE_S if orders.terms.bound is None else HELD_PATIENCE_S,
        )

    def run(self) -> Outcome:
        """Train until nothing is left to do, or another device of this replica is lost.

        Raises:
            DivergedError: this replica's loss is not finite.
        """
        with contextlib.closing(self._server):
            try:
                self._comm = self._join()
                self._train()
            except PeerLostError as lost:
                return Outcome(kind="peer lost", step=None, detail=str(lost))
            finally:
                self._comm.close()
        return Outcome(kind="finished", step=None)

    def buffers(self) -> Tensors:
        """This device's buffers of the network, as they are now, on the host."""
        if self._last_buffers is not None:
            return self._last_buffers
        parts = self._parts
        if parts is None and len(self._orders.ranks) > 1:
            return {}  # not begun yet, or about to end without an end
        buffers = dict(self._trainee.model.named_buffers())
        own = {n: b for n, b in buffers.items() if parts is None or n in parts.own}
        copied = state.copy_of(own, "cpu")
        return copied if self._parts is parts else {}

    def newest(self) -> dict[int, tuple[int, int]]:
        """By shard that this device talks to: incarnation and version of its newest answer."""
        return dict(zip(self._orders.shards, self._server.newest, strict=True))

    def _join(self) -> Comm:
        orders, store = self._orders, self._store
        return Comm(
            rank=orders.position,
            world_size=len(orders.ranks),
            store=store and dist.PrefixStore(f"replica-{orders.replica}", store),
            timeout_s=self._trainee.job.settings.timeout_s,
        )

    def _train(self) -> None:
        trainee, orders, comm = self._trainee, self._orders, self._comm
        torch.set_num_threads(trainee.num_threads)
        self._layout = trainee.arrangement.choose_layout(
            orders.plan.problem.batch_size, lambda times: comm.maximum(times, torch.device("cpu"))
        )
        trainee.arrangement.lay_out(self._layout)
        self._sink.layout(self._layout)
        algorithms = trainee.arrangement.algorithms(self._layout)
        self._sink.convolutions(orders.ranks[orders.position], algorithms)
        self._server.fetch()
        self._rank = rank = Rank(
            comm=comm,
            plan=orders.plan,
            device=trainee.device,
            model=trainee.model,
            optimizer=trainee.optimizer,
            example=trainee.example(self._layout),
            batches=self._batches(),
            loss=trainee.loss,
            update=_not_here,
            learning_rate=self._learning_rate,
            commit=_not_here,
            forgo=_not_here,
            diverge=_not_here,
            evaluate=_not_here,
            regroups=_not_here,
            pending=Pending(),
            server=Noting(self._server, self._begun),
        )
        with contextlib.closing(trainee.job.decided.run(rank)) as program:
            for completed in program:
                self._note(completed.batch, completed.loss_sum)
        self._report()
        self._server.rest()

    def _batches(self) -> Iterator[Batch]:
        orders, own = self._orders, None
        if orders.position == 0:
            patience_s = min(COMPANY_S, self._trainee.job.settings.timeout_s / 4)
            own = asked(orders.coordinator, orders.replica, patience_s)
        for command in told(self._comm, own):
            if command.kind == "step":
                yield self._begin(command)
            elif command.kind == "pause":
                self._pause()
            elif command.kind == "fetch":
                self._server.fetch()
            elif command.kind == "wait" and orders.terms.bound is not None:
                self._server.rest()  # to a shard's successor that does not know it
            elif command.kind == "judge":
                self._judge(command.step)
        self._last_buffers = self._final_buffers()

    def _begin(self, command: Command) -> Batch:
        orders = self._orders
        self._server.depth = 0 if command.alone else self._overlap.depth
        self._began_s, self._server.blocked_s = time.perf_counter(), 0.0
        self._comm.take()  # what came between steps is of none
        self._begun.append(Begun(step=command.step))
        return self._trainee.whole_batch(
            command.step,
            self._layout,
            ends_lease=command.ends_lease,
            place=orders.position,
            team=len(orders.ranks),
        )

    def _pause(self) -> None:
        self._server.finish()
        self._report()
        if self._orders.terms.bound is not None:  # somebody may wait for it
            self._server.rest()

    @property
    def _parts(self) -> Parts | None:
        return self._rank.parts if self._rank else None

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Within it this device has all of the network."""
        if self._parts is None:
            yield
            return
        self._last_buffers = self.buffers()  # while tensors are brought together
        try:
            with self._parts.whole():
                yield
        finally:
            self._last_buffers = None

    def _final_buffers(self) -> Tensors:
        with self._whole():
            return state.copy_of(dict(self._trainee.model.named_buffers()), "cpu")

    def _judge(self, step: int) -> None:
        """Judge the newest weights, each device on a part of the test set."""
        self._server.finish()
        self._server.fetch()
        trainee, comm, found = self._trainee, self._comm, torch.zeros(3, dtype=torch.float64)
        total = len(trainee.data.test)
        # Some at a time: whoever is faster waits for the others no longer than one of these takes.
        block = total if comm.world_size == 1 else comm.world_size * EVALUATION_BATCH
        with self._whole():
            for begin in range(0, total, block):
                counts = cut(min(block, total - begin), [1] * comm.world_size)
                first = begin + sum(counts[: comm.rank])
                sums = trainee.evaluation(range(first, first + counts[comm.rank]), self._layout)
                part = torch.tensor([sums.correct, sums.loss_sum, sums.samples]).double()
                comm.all_reduce(part)
                found += part
        if self._orders.position == 0:
            correct, loss_sum, samples = found.tolist()
            self._sink.evaluation(
                {"step": step, "correct": correct, "loss_sum": loss_sum, "samples": samples}
            )
            ray.get(self._orders.coordinator.judged.remote(self._orders.replica))

    def _learning_rate(self, batch: Batch, loss_sum: Tensor) -> float:
        loss = float(loss_sum.detach())
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss} at step {batch.step} on replica {self._orders.replica} "
                f"({self._orders.machine}). Try a lower --lr, or a bound on staleness "
                "(--max-staleness)"
            )
        return self._trainee.lr_of(batch.step)

    def _note(self, batch: Batch, loss_sum: Tensor) -> None:
        """A step is computed; its record goes out once the shards have what came of it."""
        orders, begun, traffic = self._orders, self._begun[-1], self._comm.take()
        wall_s = time.perf_counter() - self._began_s
        self._overlap.note(wall_s, self._server.blocked_s)
        blocked_s = self._server.blocked_s + traffic.blocked_s
        begun.traffic = traffic
        begun.record = {
            "step": batch.step,
            "rank": orders.ranks[orders.position],
            "replica": orders.replica,
            "position": orders.position,
            "machine": orders.machine,
            "generation": orders.generation,
            "first": self._trainee.order.step_bounds(batch.step)[0],
            "samples": batch.samples,
            "step_samples": batch.step_samples,
            "wall_s": wall_s,
            "compute_s": max(0.0, wall_s - blocked_s),
            "blocked_s": blocked_s,
            "loss": float(loss_sum.detach()) / batch.samples if batch.samples else None,
            "time": time.time(),
        }
        self._report()

    def _report(self) -> None:
        """Send the records that are complete. With its record a step is done, not before."""
        while self._begun and self._begun[0].is_complete:
            begun = self._begun.popleft()
            record, push, exchange = begun.record, begun.push, begun.exchange
            assert record is not None
            assert push is not None
            assert begun.traffic is not None
            ranks, among = self._orders.ranks, begun.traffic.sent_to
            sent_to = Counter({ranks[position]: size for position, size in among.items()})
            received_from = dict(exchange.received_from) if exchange else {}
            if exchange:
                sent_to.update(exchange.sent_to)
            self._sink.record(
                record
                | {
                    "sent_bytes": sum(sent_to.values()) + sum(received_from.values()),
                    "sent_to": dict(sent_to),
                    "received_from": received_from,
                    "staleness": push.staleness if push is exchange else None,
                    "held_s": max((answer.held_s for answer in push.answers), default=0.0),
                    "versions": {
                        shard: (call.incarnation, answer.version)
                        for shard, call, answer in zip(
                            self._orders.shards, push.calls, push.answers, strict=True
                        )
                    },
                }
            )


def _not_here(*_: Any) -> Any:
    raise AssertionError("servers have the state, and leases say what is judged and when to end")

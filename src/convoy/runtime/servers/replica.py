"""What a replica does around its strategy's program: leases, batches, times, reports.

for each lease:   its steps ─▶ batches ─▶ strategy.run ─▶ pushes ─▶ answers ─▶ records
                  or: judge the network as it is
                  or: rest until there is something to do
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from convoy.comm import Comm
from convoy.errors import DivergedError
from convoy.runtime.evaluation import evaluate
from convoy.runtime.events import EventSink
from convoy.runtime.formation import Outcome
from convoy.runtime.layout import set_layout
from convoy.runtime.servers.client import Exchange, ShardClient
from convoy.runtime.servers.coordinator import Lease
from convoy.runtime.training import Trainee
from convoy.state import Tensors
from convoy.strategies import Batch, Pending, Plan, Rank
from convoy.strategies.parameter_shards import Shard
from convoy.strategies.server import Push, ServerTerms


@dataclass(frozen=True, kw_only=True)
class ReplicaOrders:
    """What a replica is told when it begins."""

    replica: int
    """Its number in this run; one that is started again has a new one."""
    rank: int
    """Of its place in the plan."""
    machine: str
    generation: int
    plan: Plan
    pieces: tuple[Shard, ...]
    """By shard: what it holds."""
    terms: ServerTerms
    session: str
    endpoints: tuple[str, ...]
    """By shard: where it listens."""
    incarnations: tuple[int, ...]
    coordinator: Any


@dataclass(kw_only=True)
class Begun:
    """A step that is not reported yet."""

    step: int
    record: dict[str, Any] | None = None
    """Once it has been computed."""
    exchange: Exchange | None = None
    """What went to the shards at its end, and is to come back."""
    push: Exchange | None = None
    """What its gradient went with: the same, or a later step's."""

    @property
    def is_complete(self) -> bool:
        """Whether the shards have what came of it."""
        if self.record is None or self.push is None or not self.push.is_answered:
            return False
        return self.exchange is None or self.exchange.is_answered


class Replica:
    """One device's part in asynchronous training."""

    def __init__(
        self, trainee: Trainee, orders: ReplicaOrders, tensors: Tensors, sink: EventSink
    ) -> None:
        """Begin with `tensors`, the network's state dict; what shards hold is fetched anew."""
        trainee.model.load_state_dict(tensors)
        self._trainee, self._orders, self._sink = trainee, orders, sink
        self._begun: deque[Begun] = deque()
        self._began_s = 0.0
        self._layout = "contiguous"
        self._server = ShardClient(
            replica=orders.replica,
            look_up=lambda: ray.get(orders.coordinator.shards.remote()),
            session=orders.session,
            endpoints=orders.endpoints,
            incarnations=orders.incarnations,
            homes=orders.plan.homes,
            pieces=orders.pieces,
            wire=orders.terms.wire,
            model=trainee.model,
            depth=orders.terms.depth,
        )

    def run(self) -> Outcome:
        """Train until nothing is left to do.

        Raises:
            DivergedError: this replica's loss is not finite.
        """
        with contextlib.closing(self._server):
            return self._run()

    def _run(self) -> Outcome:
        trainee, orders = self._trainee, self._orders
        torch.set_num_threads(trainee.num_threads)
        self._layout = trainee.choose_layout(orders.plan.problem.batch_size)
        set_layout(trainee.model, self._layout)
        self._sink.layout(self._layout)
        self._server.fetch()
        rank = Rank(
            comm=Comm(rank=0, world_size=1),
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
            server=_Noting(self._server, self._begun),
        )
        with contextlib.closing(trainee.job.decided.run(rank)) as program:
            for completed in program:
                self._note(completed.batch, completed.loss_sum)
        self._report()
        self._server.rest()
        return Outcome(kind="finished", step=None)

    def _batches(self) -> Iterator[Batch]:
        while True:
            lease = self._lease()
            if lease.ends:
                return
            self._server.depth = 0 if lease.alone else self._orders.terms.depth
            if lease.evaluates is not None:
                self._judge(lease.evaluates)
                continue
            for position, step in enumerate(lease.steps):
                self._began_s, self._server.blocked_s = time.perf_counter(), 0.0
                self._begun.append(Begun(step=step))
                yield self._trainee.whole_batch(
                    step, self._layout, ends_lease=position + 1 == len(lease.steps)
                )

    def _lease(self) -> Lease:
        coordinator, replica = self._orders.coordinator, self._orders.replica
        lease: Lease | None = ray.get(coordinator.lease.remote(replica))
        if lease is not None and not lease.ends:
            return lease
        self._server.finish()
        self._report()
        if lease is None:
            if self._orders.terms.bound is not None:  # somebody may wait for it
                self._server.rest()
            lease = ray.get(coordinator.wait_for_lease.remote(replica))
            if not lease.ends:
                self._server.fetch()  # others have gone on meanwhile
        return lease

    def _judge(self, step: int) -> None:
        self._server.finish()
        self._server.fetch()
        trainee = self._trainee
        sums = evaluate(
            trainee.model,
            trainee.data,
            range(len(trainee.data.test)),
            device=trainee.device,
            dtype=trainee.dtype,
            layout=self._layout,
            autocast=trainee.autocast,
        )
        self._sink.evaluation(
            {"step": step, "correct": sums.correct, "loss_sum": sums.loss_sum}
            | {"samples": sums.samples}
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
        wall_s, blocked_s = time.perf_counter() - self._began_s, self._server.blocked_s
        orders = self._orders
        self._begun[-1].record = {
            "step": batch.step,
            "rank": orders.rank,
            "replica": orders.replica,
            "machine": orders.machine,
            "generation": orders.generation,
            "first": self._trainee.order.step_bounds(batch.step)[0],
            "samples": batch.samples,
            "wall_s": wall_s,
            "compute_s": max(0.0, wall_s - blocked_s),
            "blocked_s": blocked_s,
            "loss": float(loss_sum.detach()) / batch.samples,
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
            sent_to = dict(exchange.sent_to) if exchange else {}
            received_from = dict(exchange.received_from) if exchange else {}
            self._sink.record(
                record
                | {
                    "sent_bytes": sum(sent_to.values()) + sum(received_from.values()),
                    "sent_to": sent_to,
                    "received_from": received_from,
                    "staleness": push.staleness if push is exchange else None,
                    "held_s": max(answer.held_s for answer in push.answers),
                    "versions": [
                        (call.incarnation, answer.version)
                        for call, answer in zip(push.calls, push.answers, strict=True)
                    ],
                }
            )


class _Noting:
    """The server as the program sees it; steps are told what goes out for them."""

    def __init__(self, server: ShardClient, begun: deque[Begun]) -> None:
        self._server, self._begun = server, begun

    def fetch(self) -> None:
        """As the client's."""
        self._server.fetch()

    def exchange(self, push: Push | None, *, fetch: bool) -> None:
        """As the client's; it belongs to the step that was begun last."""
        self._server.exchange(push, fetch=fetch)
        self._begun[-1].exchange = self._server.issued
        if push is not None:
            for begun in self._begun:
                begun.push = begun.push or self._server.issued

    def settle(self) -> None:
        """As the client's."""
        self._server.settle()

    def finish(self) -> None:
        """As the client's."""
        self._server.finish()


def _not_here(*_: Any) -> Any:
    raise AssertionError("servers have the state, and leases say what is judged and when to end")

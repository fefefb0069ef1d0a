"""A parameter server: some rows of the parameters, the optimizer that moves them, and a version.

    push ──▶ gate ──▶ one update of the optimizer ──▶ version + 1 ──▶ answer: weights, staleness
    fetch ─────────────────────────────────────────────────────────▶ answer: weights

One thread does everything, in the order in which it arrives, so that what is fetched is of one
version; a push that the gate holds back waits without keeping others out. Replicas reach it over
ZeroMQ, and the fleet as an async actor of Ray's. All of a shard's rows are one parameter to the
optimizer. Torch's optimizers treat every element alike and alone, so that shards together compute
what one optimizer over all parameters would.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import zmq
import zmq.asyncio
from torch import Tensor, nn

from convoy.runtime.memory import keep_freed_memory
from convoy.runtime.optimization import make_optimizer
from convoy.runtime.servers.messages import (
    Answer,
    PushMessage,
    Request,
    pack_answer,
    read_request,
)
from convoy.runtime.settings import TrainSettings
from convoy.strategies.push_codec import as_array, decode
from convoy.strategies.server import ServerTerms
from convoy.strategies.update_gate import Offer, UpdateGate

LINGER_MS = 1000
"""How long the last answers of one that retires may take to be gone."""


@dataclass(frozen=True, kw_only=True)
class ShardOrders:
    """What a shard is told when it starts."""

    index: int
    session: str
    """Which run it serves."""
    address: str
    """The IP address at which replicas reach its machine."""
    settings: TrainSettings
    terms: ServerTerms
    state: ShardState


@dataclass(frozen=True, kw_only=True)
class ShardState:
    """All of a shard: what is kept in a snapshot, and what it starts with."""

    version: int
    weights: Tensor
    """[elements]"""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """By key of the optimizer's state: [elements], or a scalar."""
    applied: dict[int, int] = field(default_factory=dict)
    """By replica: the number of its last push that is in them."""
    pushes: int = 0
    """Applied so far, and"""
    apply_s: float = 0.0
    """in how many seconds."""


@dataclass
class _Waiting:
    """A push that is not an update yet."""

    message: PushMessage
    answer: asyncio.Future[Answer]
    since: float


class Shard:
    """Made into an actor by a pool: `ray.remote(Shard)`. Of one run after another."""

    def __init__(self) -> None:
        keep_freed_memory()
        torch.set_num_threads(1)
        self._end = asyncio.Event()
        self._socket: zmq.asyncio.Socket | None = None
        self._endpoint = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self, orders: ShardOrders) -> str:
        """Begin with what `orders` say; returns where replicas reach this shard."""
        self._end = asyncio.Event()
        self._orders = orders
        endpoint = self._listen_at(orders.address)
        module = nn.ParameterDict({"rows": nn.Parameter(orders.state.weights.clone())})
        self._rows: nn.Parameter = module["rows"]
        self._optimizer = make_optimizer(module, orders.settings)
        if orders.state.optimizer:
            kept = {key: value.clone() for key, value in orders.state.optimizer.items()}
            self._optimizer.state[self._rows] = kept
        self._gate: UpdateGate[_Waiting] = UpdateGate(orders.terms.bound, orders.state.version)
        self._pushes, self._apply_s = orders.state.pushes, orders.state.apply_s
        self._applied, self._retired = dict(orders.state.applied), False
        self._held: dict[tuple[int, int], asyncio.Future[Answer]] = {}
        return endpoint

    def _listen_at(self, address: str) -> str:
        """Answer what comes to a port of this address from now on."""
        host = f"[{address}]" if ":" in address else address
        if not self._endpoint.startswith(f"tcp://{host}:"):
            if self._socket is not None:
                self._socket.close(linger=0)
            self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
            self._socket.setsockopt(zmq.IPV6, ":" in address)
            self._endpoint = f"tcp://{host}:{self._socket.bind_to_random_port(f'tcp://{host}')}"
            self._keep(self._listen(self._socket))
        return self._endpoint

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            try:
                caller, *frames = await socket.recv_multipart(copy=False)
            except zmq.ZMQError:
                return  # closed
            try:
                request = read_request([frame.buffer for frame in frames])
            except (ValueError, KeyError, TypeError, IndexError):
                continue  # of somebody who is no replica of ours
            if request.session == self._orders.session:
                # Tasks begin in the order in which they are made: pushes stay in theirs.
                self._keep(self._respond(socket, caller, request))

    async def _respond(
        self, socket: zmq.asyncio.Socket, caller: zmq.Frame, request: Request
    ) -> None:
        if request.kind == "leave":
            await self.leave(request.replica)
            return
        if request.push is not None:
            answer = await self.push(request.push)
        elif request.kind == "fetch":
            answer = await self.fetch(request.replica)
        else:
            answer = await self.refetch(request.replica)
        with contextlib.suppress(zmq.ZMQError):  # closed: the successor is asked again
            await socket.send_multipart([caller, *pack_answer(request.ticket, answer)], copy=False)

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # or nobody would, and it might be collected
        task.add_done_callback(self._tasks.discard)

    async def join(self, replicas: Sequence[int]) -> None:
        """These replicas are about to fetch, and nothing goes too far ahead of them."""
        for replica in replicas:
            self._gate.join(replica)

    async def leave(self, replica: int) -> None:
        """`replica` has nothing to do for now: nothing waits for it."""
        self._gate.leave(replica)
        self._update()

    async def forget(self, replica: int) -> None:
        """`replica` is gone for good: nothing waits for it."""
        self._gate.forget(replica)
        self._update()

    async def fetch(self, replica: int) -> Answer:
        """The newest weights, with which `replica` computes from now on."""
        version = self._gate.fetched(replica)
        return Answer(version=version, weights=as_array(self._rows, self._orders.terms.wire))

    async def refetch(self, replica: int) -> Answer:
        """As `fetch`, to one that goes on to compute with what it has as well."""
        version = self._gate.hand_out(replica)
        return Answer(version=version, weights=as_array(self._rows, self._orders.terms.wire))

    async def push(self, message: PushMessage) -> Answer:
        """Apply a push, at once or when the gate lets it; one that has been is only answered."""
        if message.number <= self._applied.get(message.replica, 0):
            return self._answer(message, None, 0.0)
        key = message.replica, message.number
        if key in self._held:  # it is here already, and was sent again over another connection
            return await asyncio.shield(self._held[key])
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._held[key] = answer
        waiting = _Waiting(message=message, answer=answer, since=time.perf_counter())
        offer = Offer(replica=message.replica, base=message.base, content=waiting)
        self._gate.offer(offer, message.holds)
        self._update()
        try:
            return await asyncio.shield(answer)
        finally:
            self._held.pop(key, None)

    async def snapshot(self) -> ShardState:
        """All of it, as of now."""
        state = self._optimizer.state.get(self._rows, {})
        return ShardState(
            version=self._gate.version,
            weights=self._rows.detach().clone(),
            optimizer={k: v.detach().clone() for k, v in state.items() if isinstance(v, Tensor)},
            applied=dict(self._applied),
            pushes=self._pushes,
            apply_s=self._apply_s,
        )

    async def ready(self) -> None:
        """Returns once this process is there."""

    async def retire(self) -> ShardState:
        """Answer nobody and apply nothing any more; what a successor begins with."""
        self._retired = True
        if self._socket is not None:
            self._socket.close(linger=LINGER_MS)
            self._socket, self._endpoint = None, ""
        for task in list(self._tasks):  # whoever waits for an answer asks the successor
            task.cancel()
        return await self.snapshot()

    async def facts(self) -> dict[str, Any]:
        """What it has done so far."""
        return {
            "version": self._gate.version,
            "pushes": self._pushes,
            "apply_s": self._apply_s,
        }

    async def serve(self) -> None:
        """Returns when it is told to end; whoever waits for that hears of its death."""
        await self._end.wait()

    async def end(self) -> None:
        """Have `serve` return."""
        self._end.set()

    def _update(self) -> None:
        while not self._retired and (taken := self._gate.next_update()):
            started = time.perf_counter()
            staleness = [self._gate.version - 1 - offer.base for offer in taken]
            self._apply([offer.content.message for offer in taken], max(0, *staleness, 0))
            now = time.perf_counter()
            self._apply_s += now - started
            self._pushes += len(taken)
            for offer, behind in zip(taken, staleness, strict=True):
                waiting = offer.content
                self._applied[offer.replica] = waiting.message.number
                if not waiting.answer.done():
                    held = started - waiting.since
                    waiting.answer.set_result(self._answer(waiting.message, behind, held))

    def _answer(self, message: PushMessage, staleness: int | None, held_s: float) -> Answer:
        weights = None
        if message.fetch:
            self._gate.hand_out(message.replica)
            weights = as_array(self._rows, self._orders.terms.wire)
        return Answer(
            version=self._gate.version,
            staleness=None if staleness is None else max(0, staleness),
            held_s=held_s,
            weights=weights,
        )

    def _apply(self, messages: Sequence[PushMessage], staleness: int) -> None:
        """One update: of one push, or of the mean of several over their samples."""
        rows = self._rows
        pushed = [decode(m.arrays, rows.numel(), rows.dtype) for m in messages]
        gradient = pushed[0]
        if len(messages) > 1:
            total = sum(m.samples for m in messages)
            gradient = torch.zeros_like(rows)
            for message, part in zip(messages, pushed, strict=True):
                gradient.add_(part, alpha=message.samples / total)
        lr = messages[0].lr
        if self._orders.terms.staleness_scaled:  # Zhang et al. 2016, equation 6
            lr /= max(1, staleness)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        rows.grad = gradient
        self._optimizer.step()
        rows.grad = None

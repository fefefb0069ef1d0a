"""What every request goes through, whichever protocol brought it.

    authorised, admitted → read → checked → decoded → batched, computed → written → counted, logged

The first two happen at once, so that what is too much is refused before anything is done for it.
"""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from convoy.errors import ConvoyError
from convoy.split.codecs import FloatArray
from convoy.split.server.batching import Batcher
from convoy.split.server.logs import Log
from convoy.split.server.metrics import Metrics
from convoy.split.server.refusals import RefusedError, Status
from convoy.split.server.repository import Model, Repository
from convoy.split.server.requests import EXPANSION, Question, decode, model_for, parcel_of
from convoy.split.server.security import Security

T = TypeVar("T")
SMALL_BYTES = 64 * 1024
"""What has no more is decoded and written on the loop: a thread would take longer to be woken."""
UNKNOWN = ""
"""The label of models that there are none of."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a server does at a time."""

    message_bytes: int = 64 * 1000**2
    """Of a request."""
    max_batch: int = 64
    """Images that are computed together."""
    batch_window_s: float = 0.0
    """That the first request of a batch waits for others."""
    max_concurrent: int = 64
    """Requests that are here at a time; more are refused."""

    @property
    def decoded_bytes(self) -> int:
        """A request's input as float32."""
        return EXPANSION * self.message_bytes


@dataclass(kw_only=True)
class Visit:
    """One request's stay: what is counted and logged of it at its end."""

    protocol: str
    peer: str
    began: float = field(default_factory=perf_counter)
    arrived: float = 0.0
    """When all of it was here; set by who reads it."""
    received_bytes: int = 0
    model: Model | None = None
    codec: str = ""
    images: int = 0
    decoding_s: float = 0.0
    queue_s: float = 0.0
    computing_s: float = 0.0
    is_wanted: bool = True
    """False once nobody waits for the answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a front writes."""

    question: Question
    model: Model
    rows: FloatArray
    server_s: float
    computing_s: float
    """That the server was at work for this request alone: decoding, and its part of a batch."""


class Core:
    """Models, limits and counters; of one event loop."""

    def __init__(
        self,
        repository: Repository,
        security: Security,
        limits: Limits,
        pool: Executor,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self.repository, self.security, self.limits = repository, security, limits
        self.pool, self.log, self.metrics = pool, log, metrics
        self.in_flight = 0
        self.is_ready = False
        self._stays: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.batchers = {
            id(model): Batcher(
                model.session,
                pool,
                max_batch=limits.max_batch,
                window_s=limits.batch_window_s,
                observe=metrics.batch_images.labels(model.name).observe,
            )
            for model in repository
        }

    def set_ready(self, ready: bool) -> None:
        """Take requests from now on, or none; those that wait for others wait no longer then."""
        self.is_ready = ready
        if not ready:
            for batcher in self.batchers.values():
                batcher.hurry()
        self.metrics.ready.set(ready)

    async def idle(self) -> None:
        """Return once no request is here."""
        await self._idle.wait()

    def abandon(self) -> None:
        """Answer no request that is here; those who wait are told."""
        for stay in self._stays:
            stay.cancel()

    async def serve(
        self,
        protocol: str,
        peer: str,
        authorization: str | None,
        read: Callable[[Visit], Awaitable[Question]],
        write: Callable[[Answer], T],
    ) -> T:
        """Answer one request.

        Args:
            read: translates it out of its protocol, and says in the visit when it had arrived.
            write: translates the answer into it.

        Raises:
            RefusedError: it is not answered; counted and logged already.
        """
        visit = Visit(protocol=protocol, peer=peer)
        try:
            self.security.check(authorization)
            self._admit()
        except RefusedError as refusal:
            self._end(visit, refusal)
            raise
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        self._idle.clear()
        stay = asyncio.create_task(self._stay(visit, read, write))
        self._stays.add(stay)
        stay.add_done_callback(self._leave)
        try:
            return await asyncio.shield(stay)
        except asyncio.CancelledError:
            if stay.cancelled():
                raise RefusedError(
                    Status.UNAVAILABLE, "this server ended before it had an answer: try another"
                ) from None
            visit.is_wanted = False  # the client has gone; threads may still be at work for it
            raise

    def _admit(self) -> None:
        if not self.is_ready:
            raise RefusedError(
                Status.UNAVAILABLE, "this server is ending and takes no more requests: try another"
            )
        if self.in_flight >= self.limits.max_concurrent:
            raise RefusedError(
                Status.RESOURCE_EXHAUSTED,
                f"this server has {self.in_flight} requests, as many as it takes: try again in a "
                "second",
            )

    def _leave(self, stay: asyncio.Task[object]) -> None:
        self._stays.discard(stay)
        self.in_flight -= 1
        self.metrics.in_flight.set(self.in_flight)
        if self.in_flight == 0:
            self._idle.set()
        if not stay.cancelled():
            stay.exception()  # looked at, if nobody else is there to do it

    async def _stay(
        self,
        visit: Visit,
        read: Callable[[Visit], Awaitable[Question]],
        write: Callable[[Answer], T],
    ) -> T:
        try:
            written = await self._answer(visit, read, write)
        except RefusedError as refusal:
            self._end(visit, refusal)
            raise
        except asyncio.CancelledError:
            self._end(visit, RefusedError(Status.UNAVAILABLE, "the server ended first"))
            raise
        except Exception as error:
            told = self.unforeseen(error)
            self._end(visit, told)
            raise told from None
        self._end(visit, None)
        return written

    async def _answer(
        self,
        visit: Visit,
        read: Callable[[Visit], Awaitable[Question]],
        write: Callable[[Answer], T],
    ) -> T:
        question = await read(visit)
        visit.arrived = visit.arrived or visit.began
        visit.model = model = model_for(question, self.repository)
        parcel = parcel_of(question, model, most_bytes=self.limits.decoded_bytes)
        visit.codec, visit.images = parcel.codec.name, parcel.count

        began = perf_counter()
        size = max(parcel.decoded_bytes, visit.received_bytes)
        rows = await self.off_loop(size, decode, parcel)
        visit.decoding_s = perf_counter() - began

        computed = await self.batchers[id(model)](rows, lambda: visit.is_wanted)
        visit.queue_s, visit.computing_s = computed.queue_s, computed.computing_s
        server_s = perf_counter() - visit.arrived
        part = parcel.count / computed.together
        answer = Answer(
            question=question,
            model=model,
            rows=computed.rows,
            server_s=server_s,
            computing_s=visit.decoding_s + part * computed.computing_s,
        )
        return await self.off_loop(computed.rows.nbytes, write, answer)

    async def off_loop(self, size: int, work: Callable[..., T], *arguments: object) -> T:
        """What `work` returns; done in a thread if it is about many bytes."""
        if size <= SMALL_BYTES:
            return work(*arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, work, *arguments)

    def unforeseen(self, error: Exception) -> RefusedError:
        """What a client is told of an error that is ours; the log has the rest, by a number."""
        number = secrets.token_hex(4)
        trace = "".join(traceback.format_tb(error.__traceback__))
        text = str(error)[:500] if isinstance(error, ConvoyError) else ""
        kind = type(error).__name__
        self.log("error", "unforeseen", id=number, kind=kind, text=text, trace=trace)
        return RefusedError(
            Status.INTERNAL,
            f"something went wrong in the server. Its log says what, under {number}",
        )

    def _end(self, visit: Visit, refusal: RefusedError | None) -> None:
        """Count and log a request that has ended."""
        status = Status.OK if refusal is None else refusal.status
        name = visit.model.name if visit.model else UNKNOWN
        seconds = perf_counter() - (visit.arrived or visit.began)
        self.metrics.ended(visit.protocol, name, status.name).inc()
        figures = self.metrics.of(visit.protocol, name)
        figures.received.inc(visit.received_bytes)
        figures.request_s.observe(seconds)
        if status is Status.OK:
            figures.images.inc(visit.images)
            figures.queue_s.observe(visit.queue_s)
            figures.decoding_s.observe(visit.decoding_s)
            figures.computing_s.observe(visit.computing_s)
        self.log(
            "info",
            "request",
            protocol=visit.protocol,
            model=name,
            version=visit.model.version if visit.model else None,
            images=visit.images,
            bytes=visit.received_bytes,
            codec=visit.codec,
            seconds=round(seconds, 6),
            peer=visit.peer,
            status=status.name,
        )

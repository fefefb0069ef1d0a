"""The server as the client sees it: asked, given up when it fails, and asked again when it is back.

A failure gives up everything that is under way: whoever waits computes on the edge at once,
rather than when its own deadline has come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from convoy.errors import CodecError, ServerError
from convoy.split.client.breaker import Breaker
from convoy.split.client.link_meter import LinkMeter
from convoy.split.client.transport import FOR_GOOD, Transport, refusal
from convoy.split.client.ways import Way
from convoy.split.codecs import FloatArray
from convoy.split.messages import answer_of, request
from convoy.split.probes import padded

STALE_S = 1.0
"""After so long without a request that tells of the bandwidth, it is measured by a probe."""
PROBE_BYTES = (1 << 13, 1 << 18)
"""Of a probe: the first, which is the least, and the most."""
PROBE_S = (0.004, 0.04)
"""What a probe should take: it grows where it takes less, and shrinks where it takes more."""


class Cloud:
    """One server."""

    def __init__(self, transport: Transport, say: Callable[[str], None]) -> None:
        self.meter, self.breaker = LinkMeter(), Breaker()
        self.sent_bytes = self.outages = 0
        self._transport, self._say = transport, say
        self._deadline_s = transport.options.deadline_s
        self._outage = asyncio.Event()
        self._probe_bytes = PROBE_BYTES[0]
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_there(self) -> bool:
        """Whether it is worth asking."""
        return not self.breaker.is_open

    async def meet(self, ways: Sequence[Way]) -> None:
        """Connect; without an answer the edge begins alone.

        Raises:
            ServerError: it refuses this client, or does not have what these ways ask of it.
        """
        transport, patience_s = self._transport, self._transport.options.connect_s
        transport.connect()
        self._start(self._watch_link())
        if not await transport.is_ready(patience_s):
            await transport.explain()
            self._give_up("it does not answer")
            return
        for way in ways:
            if way.address is not None:
                await transport.check(way.address.model, way.address.version, patience_s)
        began = time.perf_counter()
        if await transport.is_ready(patience_s):
            self.meter.note(0, began, time.perf_counter(), 0.0)

    async def ask(
        self, way: Way, payload: bytes, shape: tuple[int, ...], width: int
    ) -> FloatArray | None:
        """The server's scores, float32 [n, width], or None where they do not come.

        Args:
            payload: what the way's codec made of a tensor.
            shape: of that tensor, its n first.
        """
        if self.breaker.is_open or way.address is None:
            return None
        message = request(way.address, way.codec.name, payload, shape)
        self.sent_bytes += len(payload)
        sent = time.perf_counter()
        asking = asyncio.ensure_future(self._transport.infer(message, self._deadline_s))
        given_up = asyncio.ensure_future(self._outage.wait())
        try:
            await asyncio.wait({asking, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return None
            scores, server_s = answer_of(asking.result(), shape[0], width)
        except grpc.aio.AioRpcError as error:
            self._refused(error)
            return None
        except CodecError as error:
            self._give_up(str(error))
            return None
        finally:
            asking.cancel()
            given_up.cancel()
        answered = time.perf_counter()
        self.meter.note(len(payload), sent, answered, server_s)
        way.note_server(server_s, answered)
        return scores

    async def close(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.close()

    def _refused(self, error: grpc.aio.AioRpcError) -> None:
        """What a failed request means for those that come."""
        code = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return  # it has too much to do just now: the edge does this one
        if code in FOR_GOOD or code is grpc.StatusCode.INVALID_ARGUMENT:
            self._give_up(str(refusal(self._transport.target, error)))
        else:
            self._give_up(f"{code.name}: {error.details()}")

    def _give_up(self, why: str) -> None:
        if not self.breaker.trip():
            return
        self.outages += 1
        self._outage.set()
        self._say(f"the cloud is gone ({why}): the edge computes alone")
        self._start(self._recover())

    async def _recover(self) -> None:
        """Knock until somebody is there."""
        while self.breaker.is_open:
            await asyncio.sleep(self.breaker.wait_s)
            self._transport.connect()  # an old connection may take seconds to try again
            try:
                is_there = await self._transport.is_ready(self._deadline_s)
            except ServerError:
                is_there = False
            self.breaker.probed(is_there=is_there)
        self.meter.forget()
        self._outage = asyncio.Event()
        self._say("the cloud is back")

    async def _watch_link(self) -> None:
        """Measure the link by itself where what is sent tells nothing of it."""
        while True:
            is_stale = time.perf_counter() > self.meter.measured + STALE_S
            if is_stale and not self.breaker.is_open and not await self._probe():
                await asyncio.sleep(STALE_S / 2)
            await asyncio.sleep(STALE_S / 4 if self.meter.bandwidth_bytes_s else 0.001)

    async def _probe(self) -> bool:
        """Whether it came through."""
        (least, most), (short_s, long_s) = PROBE_BYTES, PROBE_S
        began = time.perf_counter()
        if not await self._transport.is_live(padded(0), self._deadline_s):
            return False
        self.meter.note(0, began, time.perf_counter(), 0.0)
        began = time.perf_counter()
        if not await self._transport.is_live(padded(self._probe_bytes), self._deadline_s):
            self._probe_bytes = max(least, self._probe_bytes // 4)
            return False
        ended = time.perf_counter()
        self.meter.note(self._probe_bytes, began, ended, 0.0)
        taken = ended - began - (self.meter.rtt_s or 0.0)
        if taken < short_s:
            self._probe_bytes = min(4 * self._probe_bytes, most)
        elif taken > long_s:
            self._probe_bytes = max(least, self._probe_bytes // 4)
        return True

    def _start(self, what: Any) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

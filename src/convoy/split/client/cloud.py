"""The server as the client sees it: asked, given up when it fails, and asked again when it is back.

A failure gives up everything that is under way: whoever waits computes on the edge at once,
rather than when its own deadline has come.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np

from convoy.errors import CodecError, ServerError
from convoy.split.client.breaker import Breaker
from convoy.split.client.link_meter import LinkMeter
from convoy.split.client.transport import FOR_GOOD, Transport, refusal
from convoy.split.client.ways import Way
from convoy.split.codecs import FloatArray
from convoy.split.manifest import Preprocessing
from convoy.split.messages import PLAIN, Address, answer_of, request
from convoy.split.pictures import Pixels
from convoy.split.probes import padded

AVOIDED_S = 60.0
"""How long a way is not gone after a refusal that no waiting mends: somebody may mend it."""
SAID_S = 1.0
"""A way that is not gone for this long is worth a word."""
INVALID = grpc.StatusCode.INVALID_ARGUMENT
BAFFLED = (INVALID, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""What servers answer to a codec that they do not know; the latter two may also pass."""
PASSING = (*BAFFLED, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""What costs a batch, and says nothing of the next one, or of another way."""
STALE_S, LONGEST_STALE_S = 1.0, 4.0
"""After so long without a request that tells of the bandwidth, it is measured by a probe: at first,
and where probes find again and again what was known."""
PART_OF_LINK = 0.05
"""How much of the time probes may take at most."""
KNOWN = 1.25
"""What differs by less than this factor is no news."""
IN_USE_S = 2.0
"""A client that has had no image for so long need not know the link."""
LOOK_S = 0.05
"""How often it is looked whether a probe is due."""
FIRST_PROBE_BYTES = 1 << 13
PROBE_BYTES = (1 << 10, 1 << 18)
"""Of probes: the first, the least and the most."""
PROBES, REQUESTS = 3, 10
"""How many pairs of questions measure the link, and how many what a request takes."""
PROBE_S = (0.004, 0.04)
"""What a probe should take: it grows where it takes less, and shrinks where it takes more."""


Asked = Any
"""A call of gRPC's that is under way."""


class Cloud:
    """One server."""

    def __init__(self, transport: Transport, say: Callable[[str], None]) -> None:
        self.meter, self.breaker = LinkMeter(), Breaker()
        self.sent_bytes = self.probe_bytes = self.outages = 0
        self.wanted = float("-inf")
        """When somebody had something to send last."""
        self.why = ""
        """It is not there."""
        self._transport, self._say = transport, say
        self._asked: set[Asked] = set()
        """Requests that are under way."""
        self._under_way_bytes = 0
        self._probe_bytes = FIRST_PROBE_BYTES
        self._stale_s = STALE_S
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_there(self) -> bool:
        """Whether it is worth asking."""
        return not self.breaker.is_open

    async def meet(self, ways: Sequence[Way], by: Preprocessing, width: int) -> None:
        """Connect, and try each model; without an answer the edge begins alone.

        Ways that this server does not take, as one that is not Convoy's takes float32 only, are
        not gone; a notice says so.

        Args:
            ways: those that may be gone.
            by: what pictures are prepared by.
            width: of an answer.

        Raises:
            ServerError: it refuses this client, or has other models than these ways are for.
        """
        transport, patience_s = self._transport, self._transport.options.connect_s
        transport.connect()
        if not await transport.is_ready(patience_s):
            self._give_up(await transport.explain())
            self._start(self._watch_link())
            return
        count = transport.options.batch_size  # as many as there will be: what that takes is noted
        black = np.zeros((count, by.height, by.width, by.channels), np.uint8)
        by_address: dict[Address, list[Way]] = {}
        for way in ways:
            if way.address is not None:
                by_address.setdefault(way.address, []).append(way)
        for of_one in by_address.values():
            lightest_first = sorted(of_one, key=lambda way: way.sent_bytes(count))
            await self._try(lightest_first, black, by, width)
        await self._time_requests()
        self.wanted = time.perf_counter()
        self._start(self._watch_link())

    async def _time_requests(self) -> None:
        """What requests with nothing in them take of this machine, and there and back."""
        at_work = time.process_time()
        for _ in range(REQUESTS):
            began = time.perf_counter()
            if not await self._transport.is_live(padded(0), self._transport.options.connect_s):
                return
            self.meter.note(0, began, time.perf_counter(), 0.0)
        self.meter.request_s = (time.process_time() - at_work) / REQUESTS

    async def _try(self, ways: Sequence[Way], black: Pixels, by: Preprocessing, width: int) -> None:
        """Ask a model for one answer, by the lightest of its ways, or as any client would."""
        tried = list(dict.fromkeys([ways[0], *(w for w in ways if w.codec.name == PLAIN)]))
        refused: grpc.StatusCode | None = None
        for way in tried:
            assert way.address is not None
            count, payload = len(black), way.encoded(black, by)
            message = request(way.address, way.codec.name, payload, (count, *way.shape))
            began = time.perf_counter()
            try:
                answer = await self._transport.infer(message, self._transport.options.connect_s)
                found = answer_of(answer, count, width)
            except grpc.aio.AioRpcError as error:
                if error.code() in BAFFLED and way is not tried[-1]:
                    refused = error.code()
                    continue
                is_wanted = way.name == self._transport.options.way
                if is_wanted and error.code() in BAFFLED and way.codec.name != PLAIN:
                    raise ServerError(
                        f"{self._transport.target.address} does not take {way.name} "
                        f"({error.code().name}: {error.details()}). A server that is not Convoy's "
                        f"takes {PLAIN} only: ask for {way.name.rpartition('/')[0]}/{PLAIN}, or "
                        "leave --way out"
                    ) from None
                if error.code() is INVALID or error.code() in FOR_GOOD:
                    raise refusal(self._transport.target, error) from None
                return  # whatever it is, it may pass
            except CodecError as error:
                raise ServerError(f"{self._transport.target.address}: {error}") from None
            is_ours = found.server_s > 0  # then what is no refusal was a mishap
            computing_s = found.computing_s if is_ours else time.perf_counter() - began
            for other in ways:  # whose codec may differ; the model is the same
                other.answered(computing_s, count)
            if refused is INVALID or (refused is not None and not is_ours):
                self._drop([other for other in ways if other.codec.name != PLAIN])
            return

    def _drop(self, ways: Sequence[Way]) -> None:
        for way in ways:
            way.refused_until = math.inf
        if ways:
            names = ", ".join(way.name for way in ways)
            self._say(f"this server does not take {names}: these ways are not gone")

    async def ask(self, way: Way, payload: bytes, count: int, width: int) -> FloatArray | str:
        """The server's scores, float32 [count, width], or why they do not come.

        Args:
            payload: what the way's codec made of so many images.
        """
        if self.breaker.is_open or way.address is None:
            return self.why
        message = request(way.address, way.codec.name, payload, (count, *way.shape))
        self.sent_bytes += len(payload)
        sent, patience_s = time.perf_counter(), self._transport.options.deadline_s
        asked = self._transport.infer(message, patience_s)
        self._asked.add(asked)
        self._under_way_bytes += len(payload)
        try:
            found = answer_of(await asked, count, width)
        except asyncio.CancelledError:
            if asked in self._asked:  # it is we who are cancelled, and not what was asked
                asked.cancel()
                raise
            return self.why
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self.meter.note_late(len(payload), time.perf_counter() - sent)
            return self._refused(way, error)
        except CodecError as error:
            return self._avoid(way, str(error))
        finally:
            self._asked.discard(asked)
            self._under_way_bytes -= len(payload)
        answered, computing_s = time.perf_counter(), found.computing_s
        if found.server_s:
            self.meter.note(len(payload), sent, answered, found.server_s, self._under_way_bytes)
        else:
            computing_s = self.meter.note_silent(len(payload), sent, answered)
        self.breaker.answered()
        way.answered(computing_s, count)
        return found.scores

    async def close(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.close()

    def _refused(self, way: Way, error: grpc.aio.AioRpcError) -> str:
        """What a failed request means for those that come; and why it failed."""
        code, told = error.code(), f"{error.code().name}: {error.details()}"
        if code in FOR_GOOD:
            return self._avoid(way, str(refusal(self._transport.target, error)), AVOIDED_S)
        if code in PASSING:
            return self._avoid(way, told)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:  # this way may be too slow, or nobody there
            way.avoid(time.perf_counter())
        self._give_up(told)
        return told

    def _avoid(self, way: Way, why: str, least_s: float = 0.0) -> str:
        """Not gone for a while; others may be."""
        seconds = way.avoid(time.perf_counter(), least_s)
        if seconds >= SAID_S:
            self._say(f"{way.name} is not gone for {seconds:.0f} s: {why}")
        return why

    def _give_up(self, why: str) -> None:
        if not self.breaker.trip():
            return
        self.outages += 1
        self.why = why
        given_up, self._asked = self._asked, set()
        for asked in given_up:
            asked.cancel()
        self._say(f"the cloud is gone ({why}): the edge computes alone")
        self._start(self._recover())

    async def _recover(self) -> None:
        """Knock until somebody is there."""
        while self.breaker.is_open:
            await asyncio.sleep(self.breaker.wait_s)
            self._transport.connect()  # an old connection may take seconds to try again
            try:
                is_there = await self._transport.is_ready(self._transport.options.deadline_s)
            except ServerError as error:
                self.why, is_there = str(error), False
            self.breaker.probed(is_there=is_there)
        self.meter.forget()
        self._say("the cloud is back")

    async def _watch_link(self) -> None:
        """Measure the link by itself where what is sent tells nothing of it.

        Not while nobody has anything to send.
        """
        failed_s = STALE_S / 2
        while True:
            now, known = time.perf_counter(), self.meter.bandwidth_bytes_s
            is_due = now > self.meter.measured + self._stale_s and now < self.wanted + IN_USE_S
            if not is_due or self.breaker.is_open:
                await asyncio.sleep(LOOK_S)
                continue
            kept_s = await self._probe()
            found = self.meter.bandwidth_bytes_s
            if known and found:
                is_news = max(known / found, found / known) > KNOWN
                self._stale_s = STALE_S if is_news else min(2 * self._stale_s, LONGEST_STALE_S)
            if kept_s is not None:
                failed_s = STALE_S / 2
                await asyncio.sleep(kept_s / PART_OF_LINK)
                continue
            await asyncio.sleep(failed_s)  # what never came back may have kept the link as long
            failed_s = min(2 * failed_s, self._transport.options.deadline_s / PART_OF_LINK)

    async def _probe(self) -> float | None:
        """Measure the link; for how many seconds that kept it, None where nothing came back."""
        (least, most), (short_s, long_s) = PROBE_BYTES, PROBE_S
        kept_s = 0.0
        while True:
            size = self._probe_bytes
            found = await self._times(size)
            if found is None:
                self._probe_bytes = max(least, size // 4)
                return None
            small_s, large_s, pairs = found
            taken_s = large_s - small_s
            kept_s += pairs * max(taken_s, 0.0)
            if taken_s < max(short_s, small_s) and size < most:  # too little to tell from noise
                self._probe_bytes = min(4 * size, most)
                continue
            self.meter.note_probe(size, small_s, large_s, time.perf_counter())
            if taken_s > max(long_s, 4 * small_s):
                self._probe_bytes = max(least, size // 4)
            return kept_s

    async def _times(self, size: int) -> tuple[float, float, int] | None:
        """Seconds of questions with nothing and with `size` bytes, and how many pairs of them.

        A few, as long as that is short, of which the quickest count: whatever else this machine
        does only makes them longer.
        """
        patience_s, small_s, large_s = self._transport.options.deadline_s, math.inf, math.inf
        begun, pairs = time.perf_counter(), 0
        while pairs < PROBES and time.perf_counter() < begun + PROBE_S[1]:
            pairs += 1
            times = []
            for message in (padded(0), padded(size)):
                began = time.perf_counter()
                self.probe_bytes += message.ByteSize()
                if not await self._transport.is_live(message, patience_s):
                    return None
                times.append(time.perf_counter() - began)
            small_s, large_s = min(small_s, times[0]), min(large_s, times[1])
        return small_s, large_s, pairs

    def _start(self, what: Any) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

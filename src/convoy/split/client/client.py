"""The client: batches go their way, several at once, and their results come back in order.

    source ─▶ batches ─▶ edge half, codec ─▶ sent ═▶ server ═▶ answer ─▶ results in order
                              ▲                 │
                              └── whole network ◀── too late, refused, or the cloud is gone

The edge computes in one thread of its own, so that it goes on while others are under way. How
many may be is a matter of time, not of number: of what a batch may be away, at most half is to be
spent on waiting for those ahead of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from convoy.errors import ServerError
from convoy.split.client.batches import Batch, batches_of
from convoy.split.client.chooser import Chooser
from convoy.split.client.cloud import Cloud
from convoy.split.client.link_meter import LinkMeter
from convoy.split.client.options import Options
from convoy.split.client.results import Result, Summary
from convoy.split.client.transport import Transport, parse_target
from convoy.split.client.ways import Way, open_ways
from convoy.split.codecs import FloatArray

MOST_IN_FLIGHT = 64
AHEAD = 4
"""Batches that may wait to be taken out."""
AT_ONCE_S = 3e-4
"""What takes the edge less is done on the loop: a thread would take longer to be woken."""
ALONE_S = 3e-3
"""So is what takes less than this while nothing is away, whose answer would have to wait."""
NOTICES = 100
CLOSED = "the client is closed: open another one"


class AsyncClient:
    """Use it with `async with`."""

    def __init__(
        self, folder: str | Path, server: str | None, options: Options | None = None, **given: Any
    ) -> None:
        """What an exported folder has for the edge, and a server.

        Args:
            folder: what `convoy split export` made.
            server: grpcs://HOST:PORT; grpc:// without TLS; None: the edge computes everything.
            options: how images are to be computed; those given by name win.

        Raises:
            ManifestError, UsageError: the folder cannot be used, or an option is wrong.
        """
        self.options = replace(options or Options(), **given)
        self.summary = Summary()
        self.notices: deque[str] = deque(maxlen=NOTICES)
        """What a person should know, in the order of its happening; the latest."""
        transport = Transport(parse_target(server), self.options) if server else None
        self.ways = open_ways(Path(folder), self.options)
        self.cloud: Cloud | None = None
        if transport is not None:
            self.cloud = Cloud(transport, self.notices.append)
        meter = self.cloud.meter if self.cloud else LinkMeter()
        self.chooser = Chooser(ways=self.ways.all, options=self.options, meter=meter)
        self._edge = ThreadPoolExecutor(1, thread_name_prefix="edge")
        self._in_flight: set[asyncio.Task[list[Result]]] = set()
        self._away: dict[object, float] = {}
        """What is under way to the cloud, and for how long each keeps others waiting."""
        self._landed = asyncio.Event()
        self._closed = False
        self._began = self._last = 0.0

    async def __aenter__(self) -> Self:
        """Connect. Raises ServerError where the server refuses this client."""
        if self.cloud is not None:
            ways, width = self.ways, self.ways.manifest.output.elements
            try:
                await self.cloud.meet(ways.all, ways.preprocessing, width)
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave: whatever is under way is given up, and who waits for it gets a ServerError."""
        if self._closed:
            return
        self._closed = True
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        if self.cloud is not None:
            await self.cloud.close()
        self._edge.shutdown(wait=True, cancel_futures=True)

    async def stream(self, images: Any) -> AsyncGenerator[Result]:
        """A result for each image, in their order.

        Args:
            images: an iterable or async iterable of pictures: paths, encoded bytes, PIL images or
                pixels uint8 [height, width(, channels)]; or of pairs of a name and one of these.

        Raises:
            ServerError: the client is closed, or is being closed meanwhile.
        """
        if self._closed:
            raise ServerError(CLOSED)
        self._last = time.perf_counter()
        self._began = self._began or self._last
        waiting: asyncio.Queue[asyncio.Task[list[Result]] | None] = asyncio.Queue()
        room = asyncio.Semaphore(MOST_IN_FLIGHT + AHEAD)
        feeding = asyncio.create_task(self._feed(images, waiting, room))
        try:
            while (coming := await waiting.get()) is not None:
                try:
                    results = await coming
                except asyncio.CancelledError:
                    if self._closed and coming.cancelled():
                        raise ServerError(CLOSED) from None
                    raise
                room.release()
                for result in results:
                    self._note(result)
                    yield result
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            while not waiting.empty():
                if (left := waiting.get_nowait()) is not None:
                    left.cancel()

    async def _feed(
        self, images: Any, waiting: asyncio.Queue[Any], room: asyncio.Semaphore
    ) -> None:
        by, options = self.ways.preprocessing, self.options
        try:
            async with contextlib.aclosing(
                batches_of(images, by, options.batch_size, options.linger_s)
            ) as found:
                async for batch in found:
                    await room.acquire()
                    way = await self._next_way()
                    prepared = await self._on_edge(way, batch) if way else self._why_not()
                    takes_s = self._takes_s(way, len(batch.pixels)) if way else 0.0
                    task = asyncio.create_task(self._finish(batch, way, prepared))
                    self._in_flight.add(task)
                    if isinstance(prepared, bytes):  # the next batch is to know of it at once
                        self._away[task] = takes_s
                    task.add_done_callback(self._done)
                    waiting.put_nowait(task)
        finally:
            waiting.put_nowait(None)

    def _done(self, task: asyncio.Task[list[Result]]) -> None:
        self._in_flight.discard(task)
        self._landed_one(task)

    def _landed_one(self, task: object) -> None:
        """It keeps nobody waiting any more."""
        self._away.pop(task, None)
        self._landed.set()

    async def _next_way(self) -> Way | None:
        """The next batch's, once there is room for it; None: it has to fail."""
        while self.cloud is not None and self.cloud.is_there:
            now = time.perf_counter()
            way = self.chooser.choose(now)
            if not (way.is_edge and self.options.objective in ("bytes", "privacy")):
                self.cloud.wanted = now  # where nothing is to be sent, no probes are either
            self._note_choice(way)
            ahead_s = sum(self._away.values()) + self._takes_s(way, self.options.batch_size)
            is_known = None not in (way.server_image_s, self.chooser.meter.bandwidth_bytes_s)
            is_soon = (is_known and ahead_s <= self.options.deadline_s / 2) or not self._away
            if way.is_edge or (is_soon and len(self._in_flight) < MOST_IN_FLIGHT):
                return way
            self._landed.clear()
            await self._landed.wait()
        return self.ways.edge if self.options.fallback or self.cloud is None else None

    def _takes_s(self, way: Way, count: int) -> float:
        """What a batch that takes this way keeps others behind it waiting."""
        server_s = way.server_s(count, way.noted) or 0.0
        return max(self.chooser.meter.way_s(way.sent_bytes(count)), server_s)

    def _why_not(self) -> str:
        return f"the cloud is gone: {self.cloud.why}" if self.cloud is not None else ""

    async def _on_edge(self, way: Way, batch: Batch) -> FloatArray | bytes:
        if not len(batch.pixels):
            return np.zeros((0, len(self.ways.manifest.classes)), np.float32)
        if self._closed:
            raise ServerError(CLOSED)
        loop, by = asyncio.get_running_loop(), self.ways.preprocessing
        takes_s = way.edge_s(len(batch.pixels), way.noted)
        if takes_s < (AT_ONCE_S if self._away else ALONE_S):
            await asyncio.sleep(0)  # what came before goes on its way first
            return way.prepare(batch.pixels, by)
        return await loop.run_in_executor(self._edge, way.prepare, batch.pixels, by)

    async def _finish(
        self, batch: Batch, way: Way | None, prepared: FloatArray | bytes | str
    ) -> list[Result]:
        """A batch's results, whatever happens to it."""
        if way is None or isinstance(prepared, str):
            return self._failed(batch, str(prepared))
        if not isinstance(prepared, bytes):
            return self._results(batch, prepared, way.name)
        assert self.cloud is not None
        width = self.ways.manifest.output.elements
        scores = await self.cloud.ask(way, prepared, len(batch.pixels), width)
        self._landed_one(asyncio.current_task())
        if not isinstance(scores, str):
            return self._results(batch, scores, way.name)
        if not self.options.fallback:
            return self._failed(batch, scores)
        edge = self.ways.edge
        self.summary.fallbacks += len(batch.pixels)
        local = await self._on_edge(edge, batch)
        assert not isinstance(local, bytes)
        return self._results(batch, local, edge.name)

    def _note_choice(self, way: Way) -> None:
        self.summary.note_choice(time.perf_counter() - self._began, way.name)

    def _results(self, batch: Batch, scores: FloatArray, where: str) -> list[Result]:
        """Of a batch: scores for the pictures that there are, errors for the others."""
        now, classes = time.perf_counter(), self.ways.manifest.classes
        labels = scores.argmax(1).tolist() if len(scores) else []
        found = iter(zip(scores, labels, strict=True))
        results = []
        for item in batch.items:
            if item.error is not None:
                results.append(item.result(None, now))
                continue
            row, label = next(found)
            name = classes[label] if label < len(classes) else str(label)
            results.append(item.result(where, now, row, label, name))
        return results

    def _failed(self, batch: Batch, why: str) -> list[Result]:
        now = time.perf_counter()
        return [replace(item.result(None, now), error=item.error or why) for item in batch.items]

    def _note(self, result: Result) -> None:
        now, summary = time.perf_counter(), self.summary
        summary.images += 1
        summary.errors += result.error is not None
        if result.where is not None:
            summary.by_way[result.where] += 1
        summary.latencies.add(result.latency_s)
        summary.longest_gap_s = max(summary.longest_gap_s, now - self._last)
        summary.seconds, self._last = now - self._began, now
        if self.cloud is not None:
            summary.sent_bytes, summary.outages = self.cloud.sent_bytes, self.cloud.outages
            summary.probe_bytes = self.cloud.probe_bytes

"""The client for programs without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from convoy.split.client.client import AsyncClient
from convoy.split.client.options import Options
from convoy.split.client.results import Result, Summary

ROOM = 1024
"""Results that may wait to be taken."""
FULL_S = 0.001


class Client:
    """As AsyncClient, whose event loop runs in a thread of its own. Use it with `with`."""

    def __init__(
        self, folder: str | Path, server: str | None, options: Options | None = None, **given: Any
    ) -> None:
        """As AsyncClient; it connects at once."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._client = AsyncClient(folder, server, options, **given)
            self._run(self._client.__aenter__())
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def summary(self) -> Summary:
        """What has been done so far."""
        return self._client.summary

    @property
    def notices(self) -> list[str]:
        """What a person should know, in the order of its happening."""
        return self._client.notices

    def map(self, images: Iterable[Any]) -> Iterator[Result]:
        """A result for each image, in their order; see AsyncClient.stream."""
        found: queue.Queue[Result | BaseException | None] = queue.Queue(ROOM)
        stopped = threading.Event()
        running = asyncio.run_coroutine_threadsafe(self._pour(images, found, stopped), self._loop)
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            running.result()

    def __call__(self, image: Any) -> Result:
        """The result of one image."""
        return next(self.map([image]))

    def close(self) -> None:
        """Leave."""
        self._run(self._client.close())
        self._stop()

    async def _pour(
        self, images: Iterable[Any], found: queue.Queue[Any], stopped: threading.Event
    ) -> None:
        """Results into a queue, and at the end None or what went wrong."""
        last: Exception | None = None
        try:
            async with contextlib.aclosing(self._client.stream(images)) as results:
                async for result in results:
                    await _put(found, result, stopped)
                    if stopped.is_set():
                        return
        except Exception as error:
            last = error
        await _put(found, last, stopped)

    def _run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _put(found: queue.Queue[Any], what: Any, stopped: threading.Event) -> None:
    """Wait for room without holding the loop up, unless nobody takes anything any more."""
    while not stopped.is_set():
        try:
            found.put_nowait(what)
        except queue.Full:
            await asyncio.sleep(FULL_S)
        else:
            return

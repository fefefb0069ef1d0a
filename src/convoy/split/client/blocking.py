"""The client for programs without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from convoy.errors import ServerError
from convoy.split.client.client import CLOSED, AsyncClient
from convoy.split.client.options import Options
from convoy.split.client.results import Result, Summary

ROOM = 1024
"""Results that may wait to be taken."""
FULL_S = 0.001
LOOK_S = 0.2
"""How often who waits for a result looks whether the client has been closed."""


class Client:
    """As AsyncClient, whose event loop runs in a thread of its own. Use it with `with`.

    Several threads may use one client at a time.
    """

    def __init__(
        self, folder: str | Path, server: str | None, options: Options | None = None, **given: Any
    ) -> None:
        """As AsyncClient; it connects at once."""
        self._closed = False
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
    def notices(self) -> deque[str]:
        """What a person should know, in the order of its happening; the latest."""
        return self._client.notices

    def map(self, images: Iterable[Any]) -> Iterator[Result]:
        """A result for each image, in their order; see AsyncClient.stream.

        Raises:
            ServerError: the client is closed, or is being closed meanwhile.
        """
        if self._closed:
            raise ServerError(CLOSED)
        return self._map(images)

    def _map(self, images: Iterable[Any]) -> Iterator[Result]:
        found: queue.Queue[Result | BaseException | None] = queue.Queue(ROOM)
        stopped, ended = threading.Event(), threading.Event()
        pouring = self._pour(images, found, stopped, ended)
        running = asyncio.run_coroutine_threadsafe(pouring, self._loop)
        try:
            while True:
                try:
                    item = found.get(timeout=LOOK_S)
                except queue.Empty:
                    if self._closed:
                        raise ServerError(CLOSED) from None
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            running.cancel()  # it may wait for a source that gives no image for long
            while not (self._closed or ended.wait(LOOK_S)):
                pass

    def __call__(self, image: Any) -> Result:
        """The result of one image."""
        return next(self.map([image]))

    def close(self) -> None:
        """Leave; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._run(self._client.close())
            self._stop()

    async def _pour(
        self,
        images: Iterable[Any],
        found: queue.Queue[Any],
        stopped: threading.Event,
        ended: threading.Event,
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
        finally:
            ended.set()
        await _put(found, last, stopped)

    def _run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):  # nobody waits for them any more
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
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

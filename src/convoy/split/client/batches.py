"""Images as they come, read and brought together in batches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convoy.errors import DataError
from convoy.split.client.results import Result
from convoy.split.codecs import FloatArray
from convoy.split.manifest import Preprocessing
from convoy.split.pictures import Pixels, fitted, fitted_pixels, read_picture

AHEAD = 2
"""Batches' worth of images that are read before they are asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An image that came."""

    index: int
    name: str
    came: float
    pixels: Pixels | None
    error: str | None = None
    """Why there are no pixels."""

    def result(
        self,
        where: str | None,
        now: float,
        scores: FloatArray | None = None,
        label: int | None = None,
        class_name: str | None = None,
    ) -> Result:
        """What came of it."""
        return Result(
            index=self.index,
            name=self.name,
            label=label,
            class_name=class_name,
            scores=scores,
            where=where,
            latency_s=now - self.came,
            error=self.error,
        )


@dataclass(frozen=True)
class Batch:
    """Some images."""

    items: list[Item]
    pixels: Pixels
    """Of those that could be read: uint8 [n, height, width, channels]."""


async def batches_of(
    images: Any, by: Preprocessing, size: int, linger_s: float
) -> AsyncGenerator[Batch]:
    """Images in batches of `size`, or of those that have come when the first has waited enough.

    An ordinary iterable is read in a thread of its own, a few batches ahead.
    """
    inbox = _Inbox(size, AHEAD * size)
    reading: asyncio.Task[None] | None = None
    if hasattr(images, "__aiter__"):
        reading = asyncio.ensure_future(inbox.read_async(images, by))
    else:
        threading.Thread(target=inbox.read, args=(images, by), name="source", daemon=True).start()
    try:
        while items := await inbox.take(linger_s):
            yield _together(items, by)
    finally:
        inbox.stop()
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _together(items: list[Item], by: Preprocessing) -> Batch:
    found = [item.pixels for item in items if item.pixels is not None]
    empty = np.zeros((0, by.height, by.width, by.channels), np.uint8)
    return Batch(items, np.stack(found) if found else empty)


class _Inbox:
    """Where a source puts images, and an event loop takes batches.

    The loop is woken by a batch's first image and by its last, not by each.
    """

    def __init__(self, size: int, room: int) -> None:
        self._size, self._room = size, room
        self._loop = asyncio.get_running_loop()
        self._changed, self._taken = asyncio.Event(), asyncio.Event()
        self._lock = threading.Condition()
        self._items: deque[Item] = deque()
        self._ended = self._stopped = False
        self._error: Exception | None = None

    def read(self, images: Any, by: Preprocessing) -> None:
        """Put in all images, in a thread that may wait."""
        try:
            for index, image in enumerate(images):
                item = _read(index, image, by)
                with self._lock:
                    self._lock.wait_for(lambda: len(self._items) < self._room or self._stopped)
                    if self._stopped:
                        return
                    wakes = self._add(item)
                if wakes:
                    self._wake()
        except Exception as error:
            self._error = error
        self._ended = True
        self._wake()

    async def read_async(self, images: Any, by: Preprocessing) -> None:
        """Put in all images of an async iterable; those that need work are read in a thread."""
        index = 0
        try:
            async for image in images:
                if isinstance(image, np.ndarray):
                    item = _read(index, image, by)
                else:
                    item = await asyncio.to_thread(_read, index, image, by)
                with self._lock:
                    self._add(item)
                self._changed.set()
                index += 1
                while len(self._items) >= self._room:
                    self._taken.clear()
                    await self._taken.wait()
        except Exception as error:
            self._error = error
        self._ended = True
        self._changed.set()

    async def take(self, linger_s: float) -> list[Item]:
        """The next batch's images; none at the end. Raises what the source raised."""
        while True:
            self._changed.clear()
            with self._lock:
                waited_s = time.perf_counter() - self._items[0].came if self._items else 0.0
                is_due = len(self._items) >= self._size or waited_s >= linger_s or self._ended
                if self._items and is_due:
                    count = min(self._size, len(self._items))
                    taken = [self._items.popleft() for _ in range(count)]
                    self._lock.notify()
                    self._taken.set()
                    return taken
                left = linger_s - waited_s if self._items else None
            if self._ended and not self._items:
                if self._error is not None:
                    raise self._error
                return []
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def stop(self) -> None:
        """Nobody takes anything any more."""
        with self._lock:
            self._stopped = True
            self._lock.notify()

    def _add(self, item: Item) -> bool:
        """Whether the loop has to know."""
        self._items.append(item)
        return len(self._items) in (1, self._size)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants it any more
            self._loop.call_soon_threadsafe(self._changed.set)


def _read(index: int, image: Any, by: Preprocessing) -> Item:
    """An image's pixels, or why there are none."""
    came = time.perf_counter()
    pair = isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], str)
    name, picture = image if pair else ("", image)
    if not name:
        name = str(picture) if isinstance(picture, str | Path) else f"#{index}"
    try:  # whatever is wrong with a picture is its own result, and not the stream's end
        if isinstance(picture, str | Path):
            pixels = read_picture(Path(picture), by, name)
        elif isinstance(picture, bytes | bytearray | memoryview):
            pixels = read_picture(bytes(picture), by, name)
        elif isinstance(picture, Image.Image):
            pixels = fitted(picture, by)
        else:
            pixels = fitted_pixels(picture, by, name)
    except DataError as error:
        return Item(index=index, name=name, came=came, pixels=None, error=str(error))
    except Exception as error:  # Pillow promises no list of them
        why = f"{name} is no picture: {error}"
        return Item(index=index, name=name, came=came, pixels=None, error=why)
    return Item(index=index, name=name, came=came, pixels=pixels)

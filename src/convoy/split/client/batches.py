"""Images as they come, read and brought together in batches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Iterator
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


@dataclass(frozen=True, kw_only=True)
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
        where: str,
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
    """Images in batches of `size`, or of those that have come when the first has waited enough."""
    async with contextlib.aclosing(_items(images, by, AHEAD * size)) as coming:
        items: list[Item] = []
        ended = False
        following: asyncio.Task[Item] | None = None
        try:
            while not ended:
                following = following or asyncio.ensure_future(anext(coming))
                left = items[0].came + linger_s - time.perf_counter() if items else None
                if left is None or left > 0 or following.done():
                    await asyncio.wait({following}, timeout=left)
                if following.done():
                    try:
                        items.append(following.result())
                    except StopAsyncIteration:
                        ended = True
                    following = None
                    if len(items) < size and not ended:
                        continue
                if items:
                    yield _together(items, by)
                    items = []
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


def _together(items: list[Item], by: Preprocessing) -> Batch:
    found = [item.pixels for item in items if item.pixels is not None]
    empty = np.zeros((0, by.height, by.width, by.channels), np.uint8)
    return Batch(items, np.stack(found) if found else empty)


async def _items(images: Any, by: Preprocessing, room: int) -> AsyncGenerator[Item]:
    """Images as they come; an ordinary iterable is read in a thread of its own."""
    if hasattr(images, "__aiter__"):
        index = 0
        async for image in images:
            yield await asyncio.to_thread(_read, index, image, by)
            index += 1
        return
    loop, coming = asyncio.get_running_loop(), asyncio.Queue[Any]()
    places, stopped = threading.Semaphore(room), threading.Event()

    def hand_over(what: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants it any more
            loop.call_soon_threadsafe(coming.put_nowait, what)

    def read() -> None:
        try:
            for item in _read_all(images, by):
                places.acquire()
                if stopped.is_set():
                    return
                hand_over(item)
        except Exception as error:
            hand_over(error)
        else:
            hand_over(None)

    threading.Thread(target=read, name="source", daemon=True).start()
    try:
        while (item := await coming.get()) is not None:
            if isinstance(item, Exception):
                raise item
            places.release()
            yield item
    finally:
        stopped.set()
        places.release()


def _read_all(images: Any, by: Preprocessing) -> Iterator[Item]:
    for index, image in enumerate(images):
        yield _read(index, image, by)


def _read(index: int, image: Any, by: Preprocessing) -> Item:
    """An image's pixels, or why there are none."""
    came = time.perf_counter()
    name, picture = image if isinstance(image, tuple) else ("", image)
    if not name:
        name = str(picture) if isinstance(picture, str | Path) else f"#{index}"
    try:
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
    return Item(index=index, name=name, came=came, pixels=pixels)

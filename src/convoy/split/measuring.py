"""What a way takes when it is really gone: pipelined, or one batch after another.

    python -m convoy.split.measuring DIR --pictures FILE.npy --server grpc://HOST:PORT \\
        --way pool2/uint8 --batch-size 100 --mode pipelined --seconds 3

Prints a line of JSON. It runs on the edge machine of a lab, without torch and Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convoy.errors import LabError
from convoy.split.client import AsyncClient, Options, Result
from convoy.split.client.chooser import Chooser
from convoy.split.client.ways import Way
from convoy.split.costs import DEADLINE_S
from convoy.split.pictures import Pixels

MODES = ("pipelined", "synchronous")
PATIENCE_S = 60.0
"""A way may be slow: it is measured, not replaced."""
FIRST_BATCHES = 3
"""One after another, to know what a batch takes."""
LEAST_BATCHES = 8
ROOM = 8
"""How many batches' time the deadline leaves; half of it may be under way."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one way."""

    way: str
    batch_size: int
    mode: str
    images: int
    images_per_s: float
    latency_s: float
    """The median, from when a batch's first image was there to its result; synchronous only."""
    bytes_per_image: float
    fallbacks: int
    edge_s: float
    """A batch's seconds on the edge, as the client found them."""
    server_s: float | None
    bandwidth_bytes_s: float | None
    rtt_s: float | None


async def measure(client: AsyncClient, pictures: Pixels, mode: str, seconds: float) -> Measured:
    """Have a client with a forced way compute pictures, again and again.

    Batches that travel side by side arrive together, so that what comes between two results says
    little. All of a stream is counted: from its first image to its last result, and of N batches
    that overlap the N - 1 after the first, whose latency is known from when it was alone.

    Args:
        pictures: uint8 [n, height, width, channels].
        mode: `pipelined`, as many under way as there is room for; `synchronous`, a batch is sent
            once the one before has come back.
    """
    size, before = client.options.batch_size, client.summary.images
    first = await _gone(client, pictures, "synchronous", 0.0, FIRST_BATCHES)
    alone_s = float(np.median(first.latencies_s))
    stream = await _gone(client, pictures, mode, seconds, LEAST_BATCHES)
    whole_s, batches = stream.seconds, stream.images // size
    if mode == "pipelined":
        whole_s, batches = whole_s - alone_s, batches - 1
    way, meter, summary = _way(client), client.chooser.meter, client.summary
    return Measured(
        way=way.name,
        batch_size=size,
        mode=mode,
        images=stream.images,
        images_per_s=batches * size / whole_s,
        latency_s=float(np.median(stream.latencies_s)),
        bytes_per_image=summary.sent_bytes / (summary.images - before),
        fallbacks=summary.fallbacks,
        edge_s=way.edge_s(size, way.noted),
        server_s=way.server_s(size, way.noted),
        bandwidth_bytes_s=meter.bandwidth_bytes_s,
        rtt_s=meter.rtt_s,
    )


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """A number of whole batches, and what they took."""

    images: int
    seconds: float
    latencies_s: list[float]
    """Each batch's."""


async def _gone(
    client: AsyncClient, pictures: Pixels, mode: str, seconds: float, least: int
) -> _Stream:
    size = client.options.batch_size
    turn = asyncio.Event()
    turn.set()
    began = time.perf_counter()
    asked = 0

    async def feed() -> AsyncIterator[Any]:
        nonlocal asked
        endless = itertools.cycle(pictures)
        while time.perf_counter() < began + seconds or asked < least * size:
            if mode == "synchronous":
                await turn.wait()
                turn.clear()
            for _ in range(size):
                asked += 1
                yield next(endless)

    results: list[Result] = []
    async for result in client.stream(feed()):
        results.append(result)
        if len(results) % size == 0:
            turn.set()
    return _Stream(
        images=len(results),
        seconds=time.perf_counter() - began,
        latencies_s=[result.latency_s for result in results[::size]],
    )


def _way(client: AsyncClient) -> Way:
    chooser: Chooser = client.chooser
    return chooser.choose(time.perf_counter())


async def measure_way(
    folder: Path,
    server: str | None,
    way: str,
    pictures: Pixels,
    *,
    batch_size: int,
    mode: str,
    seconds: float,
    threads: int = 1,
) -> Measured:
    """One way, by a client of its own; pipelined with as short a queue as keeps all at work.

    Raises:
        ManifestError, ServerError, UnknownNameError: see AsyncClient.
        LabError: an image failed.
    """
    options = Options(
        way=way,
        batch_size=batch_size,
        deadline_s=PATIENCE_S,
        connect_s=PATIENCE_S,
        linger_s=PATIENCE_S,
        threads=threads,
        fallback=False,
    )
    if mode == "pipelined":
        async with AsyncClient(folder, server, options) as client:
            alone = await _gone(client, pictures, "synchronous", 0.0, FIRST_BATCHES)
        room_s = ROOM * float(np.median(alone.latencies_s))
        options = replace(options, deadline_s=min(PATIENCE_S, max(2 * DEADLINE_S, room_s)))
    async with AsyncClient(folder, server, options) as client:
        measured = await measure(client, pictures, mode, seconds)
        if client.summary.errors:
            raise LabError(f"{way} failed: {'; '.join(client.notices) or 'no word'}")
    return measured


def main() -> None:
    """Measure a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--server")
    parser.add_argument("--way", required=True)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--mode", choices=MODES, default="pipelined")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    given = vars(parser.parse_args())
    given["pictures"] = np.load(given["pictures"], allow_pickle=False)
    sys.stdout.write(json.dumps(vars(asyncio.run(measure_way(**given)))) + "\n")


if __name__ == "__main__":
    main()

"""What a way takes when it is really gone: pipelined, or one batch after another.

    python -m convoy.split.measuring DIR --pictures FILE.npy --server grpc://HOST:PORT \\
        --way pool2/uint8 --way edge --batch-size 100 --mode pipelined --seconds 3

Prints a line of JSON for each way. It runs on the edge machine of a lab, without torch and Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy.split.client import AsyncClient, Options, Result
from convoy.split.client.chooser import Chooser
from convoy.split.client.ways import Way
from convoy.split.pictures import Pixels

MODES = ("pipelined", "synchronous")
PATIENCE_S = 60.0
"""A way may be slow: it is measured, not replaced."""
WARM_PART = 0.25
"""Of the time, at the beginning, that does not count."""
LEAST_BATCHES = 8


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

    Args:
        pictures: uint8 [n, height, width, channels].
        mode: `pipelined`, as many under way as there is room for; `synchronous`, a batch is sent
            once the one before has come back.
    """
    size = client.options.batch_size
    turn = asyncio.Event()
    turn.set()
    ends = time.perf_counter() + seconds
    asked = 0

    async def feed() -> AsyncIterator[Any]:
        nonlocal asked
        endless = itertools.cycle(pictures)
        while time.perf_counter() < ends or asked < LEAST_BATCHES * size:
            if mode == "synchronous":
                await turn.wait()
                turn.clear()
            for _ in range(size):
                asked += 1
                yield next(endless)

    came: list[tuple[float, Result]] = []
    began = time.perf_counter()
    async for result in client.stream(feed()):
        came.append((time.perf_counter(), result))
        if len(came) % size == 0:
            turn.set()
    return _summed(client, came, began, mode)


def _summed(
    client: AsyncClient, came: list[tuple[float, Result]], began: float, mode: str
) -> Measured:
    """Whole batches after the warm part."""
    size = client.options.batch_size
    ends = [at for at, _ in came[size - 1 :: size]]
    warm_until = began + WARM_PART * (ends[-1] - began)
    first = next(n for n, at in enumerate(ends) if at >= warm_until or n >= len(ends) - 2)
    counted = ends[first:]
    latencies = [result.latency_s for _, result in came[(first + 1) * size - size :: size]]
    way, meter = _way(client), client.chooser.meter
    sent = client.summary.sent_bytes
    return Measured(
        way=way.name,
        batch_size=size,
        mode=mode,
        images=len(came),
        images_per_s=(len(counted) - 1) * size / (counted[-1] - counted[0]),
        latency_s=float(np.median(latencies)),
        bytes_per_image=sent / len(came),
        fallbacks=client.summary.fallbacks,
        edge_s=way.edge_s(size, way.noted),
        server_s=way.server_s(size, way.noted),
        bandwidth_bytes_s=meter.bandwidth_bytes_s,
        rtt_s=meter.rtt_s,
    )


def _way(client: AsyncClient) -> Way:
    chooser: Chooser = client.chooser
    return chooser.choose(time.perf_counter())


async def _run(options: argparse.Namespace) -> None:
    pictures = np.load(options.pictures, allow_pickle=False)
    for way in options.way:
        settings = Options(
            way=way,
            batch_size=options.batch_size,
            deadline_s=PATIENCE_S,
            connect_s=PATIENCE_S,
            linger_s=PATIENCE_S,
            threads=options.threads,
            fallback=False,
        )
        async with AsyncClient(options.folder, options.server, settings) as client:
            measured = await measure(client, pictures, options.mode, options.seconds)
            if client.summary.errors:
                raise SystemExit(f"{way} failed: {'; '.join(client.notices) or 'no word'}")
        sys.stdout.write(json.dumps(vars(measured)) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Measure ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--server")
    parser.add_argument("--way", action="append", required=True)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--mode", choices=MODES, default="pipelined")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()

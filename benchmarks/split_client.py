"""What the edge client takes itself, and what a request takes, beside networks and codecs.

    sudo python benchmarks/split_client.py [--images 20000]

`split_client`: a network of a few numbers, all on the edge. What is left of a batch's seconds when
the network's are taken off is the client's reading, queues, threads and results. A line through
batches of 1, 10 and 100 gives both figures (`CLIENT_BATCH_S`, `CLIENT_IMAGE_S` in
`convoy/split/costs.py`). `split_request`: cifar10-quick cut at pool1, one image a request, to
`convoy split serve` on another machine of a lab, over 1 Gbit/s. Networks and codecs
are timed by themselves beside each round, as the plan times them: what they take longer among
other work is a request's. Of requests that overlap, where the edge has most to do: what each takes,
less network, codec and the client by itself (`EDGE_REQUEST_S`); and the seconds that the server
computes for each, less its network and codec (`CLOUD_REQUEST_S`). Of one at a time: its latency,
less networks, codecs, what these take more after a pause, and the client by itself (`OVERHEAD_S`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.split import toy

from common import write
from convoy import lab
from convoy.api.splitting import export_split
from convoy.split.bench import EDGE, address_of, serve, world
from convoy.split.client import AsyncClient
from convoy.split.foreseen import candidates_of_folder
from convoy.split.manifest import load, read_samples

SIZES = (1, 10, 100)
ROUNDS = 5
REQUESTS = 2000
WAY = "pool1/uint8"


async def batch_s(folder: Path, size: int, images: int) -> tuple[float, float]:
    """Seconds of a batch in a stream, and those of the network in it."""
    async with AsyncClient(folder, None, batch_size=size) as client:
        pictures = itertools.islice(itertools.cycle(toy.pictures(64)), images)
        began = time.perf_counter()
        count = 0
        async for _ in client.stream(pictures):
            count += 1
        return (time.perf_counter() - began) * size / count, client.ways.edge.edge_s(
            size, time.perf_counter()
        )


def exported(folder: Path) -> Path:
    """cifar10-quick with first weights, cut at pool1."""
    run, out = folder / "run", folder / "exported"
    command = [sys.executable, "-m", "convoy", "train", "--network", "cifar10-quick"]
    command += ["--data", "synthetic:3x32x32:10:400", "--steps", "1", "--strategy", "single"]
    subprocess.run([*command, "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
    export_split(run, ["pool1"], out, accuracy=False)
    return out


async def requests(folder: Path, server: str, pid: int) -> dict[str, float]:
    """Milliseconds of a request: edge's, client's, server's, and of one by itself."""
    process = psutil.Process(pid)
    client = AsyncClient(folder, server, way=WAY, deadline_s=30)
    pictures = itertools.cycle(read_samples(folder, client.ways.manifest))  # type: ignore[arg-type]
    turn = asyncio.Event()

    async def one_at_a_time() -> AsyncIterator[Any]:
        for picture in itertools.islice(pictures, REQUESTS):
            yield picture
            await turn.wait()
            turn.clear()

    def spent() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), sum(process.cpu_times()[:2])

    async with client:
        async for _ in client.stream(itertools.islice(pictures, 200)):
            pass
        before = spent()
        async for _ in client.stream(itertools.islice(pictures, REQUESTS)):
            pass
        whole, here, there = (b - a for a, b in zip(before, spent(), strict=True))
        latencies = []
        async for result in client.stream(one_at_a_time()):
            latencies.append(result.latency_s)
            turn.set()
    return {
        "edge": 1000 * whole / REQUESTS,
        "client": 1000 * here / REQUESTS,
        "server": 1000 * there / REQUESTS,
        "one by itself": 1000 * statistics.median(latencies),
    }


def request_row(folder: Path, client_ms: float) -> dict[str, float]:
    """Medians of some rounds."""
    rounds = []
    with lab.emulated(world(1.0, 1e9), f"r{os.getpid() % 10**6}", ray=False) as inside:
        server = serve(inside, folder)
        command = [sys.executable, __file__, "--requests", str(folder)]
        command += ["--server", address_of(server), "--server-pid", str(server.pid)]
        for _ in range(ROUNDS):
            before = alone(folder)
            asking = inside.start(EDGE, command, stdout=subprocess.PIPE, text=True)
            whole = json.loads(asking.communicate()[0])
            pairs = zip(before, alone(folder), strict=True)
            edge_ms, cloud_ms, rest_ms = (500 * (a + b) for a, b in pairs)
            rounds.append(
                {
                    "the edge takes, ms": whole["edge"] - edge_ms - client_ms,
                    "of it the client computes, ms": whole["client"] - edge_ms - client_ms,
                    "the cloud computes, ms": whole["server"] - cloud_ms,
                    "of one by itself, ms": whole["one by itself"]
                    - edge_ms
                    - cloud_ms
                    - rest_ms
                    - client_ms,
                    "networks more after a pause, ms": rest_ms,
                }
            )
        server.terminate()
        server.wait()
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def alone(folder: Path) -> tuple[float, float, float]:
    """Seconds of the edge's network and codec, of the cloud's, and of both more after a pause."""
    pictures = read_samples(folder, load(folder))
    assert pictures is not None
    (found,) = candidates_of_folder(folder, pictures, 1, [WAY])
    return found.edge_s(1), found.cloud_s(1), found.edge_rest_s + found.cloud_rest_s


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--requests", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--server-pid", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.requests:  # this is the edge of the lab
        asked = (options.requests, options.server, options.server_pid)
        print(json.dumps(asyncio.run(requests(*asked))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toy.export(folder)
        for size in SIZES:
            images = max(20 * size, options.images * size // (size + 9))
            found = [asyncio.run(batch_s(folder, size, images)) for _ in range(ROUNDS)]
            whole, network = (statistics.median(part) for part in zip(*found, strict=True))
            rows.append(
                {
                    "batch size": size,
                    "a batch, ms": 1000 * whole,
                    "of it the network, ms": 1000 * network,
                    "the client, ms": 1000 * (whole - network),
                }
            )
    by_image, by_batch = np.polyfit(SIZES, [row["the client, ms"] for row in rows], 1)
    about = (
        f"The edge client's own time: {by_batch:.3f} ms for a batch and {1000 * by_image:.1f} "
        "microseconds for an image."
    )
    write("split_client", rows, about=about)
    with tempfile.TemporaryDirectory() as name:
        row = request_row(exported(Path(name)), by_batch + by_image)
    about = f"Milliseconds of a request of one image, {WAY}, between machines of a lab."
    write("split_request", [row], about=about)


if __name__ == "__main__":
    main()

"""A stream of pictures through the edge client, at a pace; what came of each goes into a file.

    python benchmarks/split_stream.py DIR --pictures FILE.npy --server grpc://HOST:PORT --out FILE
                                      [--images 10000] [--pace 40] [--seconds S] [--batch-size 1]

Runs on the edge machine of a lab; `split_faults.py` starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from convoy.split.client import AsyncClient


async def run(options: argparse.Namespace) -> None:
    """Lines of time, index, label and where; at the end the client's summary."""
    pictures = np.load(options.pictures, allow_pickle=False)
    began = time.monotonic()

    async def feed() -> AsyncIterator[Any]:
        for number, picture in enumerate(itertools.cycle(pictures)):
            if number >= options.images or time.monotonic() - began > options.seconds:
                return
            if options.pace:
                due = began + number / options.pace
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield picture

    chosen = {"way": options.way} if options.way else {}
    async with AsyncClient(
        options.folder,
        options.server,
        batch_size=options.batch_size,
        objective=options.objective,
        deadline_s=options.deadline,
        **chosen,
    ) as client:
        began = time.monotonic()
        with Path(options.out).open("w") as out:
            async for result in client.stream(feed()):
                row = [time.monotonic() - began, result.index, result.label, result.where]
                out.write(json.dumps([*row, result.latency_s]) + "\n")
                if result.index % 50 == 0:
                    out.flush()
            summary = client.summary.as_json() | {"notices": list(client.notices)}
            out.write(json.dumps(summary) + "\n")


def main() -> None:
    """Stream."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument(
        "--pace", type=float, default=0.0, help="images per second; 0: all there is"
    )
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--objective", default="throughput")
    parser.add_argument("--deadline", type=float, default=0.4)
    parser.add_argument("--way")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()

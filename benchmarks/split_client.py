"""What the edge client takes itself, beside networks and codecs: by batch and by image.

    python benchmarks/split_client.py [--images 20000]

A network of a few numbers, all on the edge: what is left of a batch's seconds when the network's
are taken off is the client's reading, queues, threads and results. A line through batches of 1, 10
and 100 gives both figures (`CLIENT_BATCH_S` and `CLIENT_IMAGE_S` in `convoy/split/costs.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.split import toy

from common import write
from convoy.split.client import AsyncClient

SIZES = (1, 10, 100)
ROUNDS = 5


async def batch_s(folder: Path, size: int, images: int) -> tuple[float, float]:
    """Seconds of a batch in a stream, and those of the network in it."""
    async with AsyncClient(folder, None, batch_size=size) as client:
        pictures = itertools.islice(itertools.cycle(toy.pictures(64)), images)
        began = time.perf_counter()
        count = 0
        async for _ in client.stream(pictures):
            count += 1
        return (time.perf_counter() - began) * size / count, client.ways.edge.edge_s


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()

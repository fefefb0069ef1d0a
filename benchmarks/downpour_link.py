"""The two ends of `downpour.py link`: a shard of 25 million parameters, and a replica of it.

python downpour_link.py serve ADDRESS        prints where it listens, then what pushes cost
python downpour_link.py exchange ENDPOINT    pushes and fetches, and prints the rates
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from convoy.runtime.servers.client import ShardClient
from convoy.runtime.servers.messages import Whereabouts
from convoy.runtime.servers.shard import Shard, ShardOrders, ShardState
from convoy.runtime.settings import TrainSettings
from convoy.strategies.parameter_shards import divide
from convoy.strategies.push_codec import parse_wire
from convoy.strategies.server import Push, ServerTerms

ELEMENTS, ROUNDS, SESSION = 25_000_000, 8, "link"
LINK_BYTES_S = 125e6
TERMS = ServerTerms(
    bound=None,
    staleness_scaled=False,
    depth=0,
    deepens=False,
    wire=parse_wire("fp32"),
    window=1,
    warm_start=0,
    snapshot_s=30,
)


def one_pass_s(tensor: torch.Tensor) -> float:
    """Seconds to read one tensor, add another and write it back: the least a push may cost."""
    other, times = torch.ones_like(tensor), []
    for _ in range(7):
        started = time.perf_counter()
        tensor.add_(other)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def serve(address: str) -> None:
    """Be a shard until as many pushes have come as the other end sends."""
    shard = Shard()
    orders = ShardOrders(
        index=0,
        session=SESSION,
        address=address,
        settings=TrainSettings(strategy="downpour"),
        terms=TERMS,
        state=ShardState(version=0, weights=torch.zeros(ELEMENTS)),
    )
    print(await shard.load(orders), flush=True)
    while (facts := await shard.facts())["pushes"] < ROUNDS + 1:
        await asyncio.sleep(0.05)
    await asyncio.sleep(3)  # the last answer is on its way
    floor = one_pass_s(torch.zeros(ELEMENTS))
    each = facts["apply_s"] / facts["pushes"]
    print(
        json.dumps(
            {
                "a push applied (Adagrad), s": each,
                "one pass over as much memory, s": floor,
                "a push in passes": each / floor,
            }
        )
    )


def timed(work: Callable[[], None]) -> float:
    """Median seconds of `ROUNDS` goes."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def exchange(endpoint: str) -> None:
    """Be a replica."""
    torch.set_num_threads(1)
    model = nn.Linear(5000, 5000, bias=False)
    assert model.weight.numel() == ELEMENTS
    pieces = divide({"weight": tuple(model.weight.shape)}, 1)
    where = Whereabouts(endpoints=(endpoint,), incarnations=(0,), homes=(0,))
    client = ShardClient(
        replica=0,
        session=SESSION,
        look_up=lambda: where,
        where=where,
        pieces=pieces,
        wire=TERMS.wire,
        model=model,
        depth=0,
    )
    gradients = {"weight": torch.full_like(model.weight, 1e-3)}

    def both() -> None:
        client.exchange(Push(gradients=gradients, samples=1, lr=0.01), fetch=True)
        client.settle()

    client.fetch()
    both()  # the first of each finds nothing warm
    size = 4 * ELEMENTS
    fetch_s, both_s = timed(client.fetch), timed(both)
    client.close()
    print(
        json.dumps(
            {
                "MB": size / 1e6,
                "fetch, s": fetch_s,
                "fetch, of the link's rate": size / fetch_s / LINK_BYTES_S,
                "push and fetch, s": both_s,
                "push and fetch, of the link's rate": 2 * size / both_s / LINK_BYTES_S,
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2]))
    else:
        exchange(sys.argv[2])

"""Which requests are computed together, and that it makes no difference to them."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convoy.split.server import batching
from convoy.split.server.batching import AT_ONCE_S, Batcher
from convoy.split.server.refusals import RefusedError, Status

FOREVER_S = 3600.0


class Network:
    """Doubles; notes its batches; can be held back."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: list[int] = []
        self.opened = threading.Event()
        self.opened.set()

    def __call__(self, rows: Any) -> Any:
        assert self.opened.wait(60)
        self.batches.append(len(rows))
        self.threads.append(threading.get_ident())
        if (rows == 13).any():
            raise RuntimeError("it cannot compute thirteen")
        return 2 * rows if not (rows == 14).any() else np.where(rows == 14, np.inf, 2 * rows)


def batched(
    play: Callable[[Batcher, Network], Awaitable[Any]], *, max_batch: int = 4, window_s: float = 0
) -> tuple[Any, list[int]]:
    """What a play comes to, and the batches that there were."""

    async def run() -> Any:
        batcher = Batcher(network, pool, max_batch=max_batch, window_s=window_s)
        return await asyncio.wait_for(play(batcher, network), 60)

    network = Network()
    with ThreadPoolExecutor(2) as pool:
        return asyncio.run(run()), network.batches


def rows(*values: float) -> Any:
    return np.asarray(values, np.float32)[:, None]


def all_of(*parts: Any) -> Callable[[Batcher, Network], Awaitable[Any]]:
    async def play(batcher: Batcher, network: Network) -> Any:
        return await asyncio.gather(*map(batcher, parts), return_exceptions=True)

    return play


def test_a_full_batch_does_not_wait() -> None:
    results, batches = batched(all_of(rows(1), rows(2, 3), rows(4)), window_s=FOREVER_S)
    assert batches == [4]
    assert [r.rows[:, 0].tolist() for r in results] == [[2], [4, 6], [8]]


def test_without_a_window_the_first_does_not_wait_and_the_rest_are_the_next_batch() -> None:
    _, batches = batched(all_of(rows(1), rows(2), rows(3)))
    assert batches == [1, 2]


def test_a_window_ends() -> None:
    results, batches = batched(all_of(rows(1), rows(2)), window_s=0.01)
    assert batches == [2]
    assert all(r.queue_s >= 0.005 for r in results)


def test_who_does_not_fit_begins_the_next_batch() -> None:
    async def play(batcher: Batcher, network: Network) -> None:
        waiting = asyncio.gather(*(batcher(part) for part in (rows(1, 2, 3), rows(4, 5))))
        await asyncio.sleep(0)
        batcher.hurry()
        await waiting

    assert batched(play, window_s=FOREVER_S)[1] == [3, 2]


def test_a_request_of_more_than_a_batch_is_computed_alone_in_parts() -> None:
    async def play(batcher: Batcher, network: Network) -> Any:
        network.opened.clear()
        asked = [asyncio.ensure_future(batcher(part)) for part in (rows(1), rows(*range(10)))]
        await asyncio.sleep(0)
        network.opened.set()
        return await asyncio.gather(*asked)

    results, batches = batched(play)
    assert batches == [1, 4, 4, 2]
    assert results[1].rows[:, 0].tolist() == [2 * n for n in range(10)]


def test_hurrying_ends_a_window() -> None:
    async def play(batcher: Batcher, network: Network) -> Any:
        asked = asyncio.ensure_future(batcher(rows(1)))
        await asyncio.sleep(0)
        batcher.hurry()
        return await asked

    result, batches = batched(play, window_s=FOREVER_S)
    assert batches == [1]
    assert result.rows.tolist() == [[2]]


def test_whoever_cannot_be_computed_fails_alone() -> None:
    results, _ = batched(all_of(rows(1), rows(13), rows(2), rows(14)), window_s=FOREVER_S)
    assert results[0].rows.tolist() == [[2]]
    assert isinstance(results[1], RuntimeError)
    assert results[2].rows.tolist() == [[4]]
    assert results[3].status is Status.INVALID_ARGUMENT


def test_answers_that_are_not_finite_are_refused_alone() -> None:
    results, batches = batched(all_of(rows(1, 2), rows(14, 3)), window_s=FOREVER_S)
    assert batches == [4]
    assert results[0].rows.tolist() == [[2], [4]]
    assert isinstance(results[1], RefusedError)


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def play(batcher: Batcher, network: Network) -> Any:
        asked = [
            asyncio.ensure_future(batcher(rows(1), lambda: False)),
            asyncio.ensure_future(batcher(rows(2))),
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    results, batches = batched(play, max_batch=2, window_s=FOREVER_S)
    assert batches == [1]
    assert results[0].status is Status.CANCELLED
    assert results[1].rows.tolist() == [[4]]


@pytest.mark.parametrize("seed", range(5))
def test_many_requests_of_many_sizes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    parts = [draw.normal(size=(n, 1)).astype(np.float32) for n in draw.integers(1, 9, 50)]
    results, batches = batched(all_of(*parts), window_s=0.001)
    for part, result in zip(parts, results, strict=True):
        assert np.array_equal(result.rows, 2 * part)
    assert max(batches) <= 4
    assert sum(batches) == sum(map(len, parts))


def test_what_is_quick_is_computed_at_once_and_what_is_not_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count()  # a clock by which nothing takes long, however busy the machine is
    monkeypatch.setattr(batching, "perf_counter", lambda: next(ticks) * 1e-6)

    async def play(batcher: Batcher, network: Network) -> Any:
        here = threading.get_ident()
        for _ in range(3):
            await batcher(rows(1))
        where = [thread == here for thread in network.threads]
        batcher._image_s = AT_ONCE_S / 2
        await batcher(rows(1, 2, 3))
        return [*where, network.threads[-1] == here]

    found, _ = batched(play)
    assert found == [False, True, True, False]  # of the first nothing is known


def test_many_that_wait_and_take_no_time_are_all_computed() -> None:
    async def play(batcher: Batcher, network: Network) -> Any:
        one = np.ones((1, 1), np.float32)
        await batcher(one)  # from now on it is known to take no time
        network.opened.clear()
        batcher._image_s = 1.0
        held = asyncio.ensure_future(batcher(one))
        await asyncio.sleep(0.1)
        others = [asyncio.ensure_future(batcher(one)) for _ in range(3000)]
        await asyncio.sleep(0)
        network.opened.set()
        return await asyncio.gather(held, *others)

    found, _ = batched(play, max_batch=1)
    assert len(found) == 3001
    assert all(computed.rows.tolist() == [[2.0]] for computed in found)

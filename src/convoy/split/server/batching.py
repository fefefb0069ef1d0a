"""Requests for one model that arrive together are computed together.

    arrivals   a──b───────c──d──e─────────
    window     ├────────┤                      the first waits no longer than this
    computing           [a b c][d e]           what comes meanwhile is the next batch

An image's answer is computed by the same operations whatever is beside it; only the last bits
of it may differ with the size of a batch, as a matrix product's order of sums does.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from convoy.split.codecs import FloatArray
from convoy.split.server.refusals import RefusedError, Status, invalid

Run = Callable[[FloatArray], FloatArray]
AT_ONCE_S = 3e-4
"""A batch that takes less is computed on the loop: a thread would take longer to be woken."""
ALONE_S = 3e-3
"""So is one that takes less than this, where requests come one at a time: nobody has to wait."""


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A request's rows, and what they took."""

    rows: FloatArray
    queue_s: float
    computing_s: float
    """Of the whole batch."""
    together: int
    """Images in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Waiting:
    """A request whose batch has not begun."""

    rows: FloatArray
    since: float
    future: asyncio.Future[Computed]
    is_wanted: Callable[[], bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a thread made of a batch: an answer, or what went wrong, for each."""

    results: list[FloatArray | Exception]
    began: float
    seconds: float


class Batcher:
    """One model's queue. It belongs to an event loop, and computes in threads, one batch at a time.

    Args:
        run: float32 [n, ...] of float32 [n, ...].
        max_batch: images. A request with more is computed alone, in parts of that size.
        window_s: how long the first request of a batch may wait for others; 0 for not at all.
        observe: told the images of each batch.
    """

    def __init__(
        self,
        run: Run,
        pool: Executor,
        *,
        max_batch: int,
        window_s: float,
        observe: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.run, self.pool = run, pool
        self.max_batch, self.window_s, self.observe = max_batch, window_s, observe
        self._waiting: deque[Waiting] = deque()
        self._images = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_running = False
        self._ended = 0.0
        """When the last batch had been computed."""
        self._image_s = math.inf
        """What the last batch took for each image; nothing is known of the first."""

    async def __call__(
        self, rows: FloatArray, is_wanted: Callable[[], bool] = lambda: True
    ) -> Computed:
        """The model's answer to `rows`.

        Args:
            is_wanted: asked before computing; where it says no, nothing is computed.

        Raises:
            RefusedError: the answer is not finite, or was not wanted any more.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(
            Waiting(rows=rows, since=perf_counter(), future=future, is_wanted=is_wanted)
        )
        self._images += len(rows)
        self._consider()
        computed: Computed = await future
        return computed

    def hurry(self) -> None:
        """Wait for no others from now on."""
        self.window_s = 0
        self._consider()

    def _consider(self) -> None:
        """Begin a batch, or have another look once the first request's time is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_running or not self._waiting:
            return
        left_s = self._waiting[0].since + self.window_s - perf_counter()
        loop = asyncio.get_running_loop()
        if self._images < self.max_batch and self.window_s > 0 and left_s > 0:
            self._timer = loop.call_later(left_s, self._consider)
            return
        batch = self._take()
        if not batch:
            return
        takes_s = sum(len(one.rows) for one in batch) * self._image_s
        is_alone = len(batch) == 1 and perf_counter() > self._ended + takes_s
        if takes_s < (ALONE_S if is_alone else AT_ONCE_S):
            self._hand_over(batch, self._compute(batch))
            loop.call_soon(self._consider)  # others have a turn first
            return
        self._is_running = True
        done = loop.run_in_executor(self.pool, self._compute, batch)
        done.add_done_callback(lambda done: self._deliver(batch, done))

    def _take(self) -> list[Waiting]:
        """The next batch, in order of arrival."""
        batch: list[Waiting] = []
        images = 0
        while self._waiting and (
            not images or images + len(self._waiting[0].rows) <= self.max_batch
        ):
            first = self._waiting.popleft()
            self._images -= len(first.rows)
            if first.future.done():  # given up
                continue
            if first.is_wanted():
                batch.append(first)
                images += len(first.rows)
            else:
                gone = RefusedError(Status.CANCELLED, "the client did not wait for the answer")
                first.future.set_exception(gone)
        return batch

    def _compute(self, batch: Sequence[Waiting]) -> Outcome:
        """In a thread."""
        began = perf_counter()
        results = self._results(batch)
        return Outcome(results=results, began=began, seconds=perf_counter() - began)

    def _results(self, batch: Sequence[Waiting]) -> list[FloatArray | Exception]:
        """An answer, or what went wrong, for each."""
        if len(batch) == 1:
            return [self._alone(batch[0].rows)]
        try:
            together = self.run(np.concatenate([one.rows for one in batch]))
        except Exception:  # whose fault it is shows when each is computed alone
            return [self._alone(one.rows) for one in batch]
        self.observe(len(together))
        ends = np.cumsum([len(one.rows) for one in batch])[:-1]
        return [_finite(rows) for rows in np.split(together, ends)]

    def _alone(self, rows: FloatArray) -> FloatArray | Exception:
        try:
            parts = []
            for at in range(0, len(rows), self.max_batch):
                part = rows[at : at + self.max_batch]
                self.observe(len(part))
                parts.append(self.run(part))
            return _finite(parts[0] if len(parts) == 1 else np.concatenate(parts))
        except Exception as error:
            return error

    def _deliver(self, batch: Sequence[Waiting], done: asyncio.Future[Outcome]) -> None:
        self._is_running = False
        if not done.cancelled():  # otherwise the server has ended, and nobody waits
            self._hand_over(batch, done.result())
            self._consider()

    def _hand_over(self, batch: Sequence[Waiting], outcome: Outcome) -> None:
        images = sum(len(one.rows) for one in batch)
        self._image_s = outcome.seconds / images
        self._ended = outcome.began + outcome.seconds
        for one, result in zip(batch, outcome.results, strict=True):
            if one.future.done():
                continue
            if isinstance(result, Exception):
                one.future.set_exception(result)
            else:
                queue_s, computing_s = outcome.began - one.since, outcome.seconds
                one.future.set_result(
                    Computed(rows=result, queue_s=queue_s, computing_s=computing_s, together=images)
                )


def _finite(rows: FloatArray) -> FloatArray | Exception:
    if np.isfinite(rows).all():
        return rows
    return invalid("the network's answer to this input is not finite: its numbers are too large")

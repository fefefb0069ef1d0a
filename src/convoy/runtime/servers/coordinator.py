"""The actor that leases steps to replicas, and knows where the shards are.

A replica asks for a lease, does its steps, says so, and asks again. Leases are as long as about a
second of work, so that asking costs nothing, and become shorter as the end draws near, so that all
end together (guided self-scheduling; Polychronopoulos & Kuck 1987).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from convoy.runtime.servers.leases import Leases
from convoy.runtime.servers.messages import Whereabouts

LEASE_S = 1.0
"""How long the work of one lease takes, about."""
MOST_STEPS = 64
FAST_ENOUGH = 0.5
"""Of the fastest replica's speed: who judges the network in the middle of a run."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What a replica is to do next."""

    steps: tuple[int, ...] = ()
    evaluates: int | None = None
    """Judge the network, as after this step."""
    ends: bool = False
    """Nothing is left, or the run is to stop."""
    alone: bool = False
    """Whether no other replica is at work."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the coordinator is told of a run."""

    first_step: int
    done: tuple[int, ...]
    num_steps: int
    steps_per_epoch: int
    window: int
    """Steps between pushes or fetches: leases are whole numbers of these."""
    warm_start: int
    """Steps that one replica does alone before the others begin."""
    in_turn: bool
    """Whether a lease is one window, since somebody waits for every push."""


class Coordinator:
    """An async actor: its methods run one at a time, and those that wait let others in.

    Made by a pool, for one run after another.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()

    async def begin(self, assignment: Assignment) -> None:
        """A run begins."""
        self._of = assignment
        self._leases = Leases(assignment.first_step, assignment.num_steps, assignment.done)
        self._active: set[int] = set()
        self._waiting: set[int] = set()
        self._seconds: dict[int, float] = {}
        """By replica: what a step takes it."""
        self._to_judge: int | None = None
        self._judging: dict[int, int] = {}
        self._judged_up_to = self._epochs_done()
        self._stopped = False
        self._shards: Whereabouts | None = None

    async def set_shards(self, where: Whereabouts) -> None:
        """Where the shards are now."""
        self._shards = where

    async def shards(self) -> Whereabouts | None:
        """Where the shards are, once that is known."""
        return self._shards

    async def join(self, replica: int) -> None:
        """`replica` is at work from now on."""
        async with self._changed:
            self._active.add(replica)
            self._changed.notify_all()

    async def lease(self, replica: int) -> Lease | None:
        """What `replica` is to do next; None if there is nothing now, but may be later."""
        return self._offer(replica)

    async def wait_for_lease(self, replica: int) -> Lease:
        """As `lease`, but waits until there is something."""
        offer: Lease | None = None
        async with self._changed:
            self._waiting.add(replica)
            while offer is None:
                offer = self._offer(replica)
                if offer is None:
                    await self._changed.wait()
            self._waiting.discard(replica)
        return offer

    async def at_work(self) -> tuple[int, ...]:
        """Replicas that are not waiting for something to do."""
        return tuple(sorted(self._active - self._waiting))

    async def done(self, replica: int, steps: Sequence[int], seconds: float) -> None:
        """`replica` has done these steps, which took it so long in all."""
        async with self._changed:
            self._leases.done(replica, steps)
            if steps:
                each, before = seconds / len(steps), self._seconds.get(replica)
                self._seconds[replica] = each if before is None else 0.7 * before + 0.3 * each
            epochs = self._epochs_done()
            if epochs > self._judged_up_to and not self._leases.finished:
                self._judged_up_to = epochs
                self._to_judge = epochs * self._of.steps_per_epoch - 1
            self._changed.notify_all()

    async def judged(self, replica: int) -> None:
        """`replica` has judged the network."""
        async with self._changed:
            self._judging.pop(replica, None)
            self._changed.notify_all()

    async def forget(self, replica: int) -> tuple[int, ...]:
        """`replica` is gone; returns the steps that are leased again."""
        async with self._changed:
            self._active.discard(replica)
            self._waiting.discard(replica)
            self._seconds.pop(replica, None)
            if replica in self._judging and self._to_judge is None:
                self._to_judge = self._judging.pop(replica)
            back = self._leases.forget(replica)
            self._changed.notify_all()
            return back

    async def stop(self) -> None:
        """Lease nothing more."""
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()

    async def progress(self) -> tuple[int, tuple[int, ...]]:
        """All steps before the first figure are done; and those beyond it that are done too."""
        return self._leases.low, self._leases.beyond

    async def speeds(self) -> dict[int, float]:
        """Steps per second, by replica."""
        return {replica: 1 / s for replica, s in self._seconds.items() if s > 0}

    def _offer(self, replica: int) -> Lease | None:
        if self._stopped or self._leases.finished or replica not in self._active:
            self._active.discard(replica)  # one that is forgotten may still ask, and gets nothing
            return Lease(ends=True)
        warm = self._of.first_step + self._of.warm_start - self._leases.low
        if warm > 0 and replica != min(self._active, default=replica):
            return None
        alone = warm > 0 or len(self._active) == 1
        if self._to_judge is not None and self._is_fast(replica):
            step, self._to_judge = self._to_judge, None
            self._judging[replica] = step
            return Lease(evaluates=step, alone=alone)
        end = self._of.first_step + self._of.warm_start if warm > 0 else None
        steps = self._leases.take(replica, self._count(replica), end)
        return Lease(steps=steps, alone=alone) if steps else None

    def _count(self, replica: int) -> int:
        """How many steps to lease."""
        window = self._of.window
        if self._of.in_turn or replica not in self._seconds:
            return window
        wanted = int(LEASE_S / self._seconds[replica]) if self._seconds[replica] > 0 else MOST_STEPS
        fair = self._leases.left // (2 * max(1, len(self._active)))
        return max(1, min(wanted, fair, MOST_STEPS) // window) * window

    def _is_fast(self, replica: int) -> bool:
        known = [s for r, s in self._seconds.items() if r in self._active]
        own = self._seconds.get(replica, math.inf)
        return not known or own <= min(known) / FAST_ENOUGH

    def _epochs_done(self) -> int:
        return self._leases.low // self._of.steps_per_epoch

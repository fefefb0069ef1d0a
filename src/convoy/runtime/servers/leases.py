"""Who does which steps of the global order: each at least once, and once if nobody dies.

steps   0 1 2 3 4 5 6 7 8 9 ...
        ├─ done ─┤ a b a ·  ·        a, b: leased; ·: not yet
                 └ low: all steps before it are done
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class Leases:
    """The steps of a run, from `first` on, and what has become of them."""

    def __init__(self, first: int, num_steps: int, done: Iterable[int] = ()) -> None:
        self.low = first
        """All steps before it are done."""
        self._next, self._num_steps = first, num_steps
        self._done = set(done)
        self._out: dict[int, set[int]] = {}
        self._returned: list[int] = []
        self._advance()

    def take(self, replica: int, count: int, before: int | None = None) -> tuple[int, ...]:
        """Lease up to `count` steps to `replica`, the earliest there are; () if none is left.

        Args:
            before: no step from this one on that nobody has had yet.
        """
        end = self._num_steps if before is None else min(self._num_steps, before)
        taken: list[int] = []
        while len(taken) < count:
            if self._returned:
                taken.append(heapq.heappop(self._returned))
            elif self._next < end:
                if self._next not in self._done:
                    taken.append(self._next)
                self._next += 1
            else:
                break
        self._out.setdefault(replica, set()).update(taken)
        return tuple(taken)

    def done(self, replica: int, steps: Iterable[int]) -> None:
        """`replica` has done these of its steps, and all servers have what came of them."""
        out = self._out.get(replica, set())
        for step in steps:
            out.discard(step)
            if step >= self.low:
                self._done.add(step)
        self._advance()

    def forget(self, replica: int) -> tuple[int, ...]:
        """`replica` is gone: what it had is leased again; returns these steps."""
        back = sorted(step for step in self._out.pop(replica, ()) if not self.is_done(step))
        for step in back:
            heapq.heappush(self._returned, step)
        return tuple(back)

    def is_done(self, step: int) -> bool:
        """Whether `step` is done."""
        return step < self.low or step in self._done

    @property
    def beyond(self) -> tuple[int, ...]:
        """Steps that are done, past one that is not."""
        return tuple(sorted(self._done))

    @property
    def next(self) -> int:
        """The first step that nobody has had."""
        return self._next

    @property
    def left(self) -> int:
        """Steps that nobody has or has had."""
        before = sum(step >= self._next for step in self._done)  # by a run that this one goes on
        return max(0, self._num_steps - self._next) - before + len(self._returned)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.low >= self._num_steps

    def _advance(self) -> None:
        while self.low in self._done:
            self._done.discard(self.low)
            self.low += 1
        self._next = max(self._next, self.low)

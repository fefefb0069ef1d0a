"""How fast machines are just now, and which server should leave one that has become slow.

A server on a slow machine keeps every replica waiting, as nothing else in asynchronous training
does.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

BASELINE = 5
"""Steps that say how fast a machine usually is, and"""
REMEMBERED = 50
"""of how many the middle one does."""
SLOWER = 3.0
"""By how much a step has to be slower than usual, two in a row, or"""
MUCH_SLOWER = 5.0
"""by how much a single one: slow machines take long to do two."""
WORTH_MOVING = 2.0
"""By how much the machine that a server goes to is faster."""
REST_S = 20.0
"""For so long a server that has moved stays where it is."""


class Paces:
    """Of machines, by the rank that each has."""

    def __init__(self, team: int = 1) -> None:
        """Where `team` ranks that follow one another are one replica, each with a part of its own:
        only those with the same part are compared."""
        self._team = team
        self._steps: dict[int, deque[float]] = {}
        self._moved: dict[int, float] = {}

    def note(self, rank: int, compute_s: float) -> None:
        """A rank has computed a step in so long."""
        self._steps.setdefault(rank, deque(maxlen=REMEMBERED)).append(compute_s)

    def forget(self, rank: int) -> None:
        """A rank's process is gone: one that comes in its place is measured anew."""
        self._steps.pop(rank, None)

    def seconds(self, rank: int) -> float | None:
        """What a step takes a rank now; None if it has not done any."""
        steps = self._steps.get(rank)
        return statistics.median(list(steps)[-2:]) if steps else None

    def is_slow(self, rank: int) -> bool:
        """Whether a rank is much slower than it was."""
        steps = list(self._steps.get(rank, ()))
        if len(steps) < BASELINE + 2:
            return False
        usual = statistics.median(steps[:-2])
        return steps[-1] > MUCH_SLOWER * usual or min(steps[-2:]) > SLOWER * usual

    def fastest(self, ranks: int) -> list[int]:
        """Of so many ranks those that have not become slow, fastest first and unknown ones last."""
        times = {rank: self.seconds(rank) for rank in range(ranks) if not self.is_slow(rank)}
        return sorted(times, key=lambda rank: times[rank] or math.inf)

    def moves(self, homes: Sequence[int], now: float) -> list[tuple[int, int]]:
        """Servers that should leave their machines, and the ranks whose machines they should go to.

        Args:
            homes: by server, the rank on whose machine it is.
            now: seconds on any clock that goes on.
        """
        found = []
        times = {rank: self.seconds(rank) for rank in self._steps if not self.is_slow(rank)}
        for server, home in enumerate(homes):
            own = self.seconds(home)
            rests = now - self._moved.get(server, -REST_S) < REST_S
            if rests or own is None or not self.is_slow(home):
                continue
            others = {
                rank: s
                for rank, s in times.items()
                if s is not None and rank != home and (rank - home) % self._team == 0
            }
            best = min(others, key=lambda rank: others[rank], default=None)
            if best is not None and others[best] * WORTH_MOVING < own:
                self._moved[server] = now
                found.append((server, best))
        return found

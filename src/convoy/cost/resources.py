"""What a simulation's operations share: a device's time, and links with bytes under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convoy.cost.fabric import Link


class BusyDevice:
    """A rank's device: what it works on now, and what waits for it."""

    def __init__(self) -> None:
        self.left: dict[int, float] = {}
        """Seconds of the device alone that each task under way still needs."""
        self.waiting: list[int] = []
        """Computes that are ready; a heap, so that the first in the schedule comes first."""
        self.computing: int | None = None
        self.since = 0.0
        self.version = 0

    def advance(self, now: float) -> None:
        """Take what was done since the last change off the tasks."""
        if self.left:
            done = (now - self.since) / len(self.left)
            for task in self.left:
                self.left[task] -= done
        self.since = now

    def next_end(self) -> float:
        """When the task with the least left ends if nothing changes."""
        return self.since + max(0.0, min(self.left.values())) * len(self.left)


@dataclass
class Flow:
    """Bytes under way, as a share of a whole that is 1 at the start."""

    load: Mapping[Link, float]
    left: float = 1.0
    rate: float = 0.0

"""Where the seconds before the first step go."""

from __future__ import annotations

import time

import psutil


class Timeline:
    """Marks moments, in seconds since this process began."""

    def __init__(self) -> None:
        self._marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """`name` is reached now. The first time counts."""
        self._marks.setdefault(name, time.time() - psutil.Process().create_time())

    def phases(self) -> dict[str, float]:
        """Seconds from each mark's predecessor to it; the first one's since the process began."""
        phases, before = {}, 0.0
        for name, moment in self._marks.items():
            phases[name] = moment - before
            before = moment
        return phases

"""Where the seconds before the first step go."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil


class Timeline:
    """Marks moments, in seconds since this process began."""

    def __init__(self) -> None:
        self._marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """`name` is reached now. The first time counts."""
        self._marks.setdefault(name, _age())

    def phases(self) -> dict[str, float]:
        """Seconds from each mark's predecessor to it; the first one's since the process began."""
        phases, before = {}, 0.0
        for name, moment in self._marks.items():
            phases[name] = moment - before
            before = moment
        return phases


def _age() -> float:
    """Seconds since this process began."""
    if sys.platform != "linux":
        return time.time() - psutil.Process().create_time()
    # psutil adds the time of boot, which Linux gives in whole seconds only.
    after_name = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
    started = int(after_name.rpartition(")")[2].split()[19])  # proc(5): starttime
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")

"""The share of this machine that control groups leave to this process, versions 1 and 2.

A container sees all of its host's cores and memory, and may use few of them. A limit may be
set at any level, so each is looked up from the process's own group to the root, and the
least one holds (Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def usable_cores() -> float:
    """Cores that this process may use: its affinity's, or less under a quota."""
    cores = float(len(os.sched_getaffinity(0)))
    quota = cpu_quota()
    return cores if quota is None else min(cores, quota)


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float | None:
    """The least CPU quota that applies, in cores; None without one."""
    quotas = []
    for folder in folders("cpu", root, own):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))  # 'max' is no int, and no limit
        with suppress(OSError, ValueError):
            micros = int((folder / "cpu.cfs_quota_us").read_text())
            if micros > 0:
                quotas.append(micros / int((folder / "cpu.cfs_period_us").read_text()))
    return min(quotas, default=None)


def memory_room(root: Path = ROOT, own: Path = OWN) -> tuple[int, int] | None:
    """(bytes still free, bytes in all) under the tightest memory limit; None without one."""
    rooms = []
    for folder in folders("memory", root, own):
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError):
                total = int((folder / limit).read_text())
                # Usage counts cached files, which the kernel drops when memory runs short.
                used = int((folder / usage).read_text()) - statistic(folder, cache)
                rooms.append((max(0, total - used), total))
    return min(rooms, default=None)


def statistic(folder: Path, name: str) -> int:
    """A figure in memory.stat; 0 where it is missing."""
    for line in (folder / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def folders(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """Where limits of `controller` may be: the process's own group, then each above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        group = base / path.lstrip("/")
        # A container may see its host's path here and its own group at the root.
        yield from (g for g in (group, *group.parents) if g == base or base in g.parents)

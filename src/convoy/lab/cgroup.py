"""Control groups: how much of the CPU a machine's processes get, and whether they run at all."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from convoy.errors import LabError

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 10_000
"""Short, so that a share of a core is even within a training step."""
SLICE_US = 5_000
"""Linux hands a quota out to processors in slices; what one does not use comes back too late."""
PATIENCE_S = 5.0


def folder_of(lab: str, machine_number: int) -> Path:
    """Where the group of a machine is, or will be."""
    return (ROOT / "cpu" if _is_version_1() else ROOT) / f"convoy-lab-{lab}-{machine_number}"


def _is_version_1() -> bool:
    return (ROOT / "cpu").is_dir()


def create(folder: Path) -> None:
    """Make a group. Raises LabError where that cannot be, or it is there already."""
    try:
        if (
            not _is_version_1()
            and "cpu" not in (ROOT / "cgroup.subtree_control").read_text().split()
        ):
            (ROOT / "cgroup.subtree_control").write_text("+cpu")
        folder.mkdir()
    except OSError as error:
        raise LabError(
            f"cannot make the control group {folder}: {error.strerror}. The lab limits machines' "
            "CPUs with cgroups, version 1 or 2, which have to be mounted and writable"
        ) from None


def set_cores(folder: Path, cores: float | None) -> None:
    """Let the group use `cores` cores; None takes the limit away.

    Of a whole core and more, a slice that it has not used in one period may be used in the next,
    where the kernel can (Linux 5.14): without it a single busy thread loses some of its core.
    """
    quota = -1 if cores is None else max(1000, int(cores * PERIOD_US))
    if (folder / "cpu.max").exists():
        bursts = folder / "cpu.max.burst"
        limits = {folder / "cpu.max": f"{'max' if quota < 0 else quota} {PERIOD_US}"}
    else:
        bursts = folder / "cpu.cfs_burst_us"
        limits = {folder / "cpu.cfs_period_us": str(PERIOD_US)}
        limits[folder / "cpu.cfs_quota_us"] = str(quota)
    if bursts.exists():
        bursts.write_text("0")  # a quota may not be less than this
        if quota >= PERIOD_US:
            limits[bursts] = str(SLICE_US)
    for file, text in limits.items():
        file.write_text(text)


def cores(folder: Path) -> float:
    """How many cores the group may use; infinite without a limit, 0 if it is not there."""
    if not folder.is_dir():
        return 0.0
    if (folder / "cpu.max").exists():
        quota, period = (folder / "cpu.max").read_text().split()
    else:
        quota = (folder / "cpu.cfs_quota_us").read_text().strip()
        period = (folder / "cpu.cfs_period_us").read_text().strip()
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def processes(folder: Path) -> list[int]:
    """The process ids in a group."""
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def used_s(pids: Iterable[int]) -> float:
    """Seconds of CPU time that processes have used, those of them that live."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def signal_all(folder: Path, number: signal.Signals) -> None:
    """Send a signal to all processes of a group, those too that they start meanwhile."""
    told: set[int] = set()
    while untold := set(processes(folder)) - told:
        for pid in untold:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        told |= untold


def end_all(folder: Path) -> None:
    """End all processes of a group and wait until they are gone."""
    deadline = time.monotonic() + PATIENCE_S
    signal_all(folder, signal.SIGCONT)
    signal_all(folder, signal.SIGTERM)
    while processes(folder):
        if time.monotonic() > deadline - PATIENCE_S / 2:
            signal_all(folder, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"processes {processes(folder)} of {folder.name} do not end")
        time.sleep(0.05)


def remove(folder: Path) -> None:
    """Remove a group, which has to be empty; fine if it is not there."""
    if folder.is_dir():
        folder.rmdir()

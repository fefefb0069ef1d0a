"""Whether this machine, and a cluster if one is named, can train: `convoy doctor`.

    for check in examine(DoctorOptions(cluster="cluster.toml")):
        print(check.status, check.name, check.detail, check.advice)

One file per theme (software, local_ray, machine, network, cluster). A check measures facts
and hands them to a pure `judge_...` function, which says what they mean; one that fails
becomes a problem that names it, so an examination always ends, and with every check in it.
"""

from __future__ import annotations

from collections.abc import Callable

from convoy.doctor.check import Check, DoctorOptions, Status, guarded
from convoy.doctor.cluster import check_cluster
from convoy.doctor.local_ray import check_local_ray
from convoy.doctor.machine import (
    check_devices,
    check_memory,
    check_open_files,
    check_ray_disk,
    check_run_disk,
    check_shared_memory,
)
from convoy.doctor.network import check_gloo_interface, check_rank_meeting
from convoy.doctor.software import check_python, check_ray, check_threads, check_torch

__all__ = ["CHECKS", "Check", "DoctorOptions", "Status", "examine"]

CHECKS: tuple[tuple[str, Callable[[DoctorOptions], Check | list[Check]]], ...] = (
    ("python", check_python),
    ("torch", check_torch),
    ("threads", check_threads),
    ("ray", check_ray),
    ("local ray", check_local_ray),
    ("devices", check_devices),
    ("memory", check_memory),
    ("shared memory", check_shared_memory),
    ("run disk", check_run_disk),
    ("ray disk", check_ray_disk),
    ("open files", check_open_files),
    ("gloo interface", check_gloo_interface),
    ("rank meeting", check_rank_meeting),
    ("cluster", check_cluster),
)


def examine(options: DoctorOptions | None = None) -> list[Check]:
    """Every check of this machine, then those of the cluster; raises nothing.

    A few seconds for one machine, most of them to start the two processes that meet; a
    cluster adds a few more.
    """
    options = options or DoctorOptions()
    checks: list[Check] = []
    for name, check in CHECKS:
        checks += guarded(name, check, options)
    return checks

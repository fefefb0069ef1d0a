"""Versions and builds of what Convoy stands on, and how many threads torch will use."""

from __future__ import annotations

import math
import os
import platform
import re
import sys

import ray
import torch
import torch.distributed as dist

from convoy.doctor.check import Check, DoctorOptions
from convoy.quotas import usable_cores

MINIMUM = {"python": (3, 11), "torch": (2, 11), "ray": (2, 50)}
"""As pyproject.toml requires; a test holds the two together."""


def check_python(_: DoctorOptions) -> Check:
    """This interpreter."""
    return judge_version("python", platform.python_version(), sys.executable)


def check_torch(_: DoctorOptions) -> Check:
    """torch's version, what it was built for, and whether it has gloo."""
    build = f"built for {torch_build()}"
    if not (dist.is_available() and dist.is_gloo_available()):
        return Check(
            name="torch",
            status="problem",
            detail=f"torch {torch.__version__}, {build}, has no gloo, which joins CPU ranks",
            advice="Install a build of torch from pytorch.org.",
        )
    return judge_version("torch", torch.__version__, build)


def torch_build() -> str:
    """What this torch computes on: 'CPU only', 'CUDA 12.8', 'ROCm 6.3'."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"


def check_ray(_: DoctorOptions) -> Check:
    """Ray's version."""
    return judge_version("ray", ray.__version__, "")


def judge_version(name: str, found: str, more: str) -> Check:
    """Whether version `found` of `name` (a key of MINIMUM) is recent enough."""
    least = MINIMUM[name]
    needed = ".".join(map(str, least))
    detail = f"{found} ({more})" if more else found
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) >= least:
        return Check(name=name, status="ok", detail=detail)
    install = f"Install {name} {needed} or newer" + (
        " and make the virtual environment anew." if name == "python" else " (pip install -U)."
    )
    return Check(
        name=name, status="problem", detail=f"{detail}; {needed} is needed", advice=install
    )


def check_threads(_: DoctorOptions) -> Check:
    """torch's threads against the cores that it may use."""
    return judge_threads(torch.get_num_threads(), usable_cores(), os.environ.get("OMP_NUM_THREADS"))


def judge_threads(threads: int, cores: float, omp_num_threads: str | None) -> Check:
    """Whether torch's threads would fight over cores.

    Args:
        threads: what one process of torch starts.
        cores: what this process may use; a fraction under a cgroup's quota.
        omp_num_threads: that variable's value, None where it is not set.
    """
    setting = "not set" if omp_num_threads is None else repr(omp_num_threads)
    detail = f"{threads} threads on {cores:g} cores; OMP_NUM_THREADS is {setting}"
    most = max(1, math.ceil(cores))
    if omp_num_threads is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", omp_num_threads):
        return Check(
            name="threads",
            status="warning",
            detail=f"{detail}, which is no number of threads and is ignored",
            advice=f"`unset OMP_NUM_THREADS`, or set it to {most} or less.",
        )
    if threads > most:
        return Check(
            name="threads",
            status="warning",
            detail=f"{detail}: they wait for one another, and a step takes longer than with fewer",
            advice=f"Set OMP_NUM_THREADS={most} before starting.",
        )
    return Check(name="threads", status="ok", detail=detail)

"""Whether a Ray is running on this machine already, and how Ray would find it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from convoy.doctor.check import Check, DoctorOptions


@dataclass(frozen=True, kw_only=True)
class RayProcess:
    """One of the two processes that stay: a node's raylet, and the head's gcs_server."""

    pid: int
    name: str
    user: str
    age_s: float


@dataclass(frozen=True, kw_only=True)
class LocalRay:
    """What this machine knows of Ray."""

    processes: tuple[RayProcess, ...]
    recorded: str | None
    """HOST:PORT of the cluster that `ray start` last joined here."""
    recorded_in: Path
    """The file that says so."""
    environment: str | None
    """RAY_ADDRESS, which goes before all else; None where it names no cluster."""


def check_local_ray(options: DoctorOptions) -> Check:
    """Whether an old Ray is in the way."""
    return judge_local_ray(find_local_ray(), wanted=options.cluster is not None)


def find_local_ray() -> LocalRay:
    """Look for Ray's processes, and for where it notes its address."""
    now = time.time()
    processes = [
        RayProcess(
            pid=process.pid,
            name=process.info["name"],
            user=process.info["username"] or "?",
            age_s=now - (process.info["create_time"] or now),
        )
        for process in psutil.process_iter(["name", "username", "create_time"])
        if process.info["name"] in ("raylet", "gcs_server")
    ]
    file = ray_folder() / "ray_current_cluster"
    environment = os.environ.get("RAY_ADDRESS", "")
    recorded = None
    with suppress(OSError):  # usually it is not there; it may also be another user's
        recorded = file.read_text(encoding="utf-8").strip() or None
    return LocalRay(
        processes=tuple(processes),
        recorded=recorded,
        recorded_in=file,
        environment=None if environment in ("", "local") else environment,
    )


def ray_folder() -> Path:
    """Where Ray keeps its sessions, found as Ray finds it."""
    above = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(above) / "ray"


def judge_local_ray(found: LocalRay, *, wanted: bool) -> Check:
    """Whether what was found is what is wanted: a Ray cluster, or none."""
    shown = ", ".join(show_process(process) for process in found.processes)
    if found.environment is not None and not wanted:
        return Check(
            name="local ray",
            status="warning",
            detail=f"RAY_ADDRESS is {found.environment!r}: a plain ray.init() connects there",
            advice="`unset RAY_ADDRESS`, or name the cluster: --cluster ray.",
        )
    if found.processes and wanted:
        return Check(name="local ray", status="ok", detail=f"Ray runs here: {shown}")
    if found.processes:
        return Check(
            name="local ray",
            status="warning",
            detail=f"Ray runs here already: {shown}; it takes memory"
            + (", and a plain ray.init() joins it" if found.recorded is not None else ""),
            advice=stopping(found.processes) + " To train on it instead: --cluster ray.",
        )
    if found.recorded is not None and not wanted:
        return Check(
            name="local ray",
            status="warning",
            detail=f"no Ray runs here, but {found.recorded_in} sends a plain ray.init() to "
            f"{found.recorded}",
            advice=f"If that cluster is gone: `rm {found.recorded_in}`. "
            "If it is there: --cluster ray.",
        )
    return Check(name="local ray", status="ok", detail="no Ray runs here")


def show_process(process: RayProcess) -> str:
    """'raylet 4711 of ada, for 3.2 h'."""
    return f"{process.name} {process.pid} of {process.user}, for {process.age_s / 3600:.1f} h"


def stopping(processes: Sequence[RayProcess]) -> str:
    """How to end `processes`, which may be another user's."""
    pids = " ".join(str(process.pid) for process in processes)
    others = sorted({process.user for process in processes} - {psutil.Process().username(), "?"})
    if others:
        return f"It is in use by {', '.join(others)}, who can end it (`ray stop`)."
    return (
        f"If nothing uses it, `ray stop` ends every Ray process of yours, and `kill {pids}` "
        "only these."
    )

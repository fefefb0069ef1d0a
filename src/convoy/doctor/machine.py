"""What this machine offers: devices, memory, shared memory, disk and open files."""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from convoy.doctor.check import Check, DoctorOptions, show_size
from convoy.doctor.local_ray import ray_folder
from convoy.quotas import cpu_quota, memory_room

SHM = Path("/dev/shm")
NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """This machine's processor, and what of it is ours."""

    model: str
    cores: int
    """Logical ones in all."""
    allowed: int
    """Those that this process's affinity admits."""
    quota: float | None
    """Cores under a cgroup's quota; None without one."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device that torch can see."""

    name: str
    free_bytes: int
    total_bytes: int
    capability: tuple[int, int]
    """CUDA compute capability, such as (6, 1)."""


def check_devices(_: DoctorOptions) -> Check:
    """What can compute here."""
    cpu = Cpu(
        model=cpu_model(),
        cores=os.cpu_count() or 1,
        allowed=len(os.sched_getaffinity(0)),
        quota=cpu_quota(),
    )
    architectures = torch.cuda.get_arch_list() if torch.version.cuda else []
    return judge_devices(cpu, list_gpus(), NVIDIA.exists(), architectures)


def cpu_model() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def list_gpus() -> list[Gpu]:
    """Every CUDA device that torch can use now."""
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(
            Gpu(
                name=properties.name,
                free_bytes=free,
                total_bytes=total,
                capability=(properties.major, properties.minor),
            )
        )
    return gpus


def judge_devices(
    cpu: Cpu, gpus: Sequence[Gpu], nvidia_driver: bool, architectures: Sequence[str]
) -> Check:
    """Whether torch can use what is there.

    Args:
        cpu: the processor.
        gpus: what torch sees.
        nvidia_driver: whether the kernel has NVIDIA's driver loaded.
        architectures: what torch holds kernels for, such as sm_80 (machine code of that
            major version) and compute_90 (translated for any newer device).
    """
    detail = f"{cpu.model}, {cpu.cores} cores"
    if cpu.allowed < cpu.cores:
        detail += f", {cpu.allowed} of them allowed to this process"
    if cpu.quota is not None and cpu.quota < cpu.allowed:
        detail += f", {cpu.quota:g} of them under a cgroup's quota"
    for index, gpu in enumerate(gpus):
        sizes = f"{show_size(gpu.free_bytes)} of {show_size(gpu.total_bytes)} free"
        detail += f"; cuda:{index} {gpu.name}, {sizes}"
    strange = [gpu for gpu in gpus if not has_kernels(gpu.capability, architectures)]
    if strange:
        version = ".".join(map(str, strange[0].capability))
        return Check(
            name="devices",
            status="problem",
            detail=f"{detail}; this torch has no kernels for {strange[0].name} "
            f"(compute capability {version}; it has {', '.join(architectures)})",
            advice="Install a build of torch for an older CUDA from pytorch.org, "
            'or leave the GPU out: CUDA_VISIBLE_DEVICES="".',
        )
    if not gpus and nvidia_driver:
        return Check(
            name="devices",
            status="warning",
            detail=f"{detail}; NVIDIA's driver is loaded, but torch sees no GPU: CPU will be used",
            advice="Install a CUDA build of torch from pytorch.org, if `nvidia-smi` lists the "
            "GPU and CUDA_VISIBLE_DEVICES does not hide it.",
        )
    if not gpus:
        detail += "; GPUs: none; CPU will be used"
    return Check(name="devices", status="ok", detail=detail)


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether code for one of `architectures` runs on a device of `capability`."""
    known = [
        (kind, (int(digits[:-1]), int(digits[-1])))
        for kind, digits in re.findall(r"(sm|compute)_(\d{2,})", " ".join(architectures))
    ]
    if not known:  # ROCm names its devices otherwise; there is nothing to compare
        return True
    return any(
        version <= capability and (kind == "compute" or version[0] == capability[0])
        for kind, version in known
    )


def check_memory(_: DoctorOptions) -> Check:
    """Memory that is left, in a container the container's."""
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    room = memory_room()
    if room is not None and room[1] < total:
        free, total = min(free, room[0]), room[1]
    return judge_memory(free, total)


def judge_memory(free_bytes: int, total_bytes: int) -> Check:
    """Whether Ray and a worker find room; together they take about 1 GB before they begin.

    Ray kills workers when 95% is in use (RAY_memory_usage_threshold).
    """
    detail = f"{show_size(free_bytes)} of {show_size(total_bytes)} free"
    advice = "End programs that you do not need (`ps aux --sort=-rss | head`)."
    if free_bytes < 500e6 or free_bytes < 0.05 * total_bytes:
        detail += "; Ray kills workers when less than 5% is"
        return Check(name="memory", status="problem", detail=detail, advice=advice)
    if free_bytes < 2e9:
        detail += "; Ray and one worker take about 1 GB before they begin"
        return Check(name="memory", status="warning", detail=detail, advice=advice)
    return Check(name="memory", status="ok", detail=detail)


def check_shared_memory(_: DoctorOptions) -> Check:
    """/dev/shm, where Ray keeps its object store."""
    if not SHM.is_dir():
        return Check(
            name="shared memory",
            status="warning",
            detail=f"there is no {SHM}; Ray's object store will be on disk, and slow",
            advice=f"Mount it: `mount -t tmpfs -o size=1g shm {SHM}`.",
        )
    usage = psutil.disk_usage(str(SHM))
    return judge_shared_memory(usage.free, usage.total)


def judge_shared_memory(free_bytes: int, total_bytes: int) -> Check:
    """Whether Ray's object store has room: it wants 512 MB, and below 100 MB it is on disk."""
    detail = f"{show_size(free_bytes)} of {show_size(total_bytes)} free in {SHM}"
    if free_bytes >= 512e6:
        return Check(name="shared memory", status="ok", detail=detail)
    if total_bytes < 512e6:
        detail += "; a container has 64 MB unless told otherwise" if total_bytes < 100e6 else ""
        advice = "Start the container with --shm-size=1g, or mount -o remount,size=1g " + str(SHM)
    else:
        advice = f"Remove what ended programs left in {SHM} (`ls -l {SHM}`)."
    return Check(
        name="shared memory",
        status="problem" if free_bytes < 100e6 else "warning",
        detail=f"{detail}; Ray's object store wants 512.0 MB",
        advice=advice,
    )


def check_run_disk(options: DoctorOptions) -> Check:
    """The disk that run folders will be on."""
    return check_disk("run disk", options.run_folder.absolute(), "the run folder")


def check_ray_disk(_: DoctorOptions) -> Check:
    """The disk that Ray writes logs, and objects that do not fit into memory, to."""
    return check_disk("ray disk", ray_folder(), "Ray's session folder")


def check_disk(name: str, folder: Path, what: str) -> Check:
    """The disk under `folder`, or under the nearest folder above it that exists."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    usage = psutil.disk_usage(str(existing))
    writable = os.access(existing, os.W_OK | os.X_OK)
    return judge_disk(name, f"{existing} ({what})", usage.free, usage.total, writable=writable)


def judge_disk(
    name: str, where: str, free_bytes: int, total_bytes: int, *, writable: bool
) -> Check:
    """Whether there is room to write. Ray refuses objects on a disk that is 95% full."""
    detail = f"{show_size(free_bytes)} of {show_size(total_bytes)} free under {where}"
    advice = "Make room there, or choose a folder on another disk"
    advice += " (RAY_TMPDIR is Ray's)." if name == "ray disk" else "."
    if not writable:
        detail += ", and it may not be written to"
        return Check(name=name, status="problem", detail=detail, advice=advice)
    if free_bytes < 200e6:
        return Check(name=name, status="problem", detail=detail, advice=advice)
    if free_bytes < 2e9 or (name == "ray disk" and free_bytes < 0.05 * total_bytes):
        return Check(name=name, status="warning", detail=detail, advice=advice)
    return Check(name=name, status="ok", detail=detail)


def check_open_files(_: DoctorOptions) -> Check:
    """How many files and sockets one process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    return judge_open_files(*(None if n == unlimited else n for n in (soft, hard)))


def judge_open_files(soft: int | None, hard: int | None) -> Check:
    """Whether Ray, which wants 4096, has enough; None is no limit."""
    shown = "no limit" if soft is None else str(soft)
    if soft is None or soft >= 4096:
        return Check(name="open files", status="ok", detail=f"{shown} (ulimit -n)")
    if hard is None or hard >= 4096:
        advice = f"`ulimit -n {min(65536, hard or 65536)}` in the shell that starts Convoy."
    else:
        advice = f"Raise the hard limit, now {hard}, in /etc/security/limits.conf (nofile)."
    return Check(
        name="open files",
        status="warning",
        detail=f"{shown} (ulimit -n); Ray wants 4096",
        advice=advice,
    )

"""What the doctor says of machines as they might be, and of this one."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from convoy import quotas
from convoy.doctor import CHECKS, Check, DoctorOptions, examine
from convoy.doctor.check import guarded, show_size
from convoy.doctor.local_ray import LocalRay, RayProcess, judge_local_ray
from convoy.doctor.machine import (
    Cpu,
    Gpu,
    check_disk,
    judge_devices,
    judge_disk,
    judge_memory,
    judge_open_files,
    judge_shared_memory,
)
from convoy.doctor.network import (
    Meeting,
    ending,
    expects_others,
    hold_meeting,
    judge_gloo_interface,
    judge_meeting,
    resolve,
)
from convoy.doctor.software import MINIMUM, judge_threads, judge_version
from convoy.interfaces import Interface

CPU = Cpu(model="Some CPU", cores=8, allowed=8, quota=None)
GPU = Gpu(name="Old GPU", free_bytes=3 * 10**9, total_bytes=4 * 10**9, capability=(6, 1))
LOOPBACK = Interface(name="lo", addresses=("127.0.0.1", "::1"), is_up=True, is_loopback=True)
WIRED = Interface(name="eth0", addresses=("10.0.0.5",), is_up=True, is_loopback=False)
DOWN = Interface(name="wlan0", addresses=("10.0.1.5",), is_up=False, is_loopback=False)


def test_this_machine_is_examined_whole(tmp_path: Path) -> None:
    checks = examine(DoctorOptions(run_folder=tmp_path / "runs" / "first"))
    names = [check.name for check in checks]
    assert names == [name for name, _ in CHECKS[:-1]] + ["clock"]
    verdicts = {check.name: check for check in checks}
    assert verdicts["rank meeting"].status == "ok", verdicts["rank meeting"]
    assert verdicts["clock"].detail == "one machine, nothing to compare"
    assert str(tmp_path) in verdicts["run disk"].detail
    assert all("check itself failed" not in check.detail for check in checks)
    assert json.loads(json.dumps([dataclasses.asdict(check) for check in checks]))


def test_a_check_that_fails_is_a_problem_with_its_name() -> None:
    def failing(_: DoctorOptions) -> Check:
        raise OSError("no such device\nand a second line")

    (check,) = guarded("disk", failing, DoctorOptions())
    assert (check.name, check.status) == ("disk", "problem")
    assert "OSError: no such device" in check.detail
    assert "second line" not in check.detail


def test_minimum_versions_are_the_projects() -> None:
    project = tomllib.loads(
        (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    extras = project["optional-dependencies"]
    wanted = [f"python{project['requires-python']}", *project["dependencies"], *extras["train"]]
    for name, least in MINIMUM.items():
        assert f"{name}>={'.'.join(map(str, least))}" in wanted


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ("2.11.0", "ok"),
        ("2.13.0+cpu", "ok"),
        ("3.0", "ok"),
        ("2.10.1", "problem"),
        ("1.13", "problem"),
    ],
)
def test_versions(found: str, status: str) -> None:
    assert judge_version("torch", found, "").status == status


@pytest.mark.parametrize(
    ("threads", "cores", "variable", "status"),
    [
        (2, 2.0, None, "ok"),
        (1, 0.5, None, "ok"),
        (2, 1.5, "2", "ok"),
        (8, 2.0, None, "warning"),
        (8, 8.0, "4,2", "ok"),
        (8, 8.0, "many", "warning"),
        (8, 8.0, "", "warning"),
    ],
)
def test_threads(threads: int, cores: float, variable: str | None, status: str) -> None:
    assert judge_threads(threads, cores, variable).status == status


def test_too_many_threads_are_told_how_many_to_be() -> None:
    check = judge_threads(64, 1.5, None)
    assert "64 threads on 1.5 cores" in check.detail
    assert "OMP_NUM_THREADS=2" in check.advice


def test_devices() -> None:
    bare = judge_devices(CPU, [], nvidia_driver=False, architectures=[])
    assert (bare.status, bare.detail) == (
        "ok",
        "Some CPU, 8 cores; GPUs: none; CPU will be used",
    )
    limited = dataclasses.replace(CPU, allowed=4, quota=1.5)
    detail = judge_devices(limited, [], nvidia_driver=False, architectures=[]).detail
    assert "4 of them allowed" in detail
    assert "1.5 of them under" in detail
    unseen = judge_devices(CPU, [], nvidia_driver=True, architectures=[])
    assert (unseen.status, "CUDA build" in unseen.advice) == ("warning", True)


@pytest.mark.parametrize(
    ("architectures", "status"),
    [
        (["sm_60", "sm_80"], "ok"),
        (["compute_50"], "ok"),
        (["gfx906"], "ok"),
        (["sm_75", "sm_120", "compute_120"], "problem"),
        (["sm_62"], "problem"),
    ],
)
def test_a_gpu_that_torch_has_no_kernels_for(architectures: list[str], status: str) -> None:
    check = judge_devices(CPU, [GPU], nvidia_driver=True, architectures=architectures)
    assert "cuda:0 Old GPU, 3.0 GB of 4.0 GB free" in check.detail
    assert check.status == status


@pytest.mark.parametrize(
    ("free", "total", "status", "advice"),
    [
        (8e9, 8e9, "ok", ""),
        (512e6, 1e9, "ok", ""),
        (300e6, 300e6, "warning", "--shm-size=1g"),
        (64 * 2**20, 64 * 2**20, "problem", "--shm-size=1g"),
        (50e6, 8e9, "problem", "Remove what ended programs left"),
    ],
)
def test_shared_memory(free: float, total: float, status: str, advice: str) -> None:
    check = judge_shared_memory(int(free), int(total))
    assert check.status == status
    assert advice in check.advice
    assert show_size(free) in check.detail


@pytest.mark.parametrize(
    ("free", "total", "status"),
    [(8e9, 16e9, "ok"), (1e9, 16e9, "warning"), (0.4e9, 1e9, "problem"), (3e9, 99e9, "problem")],
)
def test_memory(free: float, total: float, status: str) -> None:
    assert judge_memory(int(free), int(total)).status == status


@pytest.mark.parametrize(
    ("name", "free", "writable", "status"),
    [
        ("run disk", 50e9, True, "ok"),
        ("run disk", 3e9, True, "ok"),
        ("ray disk", 3e9, True, "warning"),
        ("run disk", 1e9, True, "warning"),
        ("run disk", 0.1e9, True, "problem"),
        ("run disk", 50e9, False, "problem"),
    ],
)
def test_disk(name: str, free: float, writable: bool, status: str) -> None:
    check = judge_disk(name, "/somewhere", int(free), int(100e9), writable=writable)
    assert check.status == status
    assert f"{show_size(free)} of 100.0 GB free under /somewhere" in check.detail


def test_the_disk_of_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    check = check_disk("run disk", tmp_path / "file" / "runs" / "first", "the run folder")
    assert f"under {tmp_path} (the run folder)" in check.detail


def test_open_files() -> None:
    assert judge_open_files(4096, 4096).status == judge_open_files(None, None).status == "ok"
    assert judge_open_files(1024, 8192).advice.startswith("`ulimit -n 8192`")
    assert judge_open_files(1024, None).advice.startswith("`ulimit -n 65536`")
    assert "limits.conf" in judge_open_files(256, 1024).advice


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_cgroups_version_2_hold_from_any_level(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "own": "0::/user/session\n",
            "cpu.max": "max 100000\n",
            "user/cpu.max": "150000 100000\n",
            "user/session/cpu.max": "400000 100000\n",
            "user/memory.max": "2000000000\n",
            "user/memory.current": "1500000000\n",
            "user/memory.stat": "anon 1\ninactive_file 500000000\n",
            "user/session/memory.max": "max\n",
        },
    )
    assert quotas.cpu_quota(tmp_path, tmp_path / "own") == 1.5
    assert quotas.memory_room(tmp_path, tmp_path / "own") == (1_000_000_000, 2_000_000_000)


def test_cgroups_version_1_and_a_container_that_sees_its_hosts_path(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "own": "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n1:name=systemd:/\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": "1000\n",
            "memory/memory.usage_in_bytes": "400\n",
            "memory/memory.stat": "total_inactive_file 100\n",
        },
    )
    assert quotas.cpu_quota(tmp_path, tmp_path / "own") == 0.5
    assert quotas.memory_room(tmp_path, tmp_path / "own") == (700, 1000)
    assert quotas.cpu_quota(tmp_path, tmp_path / "absent") is None
    write(tmp_path, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n"})
    assert quotas.cpu_quota(tmp_path, tmp_path / "own") is None
    assert quotas.usable_cores() > 0


def gloo(
    resolved: list[str] | str = "", chosen: str | None = None, *, others: bool = True
) -> Check:
    return judge_gloo_interface(
        host="tower",
        resolved=resolved,
        interfaces=[LOOPBACK, WIRED, DOWN],
        chosen=chosen,
        others_expected=others,
    )


def test_the_interface_gloo_would_take() -> None:
    assert gloo(["10.0.0.5"]).detail == "eth0 (10.0.0.5), to which host name 'tower' resolves"
    assert gloo(["10.9.9.9", "10.0.0.5"]).status == "ok", "gloo takes the first it can bind to"
    assert gloo(["127.0.1.1"], others=False).status == "ok"
    loopback = gloo(["127.0.1.1"])
    assert loopback.status == "warning"
    assert "GLOO_SOCKET_IFNAME" in loopback.advice
    assert "eth0 (10.0.0.5)" in loopback.advice
    assert "wlan0" not in loopback.advice, "it is down"


def test_a_host_name_that_leads_nowhere() -> None:
    foreign = gloo(["10.9.9.9"], others=False)
    assert foreign.status == "warning"
    assert "10.9.9.9, which no interface carries" in foreign.detail
    assert "to nothing (no answer within 5 s)" in gloo("no answer within 5 s").detail


@pytest.mark.parametrize(
    ("chosen", "status"),
    [("eth0", "ok"), ("lo,eth0", "ok"), ("lo", "warning"), ("wlan0", "problem"), ("x", "problem")],
)
def test_the_interface_that_was_chosen(chosen: str, status: str) -> None:
    assert gloo("not asked", chosen).status == status


def test_host_names_are_resolved_in_gloos_order() -> None:
    assert "127.0.0.1" in resolve("localhost", timeout_s=10)
    assert isinstance(resolve("no-such-host.invalid", timeout_s=2), str)


def test_others_are_expected_where_the_cluster_has_them(tmp_path: Path) -> None:
    assert not expects_others(None)
    assert all(map(expects_others, ["ray", "ray://10.0.0.5", str(tmp_path / "absent.toml")]))
    file = tmp_path / "cluster.toml"
    file.write_text('[[machine]]\nname = "a"\n')
    assert not expects_others(str(file))
    file.write_text('[[machine]]\nname = "a"\n[[machine]]\nname = "b"\n')
    assert expects_others(str(file))


def test_three_ranks_meet() -> None:
    meeting = hold_meeting(3, timeout_s=30)
    assert [result["total"] for result in meeting.results if not isinstance(result, str)] == 3 * [6]
    assert re.search(r"3 processes .* in \d+\.\d\d s", judge_meeting(meeting).detail)


def test_a_rank_that_hangs_is_killed_and_one_that_fails_is_quoted() -> None:
    def start(code: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)

    hanging = start("import signal; signal.pause()")
    failing = start("raise OSError('no route')")
    results = (ending(hanging, 0.1), ending(failing, 30))
    assert hanging.returncode == -9
    check = judge_meeting(Meeting(wall_s=1.0, results=results))
    assert check.status == "problem"
    assert "rank 0: still waiting" in check.detail
    assert "rank 1: OSError: no route" in check.detail


def test_a_meeting_may_be_slow_or_wrong() -> None:
    def met(total: float, form_s: float) -> Check:
        result = {"total": total, "form_s": form_s, "all_reduce_s": 0.001}
        return judge_meeting(Meeting(wall_s=1.0, results=(result, result)))

    assert met(3, 0.1).status == "ok"
    assert (met(3, 10).status, "name servers" in met(3, 10).advice) == ("warning", True)
    assert "summed to 2, not 3" in met(2, 0.1).detail


def test_an_old_ray() -> None:
    process = RayProcess(pid=4711, name="raylet", user="ada", age_s=7200)
    file = Path("/tmp/ray/ray_current_cluster")
    none = LocalRay(processes=(), recorded=None, recorded_in=file, environment=None)
    assert judge_local_ray(none, wanted=False).detail == "no Ray runs here"
    running = judge_local_ray(dataclasses.replace(none, processes=(process,)), wanted=False)
    assert running.status == "warning"
    assert "raylet 4711 of ada, for 2.0 h" in running.detail
    assert "`ray stop`" in running.advice
    wanted = judge_local_ray(dataclasses.replace(none, processes=(process,)), wanted=True)
    assert wanted.status == "ok"
    stale = judge_local_ray(dataclasses.replace(none, recorded="10.0.0.5:6379"), wanted=False)
    assert f"rm {file}" in stale.advice
    pointed = judge_local_ray(dataclasses.replace(none, environment="10.0.0.5:1"), wanted=False)
    assert "unset RAY_ADDRESS" in pointed.advice

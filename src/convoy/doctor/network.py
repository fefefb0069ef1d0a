"""Which interface ranks would use, and whether two of them can meet on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from convoy.cluster import load_cluster
from convoy.doctor import meet
from convoy.doctor.check import Check, DoctorOptions, one_line
from convoy.errors import ClusterError
from convoy.interfaces import Interface, find_interface, list_interfaces

SLOW_MEETING_S = 3.0
RESOLVE = (
    "import json, socket, sys\n"
    "found = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)\n"
    "print(json.dumps([entry[4][0] for entry in found]))"
)


def check_gloo_interface(options: DoctorOptions) -> Check:
    """The interface that gloo takes if nobody tells it one."""
    host = socket.gethostname()
    return judge_gloo_interface(
        host=host,
        resolved=resolve(host, timeout_s=min(5.0, options.timeout_s)),
        interfaces=list_interfaces(),
        chosen=os.environ.get("GLOO_SOCKET_IFNAME") or None,
        others_expected=expects_others(options.cluster),
    )


def expects_others(cluster: str | None) -> bool:
    """Whether ranks will be on more machines than this one."""
    if cluster is None or cluster == "ray" or cluster.startswith("ray://"):
        return cluster is not None
    try:
        return len(load_cluster(cluster).real_machines) > 1
    except ClusterError:  # the check of the cluster says what is wrong with the file
        return True


def resolve(host: str, timeout_s: float) -> list[str] | str:
    """The addresses that `host` stands for, in gloo's order; text says why there are none.

    In a process of its own, because a resolver that gets no answer can hold one up for
    minutes and cannot be interrupted.
    """
    command = [sys.executable, "-I", "-S", "-c", RESOLVE, host]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    if done.returncode != 0:
        return one_line(done.stderr.strip().rpartition("\n")[2])
    addresses: list[str] = json.loads(done.stdout)
    return addresses


def judge_gloo_interface(
    *,
    host: str,
    resolved: Sequence[str] | str,
    interfaces: Sequence[Interface],
    chosen: str | None,
    others_expected: bool,
) -> Check:
    """Whether gloo's own choice is one that the other machines reach.

    Args:
        host: this machine's host name.
        resolved: what it resolves to, or why it does not.
        interfaces: this machine's.
        chosen: GLOO_SOCKET_IFNAME, None where it is not set.
        others_expected: whether ranks on other machines are to take part.
    """
    usable = {i.name: i for i in interfaces if i.is_up and i.addresses}
    outward = [f"{i.name} ({i.addresses[0]})" for i in usable.values() if not i.is_loopback]
    if outward:
        advice = f"Set GLOO_SOCKET_IFNAME to the interface others reach: {' or '.join(outward)}."
    else:
        advice = "Connect this machine to a network: it has no interface but loopback that is up."
    if chosen is not None:
        names, detail = chosen.split(","), f"GLOO_SOCKET_IFNAME is {chosen}"
        missing = [name for name in names if name not in usable]
        if missing:
            return Check(
                name="gloo interface",
                status="problem",
                detail=f"{detail}, but {', '.join(missing)} is not here, is down or has no address",
                advice=advice if outward else "`unset GLOO_SOCKET_IFNAME`.",
            )
        inward = all(usable[name].is_loopback for name in names)
    else:
        carried = first_carried(resolved, interfaces)
        if carried is None:
            why = f"to {', '.join(resolved)}, which no interface carries"
            why = f"to nothing ({resolved})" if isinstance(resolved, str) else why
            return Check(
                name="gloo interface",
                status="warning",
                detail=f"host name {host!r} resolves {why}; gloo falls back on loopback, "
                "which no other machine reaches",
                advice=f"{advice} Or correct {host!r} in /etc/hosts.",
            )
        address, interface = carried
        detail = f"{interface.name} ({address}), to which host name {host!r} resolves"
        inward = interface.is_loopback
    if inward and others_expected:
        return Check(
            name="gloo interface",
            status="warning",
            detail=f"{detail}: loopback, which no other machine reaches",
            advice=advice,
        )
    return Check(name="gloo interface", status="ok", detail=detail)


def first_carried(
    addresses: Sequence[str] | str, interfaces: Sequence[Interface]
) -> tuple[str, Interface] | None:
    """The first address that an interface carries; gloo takes the first that it can bind to."""
    for address in addresses if not isinstance(addresses, str) else []:
        try:
            return address, find_interface(address, interfaces)
        except ClusterError:
            continue
    return None


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What became of processes that tried to form a group."""

    wall_s: float
    """From starting the first to the end of the last."""
    results: tuple[dict[str, float] | str, ...]
    """By rank: what `meet.meet` returned, or what went wrong."""


def check_rank_meeting(options: DoctorOptions) -> Check:
    """Start two ranks that meet over loopback."""
    return judge_meeting(hold_meeting(2, options.timeout_s))


def hold_meeting(world_size: int, timeout_s: float) -> Meeting:
    """Let `world_size` processes meet; those that have not by `timeout_s` are killed."""
    loopback = [i.name for i in list_interfaces() if i.is_loopback and i.is_up]
    if not loopback:
        return Meeting(wall_s=0.0, results=("no loopback interface is up",) * world_size)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback[0], "OMP_NUM_THREADS": "1"}
    # Port 0: the system gives one that is free, and the store holds it before anyone asks.
    store = dist.TCPStore(
        "127.0.0.1",
        0,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )
    started = time.perf_counter()
    processes: list[subprocess.Popen[str]] = []
    try:
        for rank in range(world_size):
            arguments = [str(part) for part in (rank, world_size, store.port, timeout_s)]
            processes.append(
                subprocess.Popen(
                    # -P: this folder's files must not stand in for modules of the same name.
                    [sys.executable, "-P", str(Path(meet.__file__)), *arguments],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        results = tuple(ending(p, started + timeout_s - time.perf_counter()) for p in processes)
    finally:
        for process in processes:
            if process.poll() is None:  # interrupted
                process.kill()
                process.communicate()
    return Meeting(wall_s=time.perf_counter() - started, results=results)


def ending(process: subprocess.Popen[str], timeout_s: float) -> dict[str, float] | str:
    """What `process` printed, or why it printed nothing; it has ended either way."""
    try:
        output, errors = process.communicate(timeout=max(0.1, timeout_s))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "still waiting at the end of the time, and killed"
    if process.returncode != 0:
        return one_line(errors.strip().rpartition("\n")[2] or f"exit {process.returncode}")
    result: dict[str, float] = json.loads(output)
    return result


def judge_meeting(meeting: Meeting) -> Check:
    """Whether all met, and computed the right sum."""
    world_size = len(meeting.results)
    failed = [f"rank {r}: {m}" for r, m in enumerate(meeting.results) if isinstance(m, str)]
    results = [result for result in meeting.results if not isinstance(result, str)]
    total = world_size * (world_size + 1) / 2
    failed += [f"summed to {r['total']:g}, not {total:g}" for r in results if r["total"] != total]
    if failed:
        return Check(
            name="rank meeting",
            status="problem",
            detail=f"{world_size} processes failed to form a gloo group on loopback within "
            f"{meeting.wall_s:.1f} s: {'; '.join(failed)}",
            advice="See that loopback is up (`ip link set lo up`) and no firewall rule covers it.",
        )
    form_s = max(result["form_s"] for result in results)
    all_reduce_s = max(result["all_reduce_s"] for result in results)
    detail = (
        f"{world_size} processes formed a gloo group on loopback in {form_s:.2f} s and "
        f"all-reduce in {all_reduce_s * 1e3:.2f} ms ({meeting.wall_s:.1f} s with their start)"
    )
    if form_s > SLOW_MEETING_S:
        return Check(
            name="rank meeting",
            status="warning",
            detail=f"{detail}; under 1 s is usual",
            advice="See that the name servers in /etc/resolv.conf answer: torch looks up the name "
            "of every address that connects to its store, and waits for it.",
        )
    return Check(name="rank meeting", status="ok", detail=detail)

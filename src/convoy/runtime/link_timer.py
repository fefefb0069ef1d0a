"""Latency and bandwidth between two ranks, and all-reduces among all, by the run's own verbs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from convoy.comm import Comm

LINK_S = 0.25
"""How long a transfer takes at least, so that a limiter's initial burst is past."""
LARGEST_BYTES = 1 << 26
TRIPS = 10


def time_link(comm: Comm, source: int, destination: int) -> dict[str, Any] | None:
    """Seconds one way, and bytes/s from `source` to `destination`; None on any other rank.

    Transfers grow until one takes `LINK_S`, or is as large as any that are tried. How much they
    vary ("relative": seconds by their mean) is found with eight of an eighth of that size.
    """
    if comm.rank not in (source, destination):
        return None
    first = comm.rank == source
    peer = destination if first else source
    trips = [_there_and_back(comm, first, peer) for _ in range(TRIPS + 2)][2:]
    latency = statistics.median(trips) / 2
    size = 1 << 16
    while True:
        took = _agreed(comm, first, peer, _one_way(comm, first, peer, size) - latency)
        wanted = int(1.2 * size * LINK_S / max(took, 1e-6))
        if took >= LINK_S or size == LARGEST_BYTES:
            break
        size = min(size * 4, max(size + 1, wanted), LARGEST_BYTES)
    times = [
        _agreed(comm, first, peer, _one_way(comm, first, peer, size) - latency) for _ in range(3)
    ]
    shorter = [_agreed(comm, first, peer, _one_way(comm, first, peer, size // 8)) for _ in range(8)]
    return {
        "latency_s": latency,
        "bandwidth_bytes_s": size / max(statistics.median(times), 1e-9),
        "relative": [seconds / statistics.fmean(shorter) for seconds in shorter],
    }


def time_all_reduces(
    comm: Comm, sizes: Sequence[int], repeats: Sequence[int]
) -> list[dict[str, Any]]:
    """By payload bytes: seconds of each all-reduce, and this rank's CPU seconds of one."""
    rows = []
    for size, count in zip(sizes, repeats, strict=True):
        payload = torch.zeros(max(1, size // 4))
        comm.all_reduce(payload)
        times = []
        cpu_s = time.process_time()
        for _ in range(count):
            started = time.perf_counter()
            comm.all_reduce(payload)
            times.append(time.perf_counter() - started)
        rows.append({"seconds": times, "cpu_s": (time.process_time() - cpu_s) / count})
    return rows


def _there_and_back(comm: Comm, first: bool, peer: int) -> float:
    payload = torch.zeros(1)
    started = time.perf_counter()
    for sends in (first, not first):
        if sends:
            comm.send(payload, peer)
        else:
            comm.receive(payload, peer)
    return time.perf_counter() - started


def _one_way(comm: Comm, first: bool, peer: int, size: int) -> float:
    """Seconds until `size` bytes are there and that is known here."""
    payload = torch.zeros(size, dtype=torch.uint8)
    started = time.perf_counter()
    if first:
        comm.send(payload, peer)
        comm.receive(payload[:1], peer)
    else:
        comm.receive(payload, peer)
        comm.send(payload[:1], peer)
    return time.perf_counter() - started


def _agreed(comm: Comm, first: bool, peer: int, seconds: float) -> float:
    """The sender's time, on both sides."""
    value = torch.tensor([seconds], dtype=torch.float64)
    if first:
        comm.send(value, peer)
    else:
        comm.receive(value, peer)
    return float(value)

"""Payload bytes that Convoy counts, beside what the loopback interface's counters say.

A collective's count is a closed form (a ring's); this shows how far the form is from what gloo
puts on the wire. Nothing else may use loopback meanwhile.
"""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from common import write
from convoy.comm import Comm

SIZES = (1_000, 10_000, 89_578, 1_000_000, 10_000_000)
REPEATS = 10


def loopback_bytes() -> int:
    """Bytes that the loopback interface has sent since the system started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise RuntimeError("no loopback interface")


def work(rank: int, world_size: int, port: mp.Value, results: mp.Queue) -> None:
    """One rank: all-reduce every size and report bytes counted and bytes seen."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.TCPStore(
        "127.0.0.1", port.value, is_master=False, timeout=datetime.timedelta(seconds=60)
    )
    comm = Comm(rank=rank, world_size=world_size, store=store)
    for elements in SIZES:
        tensor = torch.ones(elements)
        comm.all_reduce(tensor)
        comm.take()
        dist.barrier()
        time.sleep(0.3)  # let the counters settle
        before = loopback_bytes()
        for _ in range(REPEATS):
            comm.all_reduce(tensor)
        dist.barrier()
        time.sleep(0.3)
        seen = loopback_bytes() - before
        results.put((elements, rank, comm.take().sent_bytes, seen))
        dist.barrier()
    comm.close()


def main() -> None:
    """Count and look, for 2 and 3 ranks."""
    context = mp.get_context("spawn")
    rows = []
    for world_size in (2, 3):
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port, results = context.Value("i", store.port), context.Queue()
        ranks = [
            context.Process(target=work, args=(rank, world_size, port, results))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        reports = [results.get(timeout=120) for _ in range(world_size * len(SIZES))]
        for process in ranks:
            process.join()
        for elements in SIZES:
            counted = sum(r[2] for r in reports if r[0] == elements) / REPEATS
            seen = max(r[3] for r in reports if r[0] == elements) / REPEATS
            rows.append(
                {
                    "ranks": world_size,
                    "elements": elements,
                    "counted bytes": round(counted),
                    "interface bytes": round(seen),
                    "interface / counted": seen / counted,
                }
            )
    write("wire_bytes", rows, about="One float32 all-reduce over gloo, all ranks together.")


if __name__ == "__main__":
    main()

"""One of the processes that try to meet: forms a gloo group, sums, and says how long it took.

Run as a file, so that it starts with torch alone: python meet.py RANK WORLD_SIZE PORT TIMEOUT_S
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist


def meet(rank: int, world_size: int, port: int, timeout_s: float) -> dict[str, float]:
    """Meet the others at the store on loopback's `port` and all-reduce `rank` + 1."""
    timeout = timedelta(seconds=timeout_s)
    started = time.perf_counter()
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    tensor = torch.full((1,), rank + 1.0)
    dist.all_reduce(tensor)  # the first one also connects the pairs
    formed = time.perf_counter()
    for _ in range(10):
        dist.all_reduce(torch.ones(1))
    reduced = time.perf_counter()
    dist.barrier()  # so that nobody leaves while another still waits
    dist.destroy_process_group()
    return {
        "total": float(tensor),
        "form_s": formed - started,
        "all_reduce_s": (reduced - formed) / 10,
    }


if __name__ == "__main__":
    print(
        json.dumps(meet(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
    )

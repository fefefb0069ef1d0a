"""Training as a careful PyTorch user writes it with DistributedDataParallel, for comparison.

Images lie in memory as normalised floats, gradients are views of buckets, one thread per rank,
no logging. Prints the seconds of each step, as JSON.

    python benchmarks/plain_ddp.py --network cifar10-full --batch-size 100 --steps 60 --ranks 2

Where RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, as torchrun sets them, this is that one
rank; OWN_ADDRESS then says by which address the others reach it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from convoy import networks
from convoy.datasets import open_dataset
from convoy.interfaces import interface_of


def start_here(rank: int, options: argparse.Namespace, port: int, results: mp.Queue) -> None:
    """One rank of several on this machine."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    times = train(rank, options.ranks, f"tcp://127.0.0.1:{port}", options)
    if rank == 0:
        results.put(times)


def train(rank: int, ranks: int, meeting: str, options: argparse.Namespace) -> list[float]:
    """One rank's step times."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    data = open_dataset(options.data)
    images, labels = data.train.batch(torch.arange(len(data.train)))
    torch.manual_seed(0)
    model = networks.build(options.network, input_shape=(3, 32, 32), num_classes=10)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.01, momentum=0.9)
    share = options.batch_size // ranks
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    times, ended = [], time.perf_counter()
    for step in range(options.steps):
        first = step * options.batch_size % (len(labels) - options.batch_size) + rank * share
        mine = order[first : first + share]
        inputs = images.index_select(0, mine).contiguous(memory_format=layout)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(replica(inputs), labels.index_select(0, mine))
        loss.backward()
        optimizer.step()
        now = time.perf_counter()
        times.append(now - ended)
        ended = now
    dist.destroy_process_group()
    return times


def main() -> None:
    """Start the ranks and print rank 0's step times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="cifar10-full")
    parser.add_argument("--data", default="synthetic:3x32x32:10")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    if "RANK" in os.environ:
        if "OWN_ADDRESS" in os.environ:
            os.environ["GLOO_SOCKET_IFNAME"] = interface_of(os.environ["OWN_ADDRESS"])
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        times = train(rank, ranks, "env://", options)
        if rank == 0:
            print(json.dumps(times))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=start_here, args=(rank, options, port, results))
        for rank in range(options.ranks)
    ]
    for process in ranks:
        process.start()
    times = results.get(timeout=600)
    for process in ranks:
        process.join()
    print(json.dumps(times))


if __name__ == "__main__":
    main()

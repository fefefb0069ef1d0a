"""How DistributedDataParallel's buckets are summed.

DDP looks at the annotations of a hook as objects, so this file cannot postpone them with
`from __future__ import annotations`.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from convoy.comm import Comm


def sum_gradients(comm: Comm, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum a bucket over ranks. Gradients are weighted already, so nothing is divided."""
    return comm.all_reduce_async(bucket.buffer())


def sum_gradients_as_bfloat16(comm: Comm, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """As `sum_gradients`, with bfloat16 on the wire; each hop of the ring rounds once."""
    gradients = bucket.buffer()
    narrow = comm.all_reduce_async(gradients.to(torch.bfloat16))
    return narrow.then(lambda done: gradients.copy_(done.value()))

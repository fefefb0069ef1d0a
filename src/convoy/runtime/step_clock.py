"""When a rank computes and when it waits, step by step."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from convoy.comm import Comm
from convoy.strategies import Batch


class StepClock:
    """Times a rank's steps: from the gate to the commit; evaluations and checkpoints left out."""

    def __init__(self, comm: Comm, device: torch.device) -> None:
        self._comm, self._device = comm, device
        self._started = self._stopped = 0.0
        self._first = 0
        self._traffic = comm.take()
        self._runs = False

    def start(self, first: int) -> None:
        """A step begins whose first sample is at position `first` of the epoch's order."""
        self._comm.take()
        self._first = first
        self._runs = True
        self._started = time.perf_counter()

    def stop(self) -> None:
        """The step's work is done; whatever comes before the next belongs to none."""
        if not self._runs:
            return
        self._runs = False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._stopped = time.perf_counter()
        self._traffic = self._comm.take()

    def record(self, batch: Batch, loss_sum: Tensor) -> dict[str, Any]:
        """What this rank reports of the step."""
        wall_s = self._stopped - self._started
        return {
            "step": batch.step,
            "first": self._first,
            "samples": batch.samples,
            "wall_s": wall_s,
            "compute_s": max(0.0, wall_s - self._traffic.blocked_s),
            "blocked_s": self._traffic.blocked_s,
            "sent_bytes": self._traffic.sent_bytes,
            "sent_to": self._traffic.sent_to,
            "loss": float(loss_sum.detach()) / batch.samples if batch.samples else None,
            "time": time.time(),
        }

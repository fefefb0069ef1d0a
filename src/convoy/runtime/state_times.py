"""How long a device takes for work on a whole network's tensors, whatever the samples."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable

import torch

from convoy import state
from convoy.comm import Rehearsal
from convoy.runtime.training import Trainee
from convoy.strategies.averages import average, averaged_tensors


def state_times(trainee: Trainee, device: torch.device, seconds: float) -> dict[str, float]:
    """Seconds of each kind of work, by its name in a profile; found in about so many `seconds`."""
    gradients = [p.detach().clone() for p in trainee.model.parameters() if p.requires_grad]
    others = [gradient.clone() for gradient in gradients]

    def accumulate() -> None:
        for gradient, other in zip(gradients, others, strict=True):
            gradient += other

    with contextlib.closing(Rehearsal(2)) as comm:

        def average_once() -> None:
            average(averaged_tensors(trainee.model, trainee.optimizer), comm, 1.0)
            state.copy_of(state.pack(trainee.model, trainee.optimizer))

        return {
            "average_s": _mean_s(average_once, device, seconds / 2),
            "accumulate_s": _mean_s(accumulate, device, seconds / 2),
        }


def _mean_s(work: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Of doing it again and again, but for the first time."""
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.fmean(found[1:])

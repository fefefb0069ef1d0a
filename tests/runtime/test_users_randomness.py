"""What a user's data set draws depends on the seed and the step, not on what came before."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from convoy.comm import Comm
from convoy.runtime.formation import Formation, Job
from convoy.runtime.gate import Gate
from convoy.runtime.settings import TrainSettings
from convoy.runtime.step_clock import StepClock
from convoy.runtime.training import Trainee
from convoy.strategies import make_strategy

CPU = torch.device("cpu")


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws from all three generators that a transform may use."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = [torch.rand(()).item(), random.random(), numpy.random.rand()]
        return torch.tensor(noise).view(3, 1, 1), index % 2


def drawn(formation: Formation) -> list[Tensor]:
    """The images of all steps from the formation's first."""
    job = Job(
        settings=TrainSettings(batch_size=4, steps=4),
        strategy=make_strategy("data", {}),
        network=torch.nn.Linear(1, 2),
        dataset=(Noisy(), Noisy()),
    )
    comm = Comm(rank=0, world_size=1, backend="gloo", store=None, timeout_s=1)
    gate = Gate()
    gate.reset(formation.first_step)
    trainee = Trainee(job, CPU, 1)
    batches = trainee._batches(formation, gate, "contiguous", comm, StepClock(comm, CPU))
    return [batch.inputs for batch in batches]


def test_a_resumed_run_sees_what_an_undisturbed_one_would(
    formation: Callable[..., Formation],
) -> None:
    whole = drawn(formation([4]))
    torch.manual_seed(99)
    random.seed(99)
    numpy.random.seed(99)
    rest = drawn(formation([4], first_step=2))
    assert len(whole) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
    assert not torch.equal(whole[0], whole[1])

"""A replica lets go of its process group while others still hold it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from convoy.comm import Rehearsal
from convoy.strategies import Batch
from convoy.strategies.base import Equipment
from convoy.strategies.replica import replicated


@pytest.fixture
def equipment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Equipment]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model = nn.Linear(3, 2)
    comm = Rehearsal(2)
    yield Equipment(
        comm=comm,
        device=torch.device("cpu"),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        example=Batch(
            step=-1,
            inputs=torch.ones(2, 3),
            targets=torch.tensor([0, 1]),
            samples=2,
            step_samples=2,
            evaluates=False,
            ends_run=False,
        ),
        loss=lambda model, batch: F.cross_entropy(model(batch.inputs), batch.targets),
    )
    comm.close()


def test_the_reducer_goes_first(equipment: Equipment) -> None:
    """Were it the group's last owner, it would wait for the group's threads under the GIL."""
    with replicated(equipment) as replica:
        reducer = weakref.ref(replica.reducer)
        assert reducer() is not None
        unused = replica(equipment.example.inputs).sum()  # a graph that nobody goes back through
    assert reducer() is None
    assert unused.requires_grad
    assert dist.is_initialized()

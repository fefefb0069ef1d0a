"""What strategies should compute, in plain PyTorch and in one process.

Written from the definitions and not with Convoy's parts, but for the data sets and for
`derive_seed`, which fixes the order of samples.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.datasets import open_dataset
from convoy.runtime.formation import Job, Part
from convoy.runtime.sampler import derive_seed
from convoy.state import Tensors

from .harness import network_of

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.float32}


def first_network(job: Job) -> nn.Module:
    """The job's network with weights of the tests' own choice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        network: nn.Module = network_of(job)
    return network.to(DTYPES[job.settings.precision])


def first_part(job: Job) -> Part:
    """The weights of `first_network`, for a rank to begin with."""
    return Part(tensors={f"model/{n}": t for n, t in first_network(job).state_dict().items()})


def optimizer_of(job: Job, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the job's settings describe."""
    s = job.settings
    assert s.lr is not None
    if s.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=s.lr, weight_decay=s.weight_decay)
    return torch.optim.SGD(
        network.parameters(), lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay
    )


def batches(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole batch of one step after another: inputs and targets."""
    settings, data = job.settings, open_dataset(job.dataset).train
    assert settings.steps is not None
    done, epoch = 0, 0
    while True:
        generator = torch.Generator().manual_seed(derive_seed(settings.seed, epoch))
        for indices in torch.randperm(len(data), generator=generator).split(settings.batch_size):
            if done == settings.steps:
                return
            inputs, targets = data.batch(indices)
            yield inputs.to(DTYPES[settings.precision]), targets
            done += 1
        epoch += 1


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Every tensor of both, by the names that ranks report."""
    tensors = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            if value is not None:
                tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def train_alone(job: Job, num_steps: int | None = None) -> Tensors:
    """What one machine has after the first `num_steps` steps, or all."""
    network = first_network(job)
    optimizer = optimizer_of(job, network)
    for step, (inputs, targets) in enumerate(batches(job)):
        if step == num_steps:
            break
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=job.settings.precision == "bf16"):
            loss = F.cross_entropy(network(inputs), targets)
        loss.backward()
        optimizer.step()
    return state_of(network, optimizer)


def train_in_micro_batches(job: Job, number: int, *, least: int = 1) -> Tensors:
    """What one machine has that goes through each batch in so many parts, and then updates.

    Parts are as even as can be, larger ones first, of `least` samples or more if there are any.
    """
    network = first_network(job)
    optimizer = optimizer_of(job, network)
    for inputs, targets in batches(job):
        optimizer.zero_grad()
        parts = max(1, min(number, len(targets) // least))
        pieces = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for images, labels in pieces:
            loss = F.cross_entropy(network(images), labels, reduction="sum")
            (loss / len(targets)).backward()
        optimizer.step()
    return state_of(network, optimizer)


def largest_remainder(count: int, weights: Sequence[float]) -> list[int]:
    """Hamilton's method in exact arithmetic; ties go to the lower index."""
    quotas = [count * Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    parts = [int(quota) for quota in quotas]
    while sum(parts) < count:
        remainders = [quota - part for quota, part in zip(quotas, parts, strict=True)]
        parts[remainders.index(max(remainders))] += 1
    return parts


def local_sgd(
    job: Job,
    shares: Sequence[int],
    average_after: Container[int],
    *,
    num_steps: int | None = None,
    sync_first: int = 0,
) -> Tensors:
    """Ranks that train on their own, and an average of all they hold after the steps named.

    Everything is weighted by the samples that a rank has trained on since the last average. A
    rank without samples in a step does nothing in it. Whole numbers that networks count are
    rank 0's; those that optimizers count are rounded. In the first `sync_first` steps every
    rank takes the gradient of the whole batch.
    """
    networks = [first_network(job) for _ in shares]
    optimizers = [optimizer_of(job, network) for network in networks]
    trained = [0] * len(shares)
    for step, (inputs, targets) in enumerate(batches(job)):
        if step == num_steps:
            break
        parts = largest_remainder(len(targets), shares)
        pieces = list(zip(inputs.split(parts), targets.split(parts), strict=True))
        for rank, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
            mine, labels = (inputs, targets) if step < sync_first else pieces[rank]
            if len(labels):
                optimizer.zero_grad()
                F.cross_entropy(network(mine), labels).backward()
                optimizer.step()
            if step >= sync_first:
                trained[rank] += len(labels)
        if step in average_after and sum(trained):
            _average(networks, optimizers, [n / sum(trained) for n in trained])
            trained = [0] * len(shares)
    return state_of(networks[0], optimizers[0])


@torch.no_grad()
def _average(
    networks: list[nn.Module], optimizers: list[torch.optim.Optimizer], weights: list[float]
) -> None:
    states = [state_of(n, o) for n, o in zip(networks, optimizers, strict=True)]
    for name in states[0]:
        tensors = [state[name] for state in states]
        if not tensors[0].is_floating_point():
            continue
        average = sum(w * copy.deepcopy(t) for w, t in zip(weights, tensors, strict=True))
        assert isinstance(average, Tensor)
        for tensor in tensors:
            tensor.copy_(average.round() if name.endswith("/step") else average)


def assert_equal(
    state: Tensors, expected: Tensors, *, atol: float, but: tuple[str, ...] = ()
) -> None:
    """Same names, and values no further apart than `atol`; `but` names endings left out."""
    kept = [name for name in expected if not name.endswith(but)]
    assert {name for name in state if not name.endswith(but)} == set(kept)
    for name in kept:
        torch.testing.assert_close(
            state[name], expected[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )

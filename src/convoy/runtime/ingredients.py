"""What a run is made of, as the driver and every rank make it alike: data, network, numbers."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import nn

from convoy import networks
from convoy.datasets import DataSet, open_dataset
from convoy.runtime.formation import Job
from convoy.runtime.sampler import GlobalOrder, derive_seed
from convoy.runtime.settings import TrainSettings
from convoy.runtime.weights import put_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


def build_network(
    network: str | nn.Module | Callable[..., nn.Module], dataset: DataSet, seed: int
) -> nn.Module:
    """The network that `network` names or builds, initialised from `seed` alone.

    Of a module it is a copy: a run that loses everything begins anew with what was given.
    """
    if isinstance(network, nn.Module):
        return copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 1))
        return networks.build(
            network,
            input_shape=dataset.train.image_shape,
            num_classes=dataset.train.num_classes,
        )


def starting_network(job: Job, dataset: DataSet) -> nn.Module:
    """The network as every rank of the run begins with it.

    Raises:
        UsageError: the weights that it is to start from are not this network's.
    """
    network = build_network(job.network, dataset, job.settings.seed)
    if job.weights is not None:
        network = network.to(DTYPES[job.settings.precision])  # or double ones would be rounded
        put_weights(network, job.weights, job.settings.weights)
    return network


def open_data(job: Job) -> DataSet:
    """The job's data set, as any of its ranks sees it.

    Its mean and standard deviation come from a sample of its images; where those are drawn at
    random, they are drawn alike on every rank.
    """
    settings = job.settings
    with _seeded(derive_seed(settings.seed, 5)):
        return open_dataset(job.dataset, data_dir=settings.data_dir, seed=settings.seed)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within it the network computes as --precision says."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def num_steps(settings: TrainSettings, order: GlobalOrder) -> int:
    """How many steps the run has in all."""
    if settings.steps is not None:
        return settings.steps
    return (settings.epochs or 10) * order.steps_per_epoch


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within it what draws at random begins from `seed`; afterwards it is as it was."""
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


def seed_torch(seed: int) -> None:
    """Seed torch's generators that are in use.

    `torch.manual_seed` takes a trace of the stack for every kind of accelerator that is not: over
    a millisecond, at every step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def seed_all(seed: int) -> None:
    """Seed what a user's data set may draw from."""
    seed_torch(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)

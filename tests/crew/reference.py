"""What a run should come to, and what its records say that it did."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from convoy import networks
from convoy.datasets import open_dataset
from convoy.runtime.sampler import GlobalOrder, derive_seed

NETWORK = "chavan:3-16-32-10"
BATCH_SIZE = 64
TRAIN_SAMPLES = 1437
STEPS_PER_EPOCH = 23
LR, MOMENTUM = 0.05, 0.9
SAME = {"lr": LR, "momentum": MOMENTUM, "batch_size": BATCH_SIZE}
SAME |= {"memory_format": "contiguous", "strategy": "data"}
"""What every run here is told, so that no default can come between it and the reference."""


def trained_alone(
    num_steps: int, build: Callable[[], nn.Module] | None = None
) -> dict[str, Tensor]:
    """Plain PyTorch in float64 on the digits; of `NETWORK`, or of what `build` makes."""
    data = open_dataset("digits").train
    order = GlobalOrder(num_samples=len(data), batch_size=BATCH_SIZE, seed=0)
    build = build or partial(networks.build, NETWORK, input_shape=(1, 8, 8), num_classes=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, 1))
        network = build().double()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    for step in range(num_steps):
        images, labels = data.batch(order.slice(step, [1], 0).indices)
        optimizer.zero_grad()
        F.cross_entropy(network(images.double()), labels).backward()
        optimizer.step()
    return network.state_dict()


def assert_weights(
    run: Path,
    num_steps: int,
    atol: float = 1e-9,
    build: Callable[[], nn.Module] | None = None,
) -> None:
    """The run's network is the one that `trained_alone` gets."""
    found, expected = load_file(run / "model.safetensors"), trained_alone(num_steps, build)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol)


def assert_same_bits(run: Path, other: Path) -> None:
    """Two runs' networks do not differ in a single bit."""
    found, expected = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def lines(run: Path) -> list[dict[str, Any]]:
    """All of `steps.jsonl`."""
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def effective(run: Path) -> dict[int, list[dict[str, Any]]]:
    """By step, the lines that count: those of the last crew that did the step."""
    by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in lines(run):
        by_step[line["step"]].append(line)
    for step, found in by_step.items():
        last = max(line["generation"] for line in found)
        by_step[step] = [line for line in found if line["generation"] == last]
    return dict(sorted(by_step.items()))


def assert_each_sample_once(run: Path, num_steps: int) -> None:
    """Of every epoch, or of what the run did of it, every position is covered once."""
    steps = effective(run)
    assert list(steps) == list(range(num_steps))
    visited: dict[int, list[int]] = defaultdict(list)
    for found in steps.values():
        assert [line["rank"] for line in found] == list(range(len(found)))
        for line in found:
            visited[line["epoch"]] += range(line["first"], line["first"] + line["samples"])
    whole, rest = divmod(num_steps, STEPS_PER_EPOCH)
    for epoch, positions in visited.items():
        expected = TRAIN_SAMPLES if epoch < whole else rest * BATCH_SIZE
        assert sorted(positions) == list(range(expected)), f"epoch {epoch}"
    assert list(visited) == list(range(whole + (rest > 0)))

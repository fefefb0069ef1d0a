"""What tests of the runtime have in common: hand-made formations, records and disks."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from convoy.cost.layers import NetworkFacts
from convoy.runtime.formation import Formation
from convoy.runtime.records import Record
from convoy.runtime.sampler import GlobalOrder
from convoy.strategies import Plan, Problem, Worker

MakeFormation = Callable[..., Formation]
MakeRecord = Callable[..., Record]
MountDisk = Callable[..., Path]


ORDER = GlobalOrder(num_samples=10, batch_size=4, seed=0)
"""Steps of 4, 4 and 2 samples."""


@pytest.fixture
def shares_of() -> dict[int, Sequence[int]]:
    """The shares of the crews that a test has made, by generation."""
    return {}


@pytest.fixture
def formation(shares_of: dict[int, Sequence[int]]) -> MakeFormation:
    """A function that makes a crew's formation: one machine, m0, m1, ..., per share."""

    def make(shares: Sequence[int], *, generation: int = 1, first_step: int = 0) -> Formation:
        shares_of[generation] = shares
        machines = tuple(f"m{rank}" for rank in range(len(shares)))
        workers = tuple(
            Worker(index=index, machine=machine, device="cpu")
            for index, machine in enumerate(machines)
        )
        problem = Problem(
            batch_size=sum(shares),
            workers=workers,
            network=NetworkFacts(num_parameters=1, num_buffers=0),
        )
        return Formation(
            generation=generation,
            rank=0,
            plan=Plan(problem=problem, shares=tuple(shares)),
            machines=machines,
            first_step=first_step,
            backend="gloo",
        )

    return make


@pytest.fixture
def record(shares_of: dict[int, Sequence[int]]) -> MakeRecord:
    """A function that makes what one rank reports of one step, of the samples that are its."""

    def make(step: int, rank: int, *, generation: int = 1, **changes: Any) -> Record:
        part = ORDER.slice(step, shares_of.get(generation, [1] * 9), rank)
        return {
            "step": step,
            "rank": rank,
            "machine": f"m{rank}",
            "generation": generation,
            "first": part.first,
            "samples": len(part.indices),
            "wall_s": 1.0,
            "compute_s": 0.75,
            "blocked_s": 0.25,
            "sent_bytes": 100,
            "sent_to": {1 - rank: 100},
            "loss": 2.0,
            "time": 1000.0,
        } | changes

    return make


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[MountDisk]:
    """A function that mounts a real file system in memory: a full or a read-only disk."""
    mounted: list[Path] = []

    def mount(*, size_kib: int, options: str = "rw") -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"{options},size={size_kib}k", "tmpfs", place]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small disk cannot be mounted here: {error}")
        mounted.append(place)
        return place

    try:
        yield mount
    finally:
        for place in mounted:
            subprocess.run(["umount", place], check=True, capture_output=True)


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fails a test that leaves a thread behind which does not end by itself."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()

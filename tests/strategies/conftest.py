"""The processes that the tests of strategies share, and a watch over what they leave behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psutil
import pytest
import torch

from .harness import Crew


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Three processes to be ranks; those that a test kills are replaced."""
    crew = Crew(3)
    try:
        yield crew
    finally:
        crew.end()


@pytest.fixture(scope="session")
def four() -> Iterator[Crew]:
    """As `crew`, one more."""
    crew = Crew(4)
    try:
        yield crew
    finally:
        crew.end()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On layers this small, threads that wait for one another take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or a process running."""
    names = {"crew", "four"} & set(request.fixturenames)
    shared: list[Crew] = [request.getfixturevalue(name) for name in names]
    threads, children = set(threading.enumerate()), _children()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), f"{thread.name} was left running"
    left = _children() - children - {pid for crew in shared for pid in crew.pids}
    assert not left, f"processes {left} were left running"


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}

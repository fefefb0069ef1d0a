"""The processes that the tests of strategies share, and a watch over what they leave behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psutil
import pytest

from .harness import Crew


@pytest.fixture(scope="session")
def _three_processes() -> Iterator[Crew]:
    crew = Crew(3)
    try:
        yield crew
    finally:
        crew.end()


@pytest.fixture
def crew(_three_processes: Crew, _leaves_nothing: None) -> Crew:
    """Three processes to be ranks; those that a test kills are replaced."""
    return _three_processes


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or a process running."""
    threads = set(threading.enumerate())
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), f"{thread.name} was left running"
    left = {child.pid for child in psutil.Process().children(recursive=True)} - children
    if "crew" in request.fixturenames:
        left -= request.getfixturevalue("crew").pids
    assert not left, f"processes {left} were left running"

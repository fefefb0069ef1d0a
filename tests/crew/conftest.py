"""Real crews: programs in folders of their own, and one Ray that most tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .processes import HERE, PATIENCE_S, Harbour, Program


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each wait within a test has its own end; the test as a whole has that of several.

    Tests with crews take long, and come first. Of two processes, which get half of the tests each,
    one has those that share a Ray and the other those that start their own; both end with short
    ones, so that neither waits long for the other.
    """
    crews = [item for item in items if item.path.parent == HERE]
    for item in crews:
        item.add_marker(pytest.mark.timeout(4 * PATIENCE_S))
    alone = [item for item in items if item.path.parent.name == "lab"]
    alone += [item for item in crews if "harbour" not in getattr(item, "fixturenames", ())]
    shared = [item for item in crews if item not in alone]
    short = [item for item in items if item not in {*alone, *shared}]
    half = len(items) // 2 - len(shared)
    if half > 0:
        items[:] = [*shared, *short[:half], *alone, *short[half:]]


@pytest.fixture(scope="session")
def _harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    harbour = Harbour(tmp_path_factory.mktemp("harbour"))
    yield harbour
    harbour.close()


@pytest.fixture
def harbour(_harbour: Harbour) -> Harbour:
    """Runs jobs in one Ray."""
    _harbour.hurry.touch()
    return _harbour


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """A function that starts `python ARGUMENTS` in the test's folder; ended with the test."""
    started: list[Program] = []

    def start(*arguments: str, **env: str) -> Program:
        started.append(Program(list(arguments), tmp_path, env))
        return started[-1]

    yield start
    for one in started:
        one.end()

"""A replica that waits long for its answers computes on meanwhile."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from convoy.cost.layers import NetworkFacts
from convoy.runtime.servers.overlap import WINDOW, Overlap
from convoy.strategies import Problem, Worker
from convoy.strategies.downpour import Downpour


def overlap(
    blocked: Iterable[float], *, replicas: int = 2, momentum: bool = False, **options: int
) -> int:
    """The depth after steps of a second's computation each, blocked for so long on top."""
    strategy = Downpour(**options)  # type: ignore[arg-type]
    problem = Problem(
        batch_size=8,
        workers=tuple(Worker(index=i, machine=f"m{i}", device="cpu") for i in range(replicas)),
        network=NetworkFacts(num_parameters=8, num_buffers=0, shapes=(("weight", (8,)),)),
        has_momentum=momentum,
    )
    found = Overlap(strategy.terms(strategy.plan(problem)))
    for blocked_s in blocked:
        found.note(1 + blocked_s, blocked_s)
    return found.depth


@pytest.mark.parametrize(("blocked_s", "depth"), [(0.14, 0), (0.16, 1)])
def test_waiting_is_weighed_against_computing(blocked_s: float, depth: int) -> None:
    assert overlap([blocked_s] * 4 * WINDOW) == depth


def test_two_windows_in_a_row_decide() -> None:
    busy, idle = [0.0] * WINDOW, [0.5] * WINDOW
    assert overlap(idle) == 0
    assert overlap([*idle, *busy, *idle]) == 0
    assert overlap([*idle, *busy, *idle, *idle]) == 1


def test_one_long_wait_is_not_many() -> None:
    assert overlap([*[0.0] * (WINDOW - 1), 60.0, *[0.0] * 3 * WINDOW]) == 0


def test_pushes_now_and_then_are_taken_together() -> None:
    """Every fifth step ends with an exchange, whose time is that of all five."""
    assert overlap([0.0, 0.0, 0.0, 0.0, 1.0] * WINDOW) == 1
    assert overlap([0.0, 0.0, 0.0, 0.0, 0.7] * WINDOW) == 0


def test_what_was_asked_for_stays() -> None:
    waits = [1.0] * 4 * WINDOW
    assert overlap(waits, in_flight=0) == 0
    assert overlap(waits, in_flight=3) == 3
    assert overlap(waits, max_staleness=4) == 0
    assert overlap(waits, replicas=1) == 0


def test_momentum_bears_no_older_weights() -> None:
    """Asynchrony adds to it: Mitliagkas et al. 2016."""
    assert overlap([1.0] * 4 * WINDOW, momentum=True) == 0
    assert overlap([1.0] * 4 * WINDOW, momentum=True, in_flight=1) == 1

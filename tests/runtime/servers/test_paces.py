"""When a server should leave its machine."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from convoy.runtime.servers.paces import REST_S, Paces


def paces(*steps: Sequence[float]) -> Paces:
    """By rank, seconds of its steps."""
    found = Paces()
    for rank, times in enumerate(steps):
        for seconds in times:
            found.note(rank, seconds)
    return found


USUAL = [0.1, 0.11, 0.1, 0.09, 0.1, 0.1, 0.1]


def test_steady_machines_keep_their_servers() -> None:
    assert paces(USUAL, [0.5] * 9).moves([0, 1, 0], 0.0) == []  # slow, but as ever


@pytest.mark.parametrize(
    ("then", "moves"),
    [
        ([1.0], True),  # one step is enough if it is very slow
        ([0.35], False),
        ([0.35, 0.35], True),
        ([1.0, 0.1], False),  # a moment
        ([0.35, 0.1, 0.35], False),
        ([0.15] * 20, False),
    ],
)
def test_a_machine_that_becomes_slow_is_left(then: list[float], moves: bool) -> None:
    found = paces(USUAL + then, USUAL).moves([0, 1], 5.0)
    assert found == ([(0, 1)] if moves else [])


def test_the_fastest_of_those_that_are_not_slow_is_taken() -> None:
    others = ([0.2] * 8, [0.15] * 8, [*[0.05] * 7, 2.0])
    assert paces([*USUAL, 3.0], *others).moves([0, 0, 2], 0.0) == [(0, 2), (1, 2)]


def test_nobody_goes_to_a_machine_that_is_hardly_faster() -> None:
    assert paces([*USUAL, 1.0], [0.6] * 8).moves([0], 0.0) == []


def test_one_that_has_moved_rests() -> None:
    known = paces([*USUAL, 3.0], USUAL)
    assert known.moves([0], 100.0) == [(0, 1)]
    assert known.moves([0], 100.0 + REST_S / 2) == []
    assert known.moves([0], 100.0 + REST_S) == [(0, 1)]


def test_of_a_new_machine_nothing_is_known() -> None:
    assert paces([0.1, 3.0], USUAL).moves([0, 5], 0.0) == []
    assert Paces().moves([0], 0.0) == []

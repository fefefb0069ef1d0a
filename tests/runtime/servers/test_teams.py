"""Members that wait until there are enough of them for a replica."""

from __future__ import annotations

from typing import Any

from convoy.runtime.member_handle import MemberHandle
from convoy.runtime.servers.teams import Bench


def member(name: str) -> MemberHandle:
    """One whose first letter says which device it would be."""
    place: Any = name
    return MemberHandle(place=place, actor=None, call=None)


def bench(*names: str, size: int = 2) -> Bench:
    def position(one: MemberHandle) -> int:
        return "abc".index(str(one.place)[0])

    return Bench(size=size, position_of=position, members=[member(name) for name in names])


def taken(of: Bench) -> list[list[str]]:
    return [[str(one.place) for one in team] for team in of.take_teams()]


def test_replicas_of_one_device_begin_at_once() -> None:
    waiting = bench("a1", "a2", size=1)
    assert taken(waiting) == [["a1"], ["a2"]]
    assert waiting.members == []


def test_everyone_takes_the_place_that_is_theirs_if_it_is_free() -> None:
    waiting = bench("b1", "a1", "a2", "b2", "a3")
    assert taken(waiting) == [["a1", "b1"], ["a2", "b2"]]
    assert [str(one.place) for one in waiting.members] == ["a3"]


def test_or_another_one() -> None:
    waiting = bench("b1", "b2")
    assert taken(waiting) == [["b2", "b1"]]
    assert taken(bench("a1")) == []

from __future__ import annotations

from convoy.runtime.member import Berth, Member


def member_with(*events: str) -> Member:
    member = Member(Berth(address="127.0.0.1", device="cpu"))
    for event in events:
        member._emit((event, {}))
    return member


def test_what_has_not_arrived_is_told_again() -> None:
    member = member_with("a", "b")
    assert [kind for kind, _ in member.poll(0)] == ["a", "b"]
    member._emit(("c", {}))
    assert [kind for kind, _ in member.poll(0)] == ["a", "b", "c"]  # the answer was lost
    assert [kind for kind, _ in member.poll(2)] == ["c"]
    assert member.poll(3) == []
    member._emit(("d", {}))
    assert [kind for kind, _ in member.poll(3)] == ["d"]


def test_what_has_arrived_is_let_go_of() -> None:
    member = member_with(*"abc")
    member.poll(3)
    assert member._events == []

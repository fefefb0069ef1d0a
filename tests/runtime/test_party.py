"""Who is named when a machine dies while it is measured. Ray is played by a table of answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, RayTaskError

from convoy.comm import PeerLostError
from convoy.errors import CrewError
from convoy.runtime import party

LOST, DIED, FINE = "lost", "died", "fine"


class Lost(RayTaskError):  # noqa: N818 - what Ray raises for a survivor's error
    """A survivor's PeerLostError, as Ray brings it."""

    def __init__(self) -> None:
        self.cause = PeerLostError("connection closed by peer")

    def __str__(self) -> str:
        return "PeerLostError"


def get(answer: str, timeout: float | None = None) -> Any:
    del timeout
    if answer.startswith(LOST):
        raise Lost
    if answer.startswith(DIED):
        raise ObjectLostError("00" * 28, None, "")
    return answer


def asked(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> list[Any]:
    """What a party of a machine per answer says; answers come in their order."""

    def wait(pending: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        if not pending:
            raise ValueError("wait: expected something to wait for")
        return pending[:1], pending[1:]

    monkeypatch.setattr(party, "ray", SimpleNamespace(get=get, wait=wait))
    whole = object.__new__(party.Party)
    whole.places = [SimpleNamespace(machine=f"m{i}", device="cpu") for i in range(len(answers))]  # type: ignore[misc]
    poll = SimpleNamespace(remote=lambda _: FINE)
    whole._members = [
        SimpleNamespace(poll=poll, survey=SimpleNamespace(remote=lambda *_, a=a: a))
        for a in answers
    ]
    monkeypatch.setattr(party.ray, "get", lambda a, timeout=None: a if a == [] else _each(a))
    return whole.ask("steps", [()] * len(answers))


def _each(answers: Any) -> Any:
    return [get(a) for a in answers] if isinstance(answers, list) else get(answers)


def test_all_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, ["fine 0", "fine 1"]) == ["fine 0", "fine 1"]


@pytest.mark.parametrize(
    "answers", [["lost 0", "died 1"], ["died 1", "lost 0"], ["lost 0", "lost 1", "died 2"]]
)
def test_who_died_is_named(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    dead = next(i for i, a in enumerate(answers) if a.startswith(DIED))
    with pytest.raises(CrewError, match=rf"m{dead} \(cpu\) died while it was measured"):
        asked(monkeypatch, answers)


@pytest.mark.parametrize("answers", [["lost 0", "lost 1"], ["fine 0", "lost 1"]])
def test_nobody_died(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    with pytest.raises(CrewError, match="lost touch with another machine"):
        asked(monkeypatch, answers)

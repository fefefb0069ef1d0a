"""A Ray whose processes answer what a test says, or never."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.exceptions import GetTimeoutError

PENDING = object()


@dataclass(eq=False)
class Answer:
    """What a call comes to: a value, an error, or nothing yet."""

    value: Any = PENDING


class Actor:
    """A process on a node; `answers` are by method, and True where none is named."""

    def __init__(self, node: str, answers: dict[str, Any]) -> None:
        self.node, self.answers, self.killed = node, answers, False
        self.asked: list[str] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Answer:
            self.asked.append(method)
            found = self.answers.get(method, True)
            return Answer(found(*arguments) if callable(found) else found)

        return SimpleNamespace(remote=remote)


@dataclass
class PlayedRay:
    """What `shard_keeper` uses of Ray."""

    alive: list[str]

    def get(self, calls: Any, timeout: float | None = None) -> Any:
        """The value at once, or what comes instead."""
        if isinstance(calls, list):
            return [self.get(call) for call in calls]
        if calls.value is PENDING:
            assert timeout is not None, "this would wait for ever"
            raise GetTimeoutError
        if isinstance(calls.value, Exception):
            raise calls.value
        return calls.value

    def wait(self, calls: list[Answer], num_returns: int = 1, timeout: float = 0) -> Any:
        """Those that have come to something."""
        del num_returns, timeout
        done = [call for call in calls if call.value is not PENDING]
        return done, [call for call in calls if call not in done]

    def kill(self, actor: Actor) -> None:
        """Note it."""
        actor.killed = True

    def nodes(self) -> list[dict[str, Any]]:
        """All there are."""
        return [{"NodeID": node, "Alive": True} for node in self.alive]

    def put(self, value: Any) -> Answer:
        """A reference to it."""
        return Answer(value)

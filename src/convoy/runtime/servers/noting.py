"""Steps that are not reported yet, and what has gone to the shards for each."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from convoy.comm import Traffic
from convoy.runtime.servers.client import Exchange, ShardClient
from convoy.strategies.server import Push


@dataclass(kw_only=True)
class Begun:
    """A step that is not reported yet."""

    step: int
    record: dict[str, Any] | None = None
    """Once it has been computed."""
    exchange: Exchange | None = None
    """What went to the shards at its end, and is to come back."""
    push: Exchange | None = None
    """What its gradient went with: the same, or a later step's."""
    traffic: Traffic | None = None
    """What went to this replica's other devices."""

    @property
    def is_complete(self) -> bool:
        """Whether the shards have what came of it."""
        if self.record is None or self.push is None or not self.push.is_answered:
            return False
        return self.exchange is None or self.exchange.is_answered


class Noting:
    """The server as the program sees it; steps are told what goes out for them."""

    def __init__(self, server: ShardClient, begun: deque[Begun]) -> None:
        self._server, self._begun = server, begun

    def fetch(self) -> None:
        """As the client's."""
        self._server.fetch()

    def exchange(self, push: Push | None, *, fetch: bool) -> None:
        """As the client's; it belongs to the step that was begun last."""
        self._server.exchange(push, fetch=fetch)
        self._begun[-1].exchange = self._server.issued
        if push is not None:
            for begun in self._begun:
                begun.push = begun.push or self._server.issued

    def settle(self) -> None:
        """As the client's."""
        self._server.settle()

    def finish(self) -> None:
        """As the client's."""
        self._server.finish()

"""Whether the cloud is worth asking: not while it has just failed.

closed ── a failure ──▶ open ── after a while ──▶ a probe ──▶ closed, or open for twice as long

A probe that comes through says that somebody is there; only an answer says that all is well, and
that the next wait may be short again.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S, LONGEST_S = 0.25, 2.0


@dataclass(kw_only=True)
class Breaker:
    """Of one server."""

    is_open: bool = False
    wait_s: float = FIRST_S
    """Until the next probe."""

    def trip(self) -> bool:
        """A request failed; whether that is news."""
        news, self.is_open = not self.is_open, True
        return news

    def probed(self, *, is_there: bool) -> None:
        """What a probe said."""
        self.is_open = not is_there
        self.wait_s = min(2 * self.wait_s, LONGEST_S)

    def answered(self) -> None:
        """An inference came back."""
        self.wait_s = FIRST_S

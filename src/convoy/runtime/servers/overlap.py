"""Whether a replica computes on while its pushes are answered, found out as it goes.

What a plan knows of an exchange is its bytes and the links; where nothing was measured, not even
that. What it takes in truth is the replica's to see: how long it is blocked beside how long it
computes. Older weights are the price of overlapping, so that little waiting is put up with.
"""

from __future__ import annotations

from convoy.strategies.server import WORTH_OVERLAPPING, ServerTerms

WINDOW = 20
"""Steps that are looked at together, and"""
WINDOWS = 2
"""how many of these in a row have to say the same: a shard that is restored is waited for once."""


class Overlap:
    """One replica's number of pushes that may be unanswered while it computes on."""

    def __init__(self, terms: ServerTerms) -> None:
        self.depth = terms.depth
        self._looks = terms.deepens and terms.depth == 0
        self._steps = self._in_a_row = 0
        self._wall_s = self._blocked_s = 0.0

    def note(self, wall_s: float, blocked_s: float) -> None:
        """A step took so long, and for so much of it the replica waited for shards."""
        if not self._looks:
            return
        self._steps += 1
        self._wall_s += wall_s
        self._blocked_s += blocked_s
        if self._steps < WINDOW:
            return
        waits = self._blocked_s > WORTH_OVERLAPPING * (self._wall_s - self._blocked_s)
        self._in_a_row = self._in_a_row + 1 if waits else 0
        self._steps, self._wall_s, self._blocked_s = 0, 0.0, 0.0
        if self._in_a_row == WINDOWS:
            self.depth, self._looks = 1, False

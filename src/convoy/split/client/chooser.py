"""Which way batches take: the best by what has been measured, and not another at every noise.

What a way costs is `convoy.split.costs`'s to say, as it is when `convoy split plan` asks; here its
figures are those that the client has measured last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from convoy.split.client.link_meter import LinkMeter
from convoy.split.client.options import Options
from convoy.split.client.ways import Way
from convoy.split.costs import LOCAL, PICTURE, SPLIT, Candidate, Cost, Curve, Wish, cost

MARGIN = 0.1
"""What another way has to save."""
TIMES, EVERY_S = 3, 0.15
"""How often one has to, and how far apart."""
FIRST_HELD_S, LONGEST_HELD_S = 1.0, 10.0
"""How long a choice is kept: at first, and after choices have changed again and again."""
MUCH = 0.3
"""What another way has to save for a choice not to be kept so long."""
STEADY = 4
"""A choice that has lasted so many times longer than it had to be kept is no more of a hurry."""


@dataclass(kw_only=True)
class Chooser:
    """Of one client."""

    ways: Sequence[Way]
    options: Options
    meter: LinkMeter
    current: Way | None = None
    wish: Wish = field(init=False)
    _beaten: int = 0
    """How often in a row another way would have been better."""
    _judged: float = float("-inf")
    _since: float = float("-inf")
    """When the choice was made."""
    _held_s: float = FIRST_HELD_S
    """How long it is kept."""

    def __post_init__(self) -> None:
        given = self.options
        self.wish = Wish(
            objective=given.objective,
            count=given.batch_size,
            images_per_s=given.rate,
            deadline_s=given.deadline_s,
        )

    def choose(self, now: float) -> Way:
        """The way that the next batch is to take, while the cloud is there."""
        ways = [way for way in self.ways if way.refused_until <= now]
        if self.options.way is not None:
            asked = [way for way in ways if way.name == self.options.way]
            return self._take((asked or [way for way in ways if way.is_edge])[0], now)
        if self.wish.objective == "privacy":  # pictures are not sent, whatever they would save
            ways = [way for way in ways if way.is_edge or way.entry is not None]
        if self.meter.bandwidth_bytes_s is None:
            return self._take(self._first(ways), now)
        if self.current in ways and now < self._judged + EVERY_S:
            return self.current
        self._judged = now
        costs = self._costs(ways, now)
        best = min(costs, key=lambda way: costs[way])
        if self.current not in costs:
            return self._take(best, now)
        saved = 1 - costs[best] / costs[self.current] if costs[self.current] else 0.0
        self._beaten = self._beaten + 1 if saved > MARGIN else 0
        is_kept = saved <= MUCH and now < self._since + self._held_s
        if self._beaten < TIMES or is_kept:
            return self.current
        is_steady = now > self._since + STEADY * self._held_s
        self._held_s = FIRST_HELD_S if is_steady else min(2 * self._held_s, LONGEST_HELD_S)
        return self._take(best, now)

    def foreseen(self, way: Way, now: float, count: int | None = None) -> tuple[Candidate, Cost]:
        """The way as it is now, and what a batch of `count` images that goes it takes."""
        count = count or self.wish.count
        candidate = self._candidate(way, now, count)
        return candidate, cost(candidate, self.meter.link(), count)

    def _costs(self, ways: Sequence[Way], now: float) -> dict[Way, float]:
        """What is to be least, of those ways that will do; of the fastest, where none keeps up."""
        all_ways = {way: self.foreseen(way, now) for way in ways}
        in_time = {way: pair for way, pair in all_ways.items() if not self.wish.is_late(*pair)}
        good = {way: pair for way, pair in in_time.items() if self.wish.keeps_up(pair[1])}
        if not good:
            return {way: 1 / found.images_per_s for way, (_, found) in in_time.items()}
        return {way: self.wish.measure(pair[1]) for way, pair in good.items()}

    def _candidate(self, way: Way, now: float, count: int) -> Candidate:
        """The way as it is now, for batches of `count`."""

        def curve(value: float) -> Curve:
            return Curve(sizes=(count,), values=(value,))

        edge_s = way.edge_s(count, now)
        if way.is_edge:
            return Candidate(name=way.name, kind=LOCAL, edge_s=curve(edge_s))
        server_s = way.server_s(count, now)
        if server_s is None:
            left_s = max(0.0, self._whole_s(way, now, count) - edge_s)
            server_s = self._server_per_edge(now) * left_s
        return Candidate(
            name=way.name,
            kind=PICTURE if way.entry is None else SPLIT,
            edge_s=curve(edge_s),
            sent_bytes=curve(way.sent_bytes(count)),
            cloud_s=curve(server_s),
        )

    def _take(self, way: Way, now: float) -> Way:
        if way is not self.current:
            self._since = now
        self.current, self._beaten = way, 0
        return way

    def _first(self, ways: Sequence[Way]) -> Way:
        """Before anything is known of the link: what is lightest finds out most cheaply."""
        sending = [way for way in ways if not way.is_edge]
        return min(sending or ways, key=lambda way: way.sent_bytes(self.options.batch_size))

    def _whole_s(self, way: Way, now: float, count: int) -> float:
        """What all of its network takes on the edge; 0 where that is not known."""
        whole = [w for w in self.ways if w.is_edge and w.variant is way.variant]
        return whole[0].edge_s(count, now) if whole else 0.0

    def _server_per_edge(self, now: float) -> float:
        """The server's seconds by the edge's for the same work, as far as is known."""
        known, count = [], self.options.batch_size
        for way in self.ways:
            server_s, whole_s = way.server_s(count, way.noted), self._whole_s(way, now, count)
            left_s = whole_s - way.edge_s(count, now)
            if server_s and left_s > 0.1 * whole_s > 0:
                known.append(server_s / left_s)
        return min(known, default=0.0)

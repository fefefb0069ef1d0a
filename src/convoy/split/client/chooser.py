"""Which way batches take: the best by what has been measured, and not another at every noise.

A batch takes seconds on the edge, of the link and of the server. When several are under way, the
slowest of the three sets the pace; one alone takes their sum and a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from convoy.split.client.link_meter import LinkMeter
from convoy.split.client.options import Options
from convoy.split.client.ways import Way

MARGIN = 0.1
"""What another way has to save."""
TIMES, EVERY_S = 3, 0.15
"""How often it has to, and how far apart."""
OF_DEADLINE = 0.8
"""A way that is foreseen to take more than this part of the deadline is not gone."""
FADE_S = 30.0
"""After so long without asking, a server is thought to be twice as fast as it was then."""
PICTURE = 1e12
"""Under `privacy`, bytes that a way costs which sends the picture itself."""


@dataclass(kw_only=True)
class Chooser:
    """Of one client."""

    ways: Sequence[Way]
    options: Options
    meter: LinkMeter
    current: Way | None = None
    _rival: Way | None = None
    _times: int = 0
    _judged: float = field(default=float("-inf"))

    def choose(self, now: float) -> Way:
        """The way that the next batch is to take, while the cloud is there."""
        ways = [way for way in self.ways if way.refused_until <= now]
        if self.options.way is not None:
            asked = [way for way in ways if way.name == self.options.way]
            self.current = (asked or [way for way in ways if way.is_edge])[0]
            return self.current
        if self.meter.bandwidth_bytes_s is None:  # what is lightest finds out most cheaply
            sending = [way for way in ways if not way.is_edge] or ways
            self.current = min(sending, key=lambda way: way.bytes_per_image)
            return self.current
        if self.current in ways and now < self._judged + EVERY_S:
            return self.current
        self._judged = now
        costs = {w.name: self.cost(w, now) for w in ways if self.is_in_time(w, now)}
        best = min((way for way in ways if way.name in costs), key=lambda w: costs[w.name])
        if self.current is None or self.current.name not in costs:
            self._take(best)
        elif costs[best.name] < (1 - MARGIN) * costs[self.current.name]:
            self._times = self._times + 1 if best is self._rival else 1
            self._rival = best
            if self._times >= TIMES:
                self._take(best)
        else:
            self._rival, self._times = None, 0
        assert self.current is not None
        return self.current

    def _take(self, way: Way) -> None:
        self.current, self._rival, self._times = way, None, 0

    def parts(self, way: Way, now: float) -> tuple[float, float, float]:
        """A batch's seconds on the edge, of the link and of the server."""
        if way.is_edge:
            return way.edge_s, 0.0, 0.0
        server_s = way.server_s
        if server_s is None:
            server_s = self._server_per_edge() * max(0.0, way.whole_s - way.edge_s)
        elif way is not self.current:
            server_s *= 0.5 ** ((now - way.server_noted) / FADE_S)
        return way.edge_s, self.meter.way_s(way.bytes_per_image * self._count), server_s

    def latency_s(self, way: Way, now: float) -> float:
        """Of one batch alone."""
        return sum(self.parts(way, now)) + (0.0 if way.is_edge else self.meter.rtt_s or 0.0)

    def is_in_time(self, way: Way, now: float) -> bool:
        """Whether it is foreseen to keep the deadline; the edge always is."""
        return way.is_edge or self.latency_s(way, now) <= OF_DEADLINE * self.options.deadline_s

    def cost(self, way: Way, now: float) -> float:
        """What is to be small."""
        latency_s, sent = self.latency_s(way, now), 0.0 if way.is_edge else way.bytes_per_image
        match self.options.objective:
            case "throughput":
                return max(self.parts(way, now)) + 0.01 * latency_s
            case "latency":
                return latency_s
            case "bytes":
                return sent + 0.01 * latency_s
            case "privacy":
                return sent + 0.01 * latency_s + PICTURE * (not way.is_edge and way.entry is None)

    @property
    def _count(self) -> int:
        return self.options.batch_size

    def _server_per_edge(self) -> float:
        """The server's seconds by the edge's for the same work, as far as is known."""
        known = [
            way.server_s / (way.whole_s - way.edge_s)
            for way in self.ways
            if way.server_s is not None and way.whole_s - way.edge_s > 0.1 * way.whole_s > 0
        ]
        return min(known, default=0.0)

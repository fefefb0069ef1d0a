"""Which way batches take: the best by what has been measured, and not another at every noise.

A batch takes seconds on the edge, of the link and of the server. When several are under way, the
slowest of the three sets the pace; one alone takes their sum and a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convoy.split.client.link_meter import LinkMeter
from convoy.split.client.options import Options
from convoy.split.client.ways import Way

MARGIN = 0.1
"""What another way has to save."""
TIMES, EVERY_S = 3, 0.15
"""How often one has to, and how far apart."""
OF_DEADLINE = 0.8
"""A way that is foreseen to take more than this part of the deadline is not gone."""
PICTURE = 1e12
"""Under `privacy`, bytes that a way costs which sends the picture itself."""


@dataclass(kw_only=True)
class Chooser:
    """Of one client."""

    ways: Sequence[Way]
    options: Options
    meter: LinkMeter
    current: Way | None = None
    _beaten: int = 0
    """How often in a row another way would have been better."""
    _judged: float = float("-inf")

    def choose(self, now: float) -> Way:
        """The way that the next batch is to take, while the cloud is there."""
        ways = [way for way in self.ways if way.refused_until <= now]
        if self.options.way is not None:
            asked = [way for way in ways if way.name == self.options.way]
            return self._take((asked or [way for way in ways if way.is_edge])[0])
        if self.meter.bandwidth_bytes_s is None:
            return self._take(self._first(ways))
        if self.current in ways and now < self._judged + EVERY_S:
            return self.current
        self._judged = now
        costs = {way: self.cost(way, now) for way in ways if self.is_in_time(way, now)}
        best = min(costs, key=lambda way: costs[way])
        if self.current not in costs:
            return self._take(best)
        if costs[best] >= (1 - MARGIN) * costs[self.current]:
            self._beaten = 0
            return self.current
        self._beaten += 1
        return self._take(best) if self._beaten >= TIMES else self.current

    def _take(self, way: Way) -> Way:
        self.current, self._beaten = way, 0
        return way

    def _first(self, ways: Sequence[Way]) -> Way:
        """Before anything is known of the link: what is lightest finds out most cheaply."""
        sending = [way for way in ways if not way.is_edge]
        if self.options.objective == "privacy":
            sending = [way for way in sending if way.entry is not None]
        return min(sending or ways, key=lambda way: way.bytes_per_image)

    def parts(self, way: Way, now: float, count: int | None = None) -> tuple[float, float, float]:
        """Seconds of a batch on the edge, of the link and of the server."""
        count = count or self.options.batch_size
        edge_s = way.edge_s(count, now)
        if way.is_edge:
            return edge_s, 0.0, 0.0
        server_s = way.server_s(count, now)
        if server_s is None:
            server_s = self._server_per_edge(now) * max(0.0, self._whole_s(way, now) - edge_s)
        way_s = self.meter.way_s(way.bytes_per_image * count)
        return edge_s + self.meter.request_s, way_s, server_s

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

    def _whole_s(self, way: Way, now: float) -> float:
        """What all of its network takes on the edge; 0 where that is not known."""
        whole = [w for w in self.ways if w.is_edge and w.variant is way.variant]
        return whole[0].edge_s(self.options.batch_size, now) if whole else 0.0

    def _server_per_edge(self, now: float) -> float:
        """The server's seconds by the edge's for the same work, as far as is known."""
        known = []
        for way in self.ways:
            server_s = way.server_s(self.options.batch_size, way.noted)
            left_s = self._whole_s(way, now) - way.edge_s(self.options.batch_size, now)
            if server_s and left_s > 0.1 * self._whole_s(way, now) > 0:
                known.append(server_s / left_s)
        return min(known, default=0.0)

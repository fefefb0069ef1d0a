"""What the link carries, learnt from requests as they go.

Requests share the uplink, one after another. One's way begins when it is sent, or when the one
before has arrived, if that is later; and it has arrived when its answer has come, less the
server's own seconds and half a round trip:

    sent ──▶ way of its bytes ──▶ arrived ── server_s ──▶ answer
             ▲ not before the one ahead has arrived

Requests of more than a frame do not wait for one another: HTTP/2 sends frames of them in turns, so
that the first arrives late and the others right after it. Only together do they tell what the link
carries, and only when they are more than what is still under way, of which parts have arrived too.

A server that does not say its seconds is taken to have worked from then, or from the answer
before, to the answer; what the link carries is for probes to find out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from convoy.split.costs import Link

HEADERS_BYTES = 300
"""What a request takes on the wire besides its payload: gRPC, HTTP/2, TLS and TCP."""
LEAST_BYTES = 8_192
"""Fewer say little of a link: buffers and token buckets let them pass at once."""
SMALL_BYTES = 4_096
"""Requests up to this size tell the round trip, and nothing else."""
PLAIN = 0.5
"""A request whose way is shorter than this part of a round trip tells nothing of its length."""
LEAST_S = 5e-5
"""Clocks and loops are no finer: a link that is faster than they can tell seems no faster."""
NEW = 0.5
"""How much a new figure counts against those before, on a scale of ratios."""
FRAME_BYTES = 16_384
"""Of HTTP/2, as gRPC sends them: what is no larger travels whole."""
UNDER_WAY = 2
"""How many times the bytes still under way have to have arrived for a figure."""
RTT_S = 20.0
"""After so long of longer round trips only, the shortest is taken to be twice as long."""


@dataclass(kw_only=True)
class LinkMeter:
    """Of one server's link."""

    bandwidth_bytes_s: float | None = None
    """None: nothing has been measured yet."""
    rtt_s: float | None = None
    measured: float = float("-inf")
    """When the bandwidth was."""
    request_s: float = 0.0
    """What a request takes of this machine, whatever it carries."""
    _rtt_at: float = 0.0
    _arrived: float = 0.0
    """When the latest request had arrived."""
    _left: float = 0.0
    """When the latest answer of a server that says no times had left it."""
    _bytes: float = 0.0
    _seconds: float = 0.0

    def note(
        self,
        payload_bytes: int,
        sent: float,
        answered: float,
        server_s: float,
        under_way_bytes: int = 0,
    ) -> None:
        """A request that was answered; call this in the order of the answers.

        Args:
            payload_bytes: of the request.
            sent: when, as `time.perf_counter` tells it.
            answered: likewise.
            server_s: how long the server had it.
            under_way_bytes: of other requests that were sent and have not been answered.
        """
        size = payload_bytes + HEADERS_BYTES
        away = max(answered - sent - server_s, LEAST_S)
        if size <= SMALL_BYTES or self.rtt_s is None:
            rtt = max(away - self.way_s(payload_bytes), LEAST_S)
            self._round_trip(rtt, answered)
        rtt = min(self.rtt_s or 0.0, away)
        arrival = answered - server_s - rtt / 2
        was_alone = self._arrived <= sent + rtt / 2
        begin = sent + rtt / 2 if was_alone else self._arrived
        self._arrived = max(self._arrived, arrival)
        if size <= SMALL_BYTES or (was_alone and arrival - begin < PLAIN * rtt):
            return
        self._bytes += size
        self._seconds += max(arrival - begin, 0.0)
        mixed = under_way_bytes if size > FRAME_BYTES else 0
        enough = max(LEAST_BYTES, UNDER_WAY * mixed)
        if self._bytes >= enough and self._seconds >= max(PLAIN * rtt, LEAST_S):
            self._rate(self._bytes / self._seconds)
            self._bytes = self._seconds = 0.0
            self.measured = answered

    def note_silent(self, payload_bytes: int, sent: float, answered: float) -> float:
        """Likewise, by a server that does not say its seconds: what it seems to have worked."""
        half_s = (self.rtt_s or 0.0) / 2
        left = answered - half_s
        arrival = min(max(sent + half_s, self._arrived) + self.way_s(payload_bytes), left)
        worked_s = left - max(arrival, self._left)
        self._arrived, self._left = arrival, left
        return max(worked_s, 0.0)

    def note_probe(self, size: int, small_s: float, large_s: float, now: float) -> None:
        """Two questions, one with nothing and one with `size` bytes, and what each took."""
        self.measured = now
        self._round_trip(small_s, now)
        self._rate(size / max(large_s - small_s, LEAST_S))

    def note_late(self, payload_bytes: int, seconds: float) -> None:
        """A request had not been answered after so long: the link is no faster than that."""
        if self.bandwidth_bytes_s is not None and payload_bytes + HEADERS_BYTES > SMALL_BYTES:
            most = (payload_bytes + HEADERS_BYTES) / seconds
            self.bandwidth_bytes_s = min(self.bandwidth_bytes_s, most)

    def _round_trip(self, seen_s: float, now: float) -> None:
        """The shortest of late: longer ones are those of queues, here and there."""
        risen_s = seen_s if self.rtt_s is None else self.rtt_s * 2 ** ((now - self._rtt_at) / RTT_S)
        self.rtt_s, self._rtt_at = min(seen_s, risen_s), now

    def _rate(self, rate: float) -> None:
        before = self.bandwidth_bytes_s
        self.bandwidth_bytes_s = rate if before is None else before * (rate / before) ** NEW

    def way_s(self, payload_bytes: float) -> float:
        """How long a request's bytes are on their way; 0 where nothing is known."""
        if self.bandwidth_bytes_s is None:
            return 0.0
        return (payload_bytes + HEADERS_BYTES) / self.bandwidth_bytes_s

    def link(self) -> Link:
        """As `convoy.split.costs` takes it; one that nothing is known of carries all at once."""
        rate = self.bandwidth_bytes_s
        return Link(
            bandwidth_bit_s=math.inf if rate is None else 8 * rate,
            latency_s=max((self.rtt_s or 0.0) - self.request_s, 0.0) / 2,
            overhead_s=self.request_s,
            edge_request_s=self.request_s,
            cloud_request_s=0.0,  # what the server says has it in it
            overhead_bytes=HEADERS_BYTES,
            framing=1.0,
        )

    def forget(self) -> None:
        """The link has been away: what is under way tells nothing."""
        self._arrived = self._bytes = self._seconds = 0.0

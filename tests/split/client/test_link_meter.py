"""The link as requests tell of it, against a link whose figures are known."""

from __future__ import annotations

import random

import pytest

from convoy.split.client.link_meter import HEADERS_BYTES, LinkMeter


class PlayedLink:
    """One request's bytes after another's, half a round trip each way, and a server."""

    def __init__(self, bytes_s: float, rtt_s: float, server_s: float) -> None:
        self.bytes_s, self.rtt_s, self.server_s = bytes_s, rtt_s, server_s
        self._free = self._idle = 0.0

    def send(self, payload_bytes: int, at: float) -> tuple[float, float]:
        """When the answer comes, and the seconds that the server says."""
        self._free = max(at, self._free) + (payload_bytes + HEADERS_BYTES) / self.bytes_s
        arrived = self._free + self.rtt_s / 2
        self._idle = max(arrived, self._idle) + self.server_s
        return self._idle + self.rtt_s / 2, self._idle - arrived


def met(link: PlayedLink) -> LinkMeter:
    """A meter that knows the round trip."""
    meter = LinkMeter()
    meter.note(0, 0.0, link.rtt_s, 0.0)
    return meter


@pytest.mark.parametrize("mbit", [1, 10, 100])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("server_s", [0.0, 0.01])
def test_the_bandwidth_is_found(mbit: int, depth: int, server_s: float) -> None:
    link = PlayedLink(mbit * 125_000, 0.002, server_s)
    meter, draw = met(link), random.Random(0)
    pending: list[tuple[float, int, float, float]] = []
    now = 1.0
    for _ in range(60):
        size = draw.randint(10_000, 40_000)
        answered, took = link.send(size, now)
        pending.append((answered, size, now, took))
        if len(pending) >= depth:
            answered, size, sent, took = pending.pop(0)
            meter.note(size, sent, answered, took)
            now = max(now, answered)
    assert meter.bandwidth_bytes_s == pytest.approx(mbit * 125_000, rel=0.05)
    assert meter.rtt_s == pytest.approx(0.002, rel=0.05)


@pytest.mark.parametrize("depth", [2, 4, 8])
@pytest.mark.parametrize("mbit", [5, 100])
def test_requests_that_travel_in_pieces_tell_the_bandwidth_together(depth: int, mbit: int) -> None:
    """A link that all requests have equal parts of, in steps of a hundredth of a request."""
    size, rtt_s, bytes_s = 300_000, 0.002, mbit * 125_000
    meter = met(PlayedLink(bytes_s, rtt_s, 0.0))
    left: dict[int, float] = {}
    sent: dict[int, float] = {}
    now, step_s = 1.0, size / 100 / bytes_s
    seen = []
    for number in range(40 * depth):
        while len(left) >= depth:
            now += step_s
            for one in left:
                left[one] -= step_s * bytes_s / len(left)
            for one in [one for one, bytes_left in left.items() if bytes_left <= 0]:
                del left[one]
                meter.note(size, sent[one], now + rtt_s, 0.0, size * len(left))
                seen.append(meter.bandwidth_bytes_s)
        left[number], sent[number] = size + HEADERS_BYTES, now
    known = [rate for rate in seen[2 * depth :] if rate is not None]
    assert min(known) > 0.7 * bytes_s  # at first pieces are under way that do not count yet
    assert max(known) < 1.1 * bytes_s
    assert meter.bandwidth_bytes_s == pytest.approx(bytes_s, rel=0.1)


def test_an_edge_that_is_the_slowest_does_not_make_the_link_seem_slow() -> None:
    link = PlayedLink(1_250_000, 0.002, 0.001)
    meter = met(link)
    for number in range(40):
        answered, took = link.send(10_000, number * 0.1)
        meter.note(10_000, number * 0.1, answered, took)
    assert meter.bandwidth_bytes_s == pytest.approx(1_250_000, rel=0.05)


def test_a_change_is_noticed_within_a_few_requests() -> None:
    meter = met(PlayedLink(12_500_000, 0.002, 0.0))
    now = 1.0
    for mbit, expected in ((100, 12_500_000), (5, 625_000), (100, 12_500_000)):
        link = PlayedLink(mbit * 125_000, 0.002, 0.0)
        for _ in range(6):
            answered, _took = link.send(20_000, now)
            meter.note(20_000, now, answered, 0.0)
            now = answered
        assert meter.bandwidth_bytes_s == pytest.approx(expected, rel=0.1)


def test_small_requests_tell_the_round_trip_and_no_bandwidth() -> None:
    meter = LinkMeter()
    for number, away in enumerate((0.004, 0.003, 0.009)):
        meter.note(100, number, number + away, 0.0)
    assert meter.bandwidth_bytes_s is None
    assert meter.rtt_s == pytest.approx(0.003 * 2 ** (1.006 / 20))  # the shortest, a second old
    assert meter.way_s(10**9) == 0.0


def test_an_outage_is_not_taken_for_a_slow_link() -> None:
    link = PlayedLink(1_250_000, 0.002, 0.0)
    meter = met(link)
    for number in range(5):
        answered, _ = link.send(20_000, float(number))
        meter.note(20_000, float(number), answered, 0.0)
    meter.forget()
    answered, _ = link.send(20_000, 500.0)
    meter.note(20_000, 500.0, answered, 0.0)
    assert meter.bandwidth_bytes_s == pytest.approx(1_250_000, rel=0.05)


def test_a_probe_is_two_questions_whose_difference_tells() -> None:
    meter = LinkMeter()
    for _ in range(8):
        meter.note_probe(100_000, 0.020, 0.100, 7.0)  # a busy machine: 20 ms for nothing at all
    assert meter.measured == 7.0
    assert meter.bandwidth_bytes_s == pytest.approx(1_250_000)
    assert meter.rtt_s == pytest.approx(0.020)


def test_what_is_not_answered_says_that_a_link_is_no_faster() -> None:
    meter = LinkMeter(bandwidth_bytes_s=1_400_000, rtt_s=0.002)
    meter.note_late(10_000, 0.4)
    assert meter.bandwidth_bytes_s == pytest.approx((10_000 + HEADERS_BYTES) / 0.4)
    meter.note_late(100, 0.4)  # so few tell nothing
    assert meter.bandwidth_bytes_s == pytest.approx((10_000 + HEADERS_BYTES) / 0.4)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("bytes_s", [125_000, 12_500_000])
def test_what_a_silent_server_works_is_found(depth: int, bytes_s: int) -> None:
    link = PlayedLink(bytes_s, 0.002, 0.01)
    meter = met(link)
    meter.note_probe(100_000, 0.002, 0.002 + 100_000 / bytes_s, 0.002)
    answers: list[float] = []
    for number in range(50):
        sent = max(0.002, answers[number - depth] if number >= depth else 0.0)
        answers.append(link.send(5_000, sent)[0])
        worked_s = meter.note_silent(5_000, sent, answers[-1])
        assert worked_s == pytest.approx(link.server_s, rel=0.05)
    assert meter.bandwidth_bytes_s == pytest.approx(bytes_s)  # it was not what kept them

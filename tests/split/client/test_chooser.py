"""Which way is chosen, and when another is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from convoy.split.client.breaker import FIRST_S, LONGEST_S, Breaker
from convoy.split.client.chooser import EVERY_S, TIMES, Chooser
from convoy.split.client.link_meter import HEADERS_BYTES, LinkMeter
from convoy.split.client.options import Objective, Options
from convoy.split.client.ways import FIRST_AVOIDED_S, LONGEST_AVOIDED_S, Way
from convoy.split.costs import Curve

VARIANT: Any = SimpleNamespace(name="")
COUNT = 100


def way(name: str, edge_s: float, size: float, server_s: float = 0.001) -> Way:
    """Of which so many seconds of batches are known, and bytes of an image."""
    made = Way(name=name, variant=VARIANT, accuracy=0.9)
    sends(made, size)
    made.timed = Curve(sizes=(COUNT,), values=(edge_s,))
    if size:
        made.address, made.codec = SimpleNamespace(), SimpleNamespace()  # type: ignore[assignment]
        made.answered(server_s, COUNT)
    if name.startswith("pool"):
        made.entry = SimpleNamespace()  # type: ignore[assignment]
    return made


def sends(of: Way, size: float) -> None:
    """Say how many bytes an image has."""
    of.sent = Curve(sizes=(1,), values=(float(size),))


def server(of: Way, seconds: float, at: float = 0.0) -> None:
    """Say what it takes the server, as of when."""
    of.server_image_s, of.noted = seconds / COUNT, at


def chooser(objective: Objective = "throughput", **options: Any) -> Chooser:
    """Of batches of 100: 30 ms on the edge, 20 ms and few bytes, or 1 ms and many."""
    ways = [
        way("edge", 0.030, 0),
        way("pool2/uint4+zstd", 0.020, 135),
        way("picture/mosaic", 0.004, 390),
        way("picture/uint8", 0.001, 3072),
    ]
    meter = LinkMeter(rtt_s=0.002)
    settings = Options(objective=objective, batch_size=100, **options)
    return Chooser(ways=ways, options=settings, meter=meter)


def set_link(of: Chooser, mbit: float) -> None:
    of.meter.bandwidth_bytes_s = mbit * 125_000


def settle(of: Chooser, begin: float = 0.0) -> str:
    """What is chosen once it has had time."""
    for number in range(20):
        chosen = of.choose(begin + number * (EVERY_S + 0.01))
    return chosen.name


@pytest.mark.parametrize(
    ("mbit", "expected"),
    [
        (0.5, "edge"),  # features alone would take 0.22 s
        (10, "pool2/uint4+zstd"),  # 20 ms of edge, against 31 ms of a mosaic's way
        (50, "picture/mosaic"),
        (1000, "picture/uint8"),
    ],
)
def test_throughput_is_set_by_the_slowest_part(mbit: float, expected: str) -> None:
    of = chooser()
    set_link(of, mbit)
    assert settle(of) == expected
    chosen = next(w for w in of.ways if w.name == expected)
    sent_s = (chosen.sent_bytes(100) + HEADERS_BYTES) / (mbit * 125_000)
    _, found = of.foreseen(chosen, 0.0)
    assert found.link_s == pytest.approx(sent_s if chosen.sent_bytes(100) else 0.0)


def test_a_request_takes_the_edge_something_whatever_it_carries() -> None:
    of = chooser()
    set_link(of, 1000)
    assert settle(of) == "picture/uint8"
    of.meter.request_s = 0.035  # more than all of the network
    assert settle(of, 100.0) == "edge"


def test_latency_is_their_sum() -> None:
    of = chooser("latency")
    set_link(of, 10)  # 20 + 11 + 1 + 2 ms, against 30 on the edge
    assert settle(of) == "edge"
    set_link(of, 1000)
    assert settle(of, 100.0) == "picture/uint8"


def test_bytes_and_privacy() -> None:
    for objective in ("bytes", "privacy"):
        of = chooser(objective)  # type: ignore[arg-type]
        set_link(of, 1000)
        assert settle(of) == "edge"  # which sends nothing at all
        of.ways = of.ways[1:]
        assert settle(of, 100.0) == "pool2/uint4+zstd"
    of = chooser("privacy")
    of.ways = [way("pool1/uint8", 0.01, 5000), way("picture/mosaic", 0.004, 390)]
    set_link(of, 1000)
    assert settle(of) == "pool1/uint8"


def test_privacy_sends_no_picture_however_many_images_come() -> None:
    for rate in (60.0, 1e6):  # which only pictures keep up with, and which nothing does
        of = chooser("privacy", rate=rate)
        of.ways = [of.ways[0], way("pool1/uint8", 0.5, 5000), way("picture/uint8", 0.0001, 3072)]
        set_link(of, 1000)
        assert settle(of) in ("edge", "pool1/uint8")
    assert settle(chooser("privacy", way="picture/uint8")) == "picture/uint8"  # as it was told


def test_before_anything_is_known_what_is_lightest_is_sent() -> None:
    assert chooser().choose(0.0).name == "pool2/uint4+zstd"


def test_what_would_be_late_is_not_gone() -> None:
    of = chooser("throughput", deadline_s=0.03)
    set_link(of, 10)
    assert settle(of) == "edge"


def test_a_moments_noise_changes_nothing() -> None:
    of = chooser()
    set_link(of, 10)
    assert settle(of) == "pool2/uint4+zstd"
    now = 100.0
    for number in range(30):
        set_link(of, 1000 if number % TIMES == 0 else 10)
        now += EVERY_S + 0.01
        assert of.choose(now).name == "pool2/uint4+zstd"


def test_nor_does_a_gain_of_a_few_percent() -> None:
    of = chooser()
    set_link(of, 10)
    settle(of)
    sends(of.ways[2], 240)  # 19.4 ms, against 20
    assert settle(of, 100.0) == "pool2/uint4+zstd"
    sends(of.ways[2], 180)
    assert settle(of, 200.0) == "picture/mosaic"


def test_a_change_that_lasts_is_followed() -> None:
    of = chooser()
    set_link(of, 10)
    settle(of)
    set_link(of, 1000)
    chosen = [of.choose(50 + n * (EVERY_S + 0.01)).name for n in range(TIMES + 1)]
    assert chosen[TIMES - 2] == "pool2/uint4+zstd"
    assert chosen[-1] == "picture/uint8"


def test_a_way_that_has_become_too_slow_is_left_at_once() -> None:
    of = chooser()
    set_link(of, 1000)
    assert settle(of) == "picture/uint8"
    set_link(of, 5)  # 0.5 s for these pictures
    assert of.choose(1000.0).name != "picture/uint8"


def test_a_server_that_was_never_asked_is_judged_by_what_others_said() -> None:
    of = chooser()
    set_link(of, 1000)
    uint8 = of.ways[3]
    uint8.server_image_s = None
    server(of.ways[1], 0.010)  # for 10 ms of edge work: as fast as the edge
    server(of.ways[2], 0.026)
    assert of.foreseen(uint8, 0.0)[1].cloud_s == pytest.approx(0.029)


def test_a_server_that_was_slow_is_tried_again_in_time() -> None:
    of = chooser()
    set_link(of, 1000)
    for w in of.ways[1:]:
        server(w, 10.0)
    assert settle(of) == "edge"
    assert of.choose(60.0).name == "edge"
    assert settle(of, 400.0) != "edge"


def test_two_that_take_turns_as_the_best_are_still_better() -> None:
    of = chooser()
    set_link(of, 10)
    assert settle(of) == "pool2/uint4+zstd"
    rivals = of.ways[2:]
    of.ways[2].timed, of.ways[3].timed = (Curve(sizes=(COUNT,), values=(s,)) for s in (9e-3, 9e-3))
    chosen = []
    for number in range(TIMES + 1):
        sends(rivals[number % 2], 98)
        sends(rivals[1 - number % 2], 100)
        chosen.append(of.choose(100 + number * (EVERY_S + 0.01)))
    assert chosen[-1] in rivals


def test_what_failed_is_left_for_longer_each_time() -> None:
    of = chooser()
    set_link(of, 10)
    first = of.ways[1]
    assert settle(of) == first.name
    waits = [first.avoid(100.0) for _ in range(10)]
    assert waits[:4] == [FIRST_AVOIDED_S, 0.5, 1.0, 2.0]
    assert waits[-1] == LONGEST_AVOIDED_S
    assert of.choose(101.0) is not first
    first.answered(0.001, COUNT)
    assert first.avoid(500.0) == FIRST_AVOIDED_S


def test_privacy_sends_no_picture_to_get_to_know_a_link() -> None:
    assert chooser("privacy").choose(0.0).name == "pool2/uint4+zstd"
    of = chooser("privacy")
    of.ways = [of.ways[0], *of.ways[2:]]
    assert of.choose(0.0).name == "edge"


def test_a_few_images_are_not_taken_for_a_whole_batch() -> None:
    of = chooser("latency")
    set_link(of, 10)
    some, all_of_it = (of.foreseen(of.ways[3], 0.0, count)[1] for count in (1, None))
    assert some.edge_s == pytest.approx(all_of_it.edge_s / COUNT)
    assert some.link_s < all_of_it.link_s / 50


def test_a_machine_that_has_become_slow_and_is_fast_again_is_asked_again() -> None:
    edge = way("edge", 0.030, 0)
    edge.correction, edge.noted = 8.0, 100.0
    assert edge.edge_s(COUNT, 100.0) == pytest.approx(0.24)
    assert edge.edge_s(COUNT, 130.0) == pytest.approx(0.030 * 8**0.5)
    assert edge.edge_s(COUNT, 1000.0) == pytest.approx(0.030, rel=0.01)


def test_a_rate_to_keep_up_with() -> None:
    """The edge alone does 3,333 images a second, features 5,000 and a mosaic 25,000."""
    of = chooser("bytes", rate=4_000)
    set_link(of, 1000)
    assert settle(of) == "pool2/uint4+zstd"  # the fewest bytes of those that keep up
    of = chooser("bytes", rate=10_000)
    set_link(of, 1000)
    assert settle(of) == "picture/mosaic"
    of = chooser("bytes", rate=1e9)
    set_link(of, 1000)
    assert settle(of) == "picture/uint8"  # nothing does: the fastest


def two_alike() -> Chooser:
    """Over a slow link, beside an edge that is slower still."""
    of = chooser()
    set_link(of, 2)
    of.ways = of.ways[:3]
    of.ways[0].timed = Curve(sizes=(COUNT,), values=(1.0,))
    settle(of)
    return of


def small_gains(of: Chooser, begin: float, seconds: float) -> int:
    """How often the choice changes while two ways take turns at being a fifth better."""
    changes, now, before = 0, begin, of.choose(begin)
    while now < begin + seconds:
        now += EVERY_S + 0.01
        current = of.current
        for mine in of.ways[1:3]:
            sends(mine, 160 if mine is current else 128)
            mine.timed = Curve(sizes=(COUNT,), values=(0.001,))
        after = of.choose(now)
        changes, before = changes + (after is not before), after
    return changes


def test_choices_that_change_again_and_again_are_kept_longer() -> None:
    of = two_alike()
    assert 3 <= small_gains(of, 100.0, 20.0) <= 7
    assert small_gains(of, 120.0, 60.0) <= 6
    set_link(of, 1000)  # what saves much is not waited for
    of.ways[0].timed = Curve(sizes=(COUNT,), values=(0.0001,))
    chosen = [of.choose(180.5 + n * (EVERY_S + 0.01)).name for n in range(TIMES)]
    assert chosen[-1] == "edge"


def test_a_choice_that_has_lasted_is_not_held_against_the_next() -> None:
    of = two_alike()
    small_gains(of, 100.0, 60.0)
    for mine in of.ways[1:3]:
        sends(mine, 160)
    settle(of, 1000.0)
    assert small_gains(of, 2000.0, 2.5) >= 2  # as at the beginning


def test_the_way_that_was_asked_for_is_the_only_one() -> None:
    of = chooser(way="picture/uint8")
    set_link(of, 0.1)
    assert settle(of) == "picture/uint8"


def test_a_breaker_waits_longer_until_there_is_an_answer() -> None:
    breaker = Breaker()
    assert breaker.trip()
    assert not breaker.trip()  # it is open already
    waits = []
    for number in range(6):
        waits.append(breaker.wait_s)
        breaker.probed(is_there=number % 2 == 1)  # that somebody is there is not enough
    assert waits == [FIRST_S, 0.5, 1.0, LONGEST_S, LONGEST_S, LONGEST_S]
    assert not breaker.is_open
    breaker.answered()
    assert breaker.wait_s == FIRST_S

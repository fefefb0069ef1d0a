"""What all-reduces cost besides their bytes' way: the same seen from every side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.cost.curve import Curve
from convoy.cost.equal_nodes import EqualNodes
from convoy.cost.overhead import Overhead
from convoy.cost.profile import AllReduceProfile
from convoy.cost.world import with_way, world_of

from .profiles import device, link, profile

MACHINES = ("a", "b", "c", "d")


def measured(count: int) -> AllReduceProfile:
    return AllReduceProfile(
        payload_bytes=(8, 10**6), seconds=(0.002, 0.014), cpu_s=((0.0, 0.0),) * count
    )


@given(count=st.integers(2, 4), payload=st.integers(1, 10**8))
def test_equal_machines_are_equal_nodes(count: int, payload: int) -> None:
    """Measured among three, foreseen among two to four."""
    machines = [device(machine=name) for name in MACHINES]
    links = tuple(link(a, b, 1e8, 1e-4) for a in MACHINES for b in MACHINES if a < b)
    world = world_of(profile(machines, links=links, all_reduce=measured(3)))
    nodes = EqualNodes(world=world, bandwidth_bytes_s=1e8, latency_s=1e-4)
    one, other = world.fabric(tuple(range(count))), nodes.fabric(count)
    assert one.overhead_s(payload) == pytest.approx(other.overhead_s(payload))


def test_pieces_of_the_same_size_take_the_same() -> None:
    """Two rounds of 1 MB / 2 among two; among four, six rounds of 2 MB / 4."""
    of_two = Overhead(
        measured=Curve((4, 10**6), (0.002, 0.010)),
        delay_s=0.0,
        s_per_byte=0.0,
        among=2,
        count=2,
        rounds=2,
    )
    assert of_two(10**6) == pytest.approx(0.010)
    of_four = Overhead(**(vars(of_two) | {"count": 4, "rounds": 6}))
    assert of_four(2 * 10**6) == pytest.approx(3 * 0.010)


def test_a_changed_link_changes_the_bytes_way_only() -> None:
    """1 MB among two: 10 ms of 14 are its way over 100 MB/s; over ten times that, 1 ms is."""
    both = [device(machine="a"), device(machine="b")]
    taken = with_way(profile(both, links=(link("a", "b", 1e8, 0.0),), all_reduce=measured(2)))
    assert taken.all_reduce is not None
    assert taken.all_reduce.s_per_byte == pytest.approx(1e-8)
    faster = profile(both, links=(link("a", "b", 1e9, 0.0),), all_reduce=taken.all_reduce)
    for one in (taken, faster):
        assert world_of(one).fabric((0, 1)).overhead_s(10**6) == pytest.approx(0.004)

"""Bytes that ranks send in a schedule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from convoy.cost.schedule import (
    Collective,
    Compute,
    Operation,
    Schedule,
    Transfer,
    ring_share,
    sent_bytes,
)

SIZES = st.integers(0, 10**9)


@given(SIZES, st.integers(1, 64))
def test_a_rings_shares_are_even_and_sum_to_what_it_moves(payload: int, world_size: int) -> None:
    shares = [ring_share(payload, world_size, position) for position in range(world_size)]
    assert sum(shares) == 2 * (world_size - 1) * payload
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def test_rings_by_hand() -> None:
    assert ring_share(1000, 1, 0) == 0
    assert [ring_share(1000, 2, p) for p in range(2)] == [1000, 1000]
    assert [ring_share(1, 3, p) for p in range(3)] == [2, 1, 1]


def all_reduce(size: int, *ranks: int) -> Collective:
    return Collective(kind="all-reduce", ranks=ranks, payload_bytes=size)


def broadcast(size: int, *ranks: int) -> Collective:
    return Collective(kind="broadcast", ranks=ranks, payload_bytes=size)


def sent(*schedule: Operation, num_ranks: int = 3) -> list[int]:
    return [sent_bytes(schedule, rank) for rank in range(num_ranks)]


def test_computing_sends_nothing() -> None:
    assert sent(Compute(rank=0, phase="forward", samples=8)) == [0, 0, 0]
    assert sent_bytes((), 0) == 0


def test_transfers_count_at_their_source() -> None:
    there, back = (
        Transfer(source=0, destination=2, payload_bytes=100),
        Transfer(source=2, destination=0, payload_bytes=7),
    )
    assert sent(there) == [100, 0, 0]
    assert sent(there, there, back) == [200, 0, 7]


def test_broadcasts_count_at_their_root() -> None:
    assert sent(broadcast(100, 0, 1, 2)) == [200, 0, 0]
    assert sent(broadcast(100, 2, 0, 1)) == [0, 0, 200]
    assert sent(broadcast(100, 1)) == [0, 0, 0]


def test_all_reduces_are_rings() -> None:
    assert sent(all_reduce(300, 0, 1, 2)) == [400, 400, 400]
    assert sent(all_reduce(300, 0, 2)) == [300, 0, 300]
    assert sent(all_reduce(300, 1)) == [0, 0, 0]
    assert sent(all_reduce(1, 2, 0, 1)) == [1, 1, 2]  # the first of the ring, not rank 0


def test_fractions_of_bytes_add_up_over_the_all_reduces_of_a_group() -> None:
    """Three of a byte each are one of three, as a run counts them."""
    assert sent(*[all_reduce(1, 0, 1, 2)] * 3) == sent(all_reduce(3, 0, 1, 2)) == [4, 4, 4]
    assert sent(all_reduce(1, 0, 1), all_reduce(1, 0, 1, 2)) == [3, 2, 1]


@given(st.lists(SIZES, max_size=8), st.integers(2, 8))
def test_nothing_is_lost_between_ranks(sizes: list[int], num_ranks: int) -> None:
    ranks = tuple(range(num_ranks))
    schedule: Schedule = tuple(all_reduce(size, *ranks) for size in sizes)
    assert sum(sent(*schedule, num_ranks=num_ranks)) == 2 * (num_ranks - 1) * sum(sizes)


def test_operations_may_come_from_a_generator() -> None:
    assert sent_bytes((all_reduce(6, 0, 1) for _ in range(2)), 1) == 12

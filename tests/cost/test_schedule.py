"""Bytes that ranks send in a schedule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from convoy.cost.fabric import Fabric
from convoy.cost.schedule import (
    Collective,
    Compute,
    Operation,
    Schedule,
    Transfer,
    in_a_row,
    ranks_of,
    ring_share,
    sent_bytes,
)
from convoy.cost.simulate import simulate

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


def compute(rank: int, *after: int, phase: str = "forward") -> Compute:
    return Compute(rank=rank, phase=phase, samples=1, after=after)  # type: ignore[arg-type]


def waits(schedule: Schedule) -> list[tuple[int, ...]]:
    return [operation.after for operation in schedule]


def test_who_takes_part() -> None:
    assert ranks_of(compute(3)) == (3,)
    assert ranks_of(Transfer(source=2, destination=0, payload_bytes=1)) == (2, 0)
    assert ranks_of(all_reduce(1, 4, 0, 2)) == (4, 0, 2)


def test_a_rank_begins_its_next_step_when_it_has_ended_its_last() -> None:
    """Whatever the other does."""
    step = (compute(0), compute(1), compute(0, 0, phase="update"), compute(1, 1, phase="update"))
    joined = in_a_row([step] * 3)
    assert waits(joined) == [(), (), (0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,), (8,), (9,)]
    assert [o.step for o in joined if isinstance(o, Compute)] == [i for i in range(3) for _ in step]


def test_an_exchange_keeps_steps_together() -> None:
    step = (compute(0), compute(1), all_reduce(1, 0, 1))
    with_update = (*step[:2], all_reduce(1, 0, 1), compute(0, 0, 2), compute(1, 1, 2))
    assert waits(in_a_row([with_update] * 2))[5:] == [(3,), (4,), (3, 4), (5, 7), (6, 7)]
    assert waits(in_a_row([(all_reduce(1, 0, 1),), step]))[1:] == [(0,), (0,), (0,)]


def test_what_another_rank_waits_for_is_still_a_ranks_last() -> None:
    """Rank 0 sends its result to rank 1, which works on; both then begin anew."""
    step = (compute(0), Transfer(source=0, destination=1, payload_bytes=1, after=(0,)))
    pipeline = (*step, compute(1, 1))
    assert waits(in_a_row([pipeline] * 3)) == [
        *((), (0,), (1,)),
        *((1,), (3, 2), (4,)),
        *((4,), (6, 5), (7,)),
    ]


def test_a_step_without_a_rank_leaves_its_last_as_it_was() -> None:
    assert waits(in_a_row([(compute(0), compute(1)), (compute(0),), (compute(1),)])) == [
        (),
        (),
        (0,),
        (1,),
    ]
    assert in_a_row([]) == in_a_row([(), ()]) == ()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 4))
def test_steps_in_a_row_take_the_sum_of_their_times(ranks: list[int], count: int) -> None:
    """Each rank's work is done one after another, so the busiest rank's sum is the whole."""
    step = tuple(compute(rank) for rank in ranks)
    hosts = tuple(range(4))
    every = dict.fromkeys(hosts, 1.0)
    played = simulate(
        in_a_row([step] * count), lambda _: 1.0, Fabric(hosts=hosts, up=every, down=every)
    )
    assert played.step_s == count * max(ranks.count(rank) for rank in hosts)

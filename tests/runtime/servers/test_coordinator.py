"""Who is told to do what, without Ray: the actor's methods on a loop of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from convoy.runtime.servers.coordinator import LEASE_S, MOST_STEPS, Assignment, Coordinator, Lease
from convoy.runtime.servers.messages import Whereabouts


async def assigned(**changes: Any) -> Coordinator:
    values: dict[str, Any] = {
        "first_step": 0,
        "done": (),
        "num_steps": 1000,
        "steps_per_epoch": 10_000,
        "window": 1,
        "warm_start": 0,
        "in_turn": False,
    }
    coordinator = Coordinator()
    await coordinator.begin(Assignment(**(values | changes)))
    return coordinator


def go(program: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(program, timeout=20)

    asyncio.run(limited())


async def crowd(coordinator: Coordinator, seconds: Sequence[float]) -> None:
    """Replicas join; each has done a step, in so long."""
    for replica in range(len(seconds)):
        await coordinator.join(replica)
    for replica, each in enumerate(seconds):
        lease = await taken(coordinator, replica)
        await coordinator.done(replica, lease.steps, each * len(lease.steps))


async def taken(coordinator: Coordinator, replica: int) -> Lease:
    lease = await coordinator.lease(replica)
    assert lease is not None
    return lease


async def waiting(coordinator: Coordinator, replica: int) -> asyncio.Task[Lease]:
    """A replica that waits by now."""
    task = asyncio.create_task(coordinator.wait_for_lease(replica))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def test_a_run_from_its_first_step_to_its_last() -> None:
    async def program() -> None:
        coordinator = await assigned(num_steps=7, window=2)
        await coordinator.join(0)
        done: list[int] = []
        while not (lease := await taken(coordinator, 0)).ends:
            await coordinator.done(0, lease.steps, 0.1)
            done += lease.steps
        assert done == list(range(7))
        assert await coordinator.progress() == (7, ())
        assert await coordinator.lease(5) == Lease(ends=True)

    go(program())


def test_one_replica_warms_up_alone() -> None:
    async def program() -> None:
        coordinator = await assigned(first_step=10, warm_start=5)
        for replica in (0, 1):
            await coordinator.join(replica)
        assert await coordinator.lease(1) is None
        other = await waiting(coordinator, 1)
        seen: list[int] = []
        while len(seen) < 5:
            lease = await taken(coordinator, 0)
            assert lease.alone
            seen += lease.steps
            assert not other.done()
            await coordinator.done(0, lease.steps, 1e-4)
        assert seen == [10, 11, 12, 13, 14]  # long leases are cut at the end of it
        joined = await other
        assert joined.steps[0] == 15
        assert not joined.alone

    go(program())


def test_the_next_one_warms_up_if_the_first_dies() -> None:
    async def program() -> None:
        coordinator = await assigned(warm_start=5)
        for replica in (0, 1, 2):
            await coordinator.join(replica)
        first = await taken(coordinator, 0)
        other = await waiting(coordinator, 1)
        third = await waiting(coordinator, 2)
        assert await coordinator.forget(0) == first.steps
        assert await other == Lease(steps=first.steps, alone=True)
        assert not third.done()
        third.cancel()

    go(program())


@pytest.mark.parametrize("leases", range(1, 6))
def test_warming_up_goes_on_whenever_the_first_dies(leases: int) -> None:
    """What it had leased is done by the next, and nobody waits for ever."""

    async def program() -> None:
        coordinator = await assigned(warm_start=5)
        for replica in (0, 1):
            await coordinator.join(replica)
        for number in range(leases):
            lease = await taken(coordinator, 0)
            if number % 2:
                await coordinator.done(0, lease.steps, 1.0)
        back = await coordinator.forget(0)
        assert back
        found: list[int] = []
        while len(found) < len(back):
            lease = await taken(coordinator, 1)
            assert lease.alone
            found += lease.steps
        assert tuple(found) == back

    go(program())


def test_a_lease_says_whether_others_are_at_work() -> None:
    async def program() -> None:
        coordinator = await assigned()
        await coordinator.join(0)
        assert (await taken(coordinator, 0)).alone
        await coordinator.join(1)
        assert not (await taken(coordinator, 0)).alone
        await coordinator.forget(1)
        assert (await taken(coordinator, 0)).alone

    go(program())


@pytest.mark.parametrize(("window", "in_turn", "count"), [(1, False, 50), (8, False, 48)])
def test_a_lease_is_about_a_second_of_whole_windows(window: int, in_turn: bool, count: int) -> None:
    async def program() -> None:
        coordinator = await assigned(window=window, in_turn=in_turn)
        await crowd(coordinator, [LEASE_S / 50])
        assert len((await taken(coordinator, 0)).steps) == count

    go(program())


def test_the_first_lease_and_those_in_turn_are_one_window() -> None:
    async def program() -> None:
        for in_turn in (False, True):
            coordinator = await assigned(window=3, in_turn=in_turn)
            await coordinator.join(0)
            first = await taken(coordinator, 0)
            assert len(first.steps) == 3
            await coordinator.done(0, first.steps, 3e-3)
            later = await taken(coordinator, 0)
            assert len(later.steps) == (3 if in_turn else MOST_STEPS // 3 * 3)

    go(program())


def test_slower_replicas_get_shorter_leases() -> None:
    async def program() -> None:
        coordinator = await assigned()
        await crowd(coordinator, [LEASE_S / 40, LEASE_S / 10, LEASE_S * 3, 0.0])
        counts = [len((await taken(coordinator, replica)).steps) for replica in range(4)]
        assert counts == [40, 10, 1, MOST_STEPS]

    go(program())


def test_leases_become_shorter_as_the_end_draws_near() -> None:
    async def program() -> None:
        coordinator = await assigned(num_steps=100)
        await crowd(coordinator, [1e-4, 1e-4])
        counts = []
        while (lease := await coordinator.lease(len(counts) % 2)) is not None:
            counts.append(len(lease.steps))
        # a quarter of what is left for each of two: half a fair part
        assert counts[:3] == [98 // 4, 74 // 4, 56 // 4]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] == 1
        assert sum(counts) == 98

    go(program())


def test_speeds_follow_what_steps_take() -> None:
    async def program() -> None:
        coordinator = await assigned()
        await crowd(coordinator, [0.5, 0.25])
        assert await coordinator.speeds() == {0: 2.0, 1: 4.0}
        await coordinator.done(0, [], 7.0)  # tells nothing
        assert (await coordinator.speeds())[0] == 2.0
        await coordinator.done(0, [2, 3], 4.0)
        assert (await coordinator.speeds())[0] == pytest.approx(1 / (0.7 * 0.5 + 0.3 * 2.0))
        await coordinator.forget(0)
        assert await coordinator.speeds() == {1: 4.0}

    go(program())


def test_steps_of_the_dead_are_leased_to_those_who_wait() -> None:
    async def program() -> None:
        coordinator = await assigned(num_steps=2, window=2)
        for replica in (0, 1):
            await coordinator.join(replica)
        assert (await taken(coordinator, 0)).steps == (0, 1)
        assert await coordinator.lease(1) is None
        other = await waiting(coordinator, 1)
        assert await coordinator.forget(0) == (0, 1)
        assert await other == Lease(steps=(0, 1), alone=True)

    go(program())


def test_who_waits_hears_of_the_end() -> None:
    async def program() -> None:
        coordinator = await assigned(num_steps=1)
        for replica in (0, 1):
            await coordinator.join(replica)
        await taken(coordinator, 0)
        other = await waiting(coordinator, 1)
        await coordinator.done(0, [0], 0.1)
        assert await other == Lease(ends=True)

    go(program())


def test_nothing_is_leased_once_the_run_is_to_stop() -> None:
    async def program() -> None:
        coordinator = await assigned(warm_start=5)
        for replica in (0, 1):
            await coordinator.join(replica)
        lease = await taken(coordinator, 0)
        other = await waiting(coordinator, 1)
        await coordinator.stop()
        assert await other == await coordinator.lease(0) == Lease(ends=True)
        await coordinator.done(0, lease.steps, 0.1)  # what was under way still counts
        assert await coordinator.progress() == (1, ())

    go(program())


def test_a_run_that_goes_on_leases_what_was_not_done() -> None:
    async def program() -> None:
        coordinator = await assigned(first_step=3, done=(4, 6), num_steps=8, window=9)
        await coordinator.join(0)
        assert await coordinator.progress() == (3, (4, 6))
        assert (await taken(coordinator, 0)).steps == (3, 5, 7)

    go(program())


def test_a_fast_replica_judges_the_network_after_an_epoch() -> None:
    async def program() -> None:
        coordinator = await assigned(steps_per_epoch=3)
        await crowd(coordinator, [0.1, 0.19, 0.5])
        assert (await taken(coordinator, 2)).evaluates is None
        assert await coordinator.lease(1) == Lease(evaluates=2)
        assert (await taken(coordinator, 0)).evaluates is None  # one is enough
        await coordinator.judged(1)
        assert (await taken(coordinator, 1)).evaluates is None

    go(program())


def test_who_waits_judges_if_nobody_has_yet() -> None:
    async def program() -> None:
        coordinator = await assigned(num_steps=4, steps_per_epoch=2, window=1)
        await crowd(coordinator, [0.1, 0.5])
        slow = [(await taken(coordinator, 1)).steps for _ in range(2)]
        assert slow == [(2,), (3,)]
        assert await coordinator.lease(0) == Lease(evaluates=1)
        other = await waiting(coordinator, 0)
        await coordinator.forget(0)  # it dies as it judges
        other.cancel()
        await coordinator.join(2)
        assert await coordinator.lease(2) is None  # nobody knows how fast it is
        assert await coordinator.lease(1) == Lease(evaluates=1)

    go(program())


def test_the_end_of_the_run_is_judged_by_all_instead() -> None:
    async def program() -> None:
        coordinator = await assigned(num_steps=4, steps_per_epoch=2, window=4)
        await coordinator.join(0)
        lease = await taken(coordinator, 0)
        await coordinator.done(0, lease.steps, 0.4)
        assert await coordinator.lease(0) == Lease(ends=True)

    go(program())


def test_epochs_before_a_resumption_are_not_judged_again() -> None:
    async def program() -> None:
        coordinator = await assigned(first_step=5, num_steps=20, steps_per_epoch=4)
        await coordinator.join(0)
        for step in (5, 6):
            lease = await taken(coordinator, 0)
            assert lease.steps == (step,)
            await coordinator.done(0, lease.steps, 10.0)
        lease = await taken(coordinator, 0)
        await coordinator.done(0, lease.steps, 10.0)
        assert (await taken(coordinator, 0)).evaluates == 7

    go(program())


def test_one_that_is_forgotten_while_it_waits_gets_nothing() -> None:
    """Its call goes on though nobody hears the answer; what it took would never be done."""

    async def program() -> None:
        coordinator = await assigned(num_steps=8, warm_start=4)
        for replica in (0, 1):
            await coordinator.join(replica)
        first = await coordinator.lease(0)
        assert first is not None
        waiting = asyncio.create_task(coordinator.wait_for_lease(1))
        await asyncio.sleep(0)
        await coordinator.forget(1)
        assert (await waiting).ends
        done = list(first.steps)
        await coordinator.done(0, done, 1.0)
        while not (lease := await coordinator.lease(0)).ends:  # type: ignore[union-attr]
            done += lease.steps  # type: ignore[union-attr]
            await coordinator.done(0, lease.steps, 1.0)  # type: ignore[union-attr]
        assert sorted(done) == list(range(8))

    go(program())


def test_where_the_shards_are_now() -> None:
    async def program() -> None:
        coordinator = await assigned()
        assert await coordinator.shards() is None
        where = Whereabouts(endpoints=("s0", "s1"), incarnations=(0, 0), homes=(0, 1))
        await coordinator.set_shards(where)
        assert await coordinator.shards() == where
        then = Whereabouts(endpoints=("s0", "s1 again"), incarnations=(0, 1), homes=(0, 0))
        await coordinator.set_shards(then)
        assert await coordinator.shards() == then

    go(program())


def test_who_waits_for_something_to_do_is_not_at_work() -> None:
    async def program() -> None:
        coordinator = await assigned(num_steps=1, window=1)
        await coordinator.join(0)
        await coordinator.join(1)
        assert await coordinator.at_work() == (0, 1)
        assert (await taken(coordinator, 0)).steps == (0,)
        other = await waiting(coordinator, 1)
        assert await coordinator.at_work() == (0,)
        await coordinator.done(0, [0], 0.1)
        assert (await other).ends
        assert await coordinator.at_work() == (0,)  # nor who has been told that all is done

    go(program())


def test_a_coordinator_of_one_run_after_another_begins_anew() -> None:
    async def program() -> None:
        coordinator = await assigned(num_steps=3, window=3)
        await crowd(coordinator, [0.1])
        await coordinator.stop()
        fresh: dict[str, Any] = {
            "done": (),
            "num_steps": 5,
            "steps_per_epoch": 9,
            "window": 2,
            "warm_start": 0,
        }
        await coordinator.begin(Assignment(first_step=2, in_turn=False, **fresh))
        assert await coordinator.progress() == (2, ())
        assert await coordinator.speeds() == {}
        await coordinator.join(4)
        assert await coordinator.lease(4) == Lease(steps=(2, 3), alone=True)

    go(program())

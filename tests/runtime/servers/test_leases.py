"""Steps that are leased: each is done, and once where nobody dies."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.runtime.servers.leases import Leases


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(0, 40), st.booleans())
def test_each_step_is_done_once_and_after_deaths_too(
    seed: int, first: int, count: int, deaths: bool
) -> None:
    """Replicas take and do steps in any order; the oracle is a set of what is done."""
    rng, last = random.Random(seed), first + count
    done = {step for step in range(first, last) if rng.random() < 0.2}
    leases, left_to_do = Leases(first, last, done), set(range(first, last)) - done
    counted: Counter[int] = Counter()
    out: dict[int, list[int]] = {replica: [] for replica in range(3)}
    while not leases.finished:
        replica = rng.choice(list(out))
        action = rng.choice(["take", "do", "do", "die" if deaths else "do"])
        if action == "take":
            steps = leases.take(replica, rng.randint(1, 6))
            assert list(steps) == sorted(steps)
            assert not {*steps} & ({step for of in out.values() for step in of} | done)
            out[replica] += steps
        elif action == "do":
            rng.shuffle(out[replica])
            some = rng.randint(0, len(out[replica]))
            doing, out[replica] = out[replica][:some], out[replica][some:]
            counted.update(doing)
            done.update(doing)
            leases.done(replica, doing)
        else:  # and is started again under a new number
            assert list(leases.forget(replica)) == sorted(out.pop(replica))
            out[max([replica, *out]) + 1] = []
        assert leases.low == next(s for s in range(first, last + 1) if s not in done)
        assert leases.beyond == tuple(sorted(step for step in done if step > leases.low))
        assert leases.left == count - len(done.union(*out.values()))
    assert counted == Counter(left_to_do)


def test_the_earliest_steps_come_first_and_returned_ones_before_new_ones() -> None:
    leases = Leases(0, 10)
    assert leases.take(0, 3) == (0, 1, 2)
    assert leases.take(1, 2) == (3, 4)
    leases.done(0, [1])
    assert leases.forget(0) == (0, 2)
    assert leases.take(2, 4) == (0, 2, 5, 6)
    assert leases.left == 3


def test_steps_done_beyond_one_that_is_not() -> None:
    leases = Leases(2, 8)
    leases.take(0, 6)
    leases.done(0, [3, 5])
    assert (leases.low, leases.beyond) == (2, (3, 5))
    assert [step for step in range(8) if leases.is_done(step)] == [0, 1, 3, 5]
    leases.done(0, [2])
    assert (leases.low, leases.beyond) == (4, (5,))
    assert not leases.finished
    leases.done(0, [4, 6, 7])
    assert (leases.low, leases.beyond) == (8, ())
    assert leases.finished


def test_a_run_goes_on_where_another_was() -> None:
    before = Leases(0, 6)
    before.take(0, 5)
    before.done(0, [0, 2, 4])
    after = Leases(before.low, 6, before.beyond)
    assert after.left == 3
    assert after.take(7, 9) == (1, 3, 5)
    assert after.take(7, 9) == ()
    after.done(7, [1, 3, 5])
    assert after.finished


def test_a_dead_replicas_last_word_comes_late() -> None:
    """Its steps are another's by then: they are done twice, and counted once."""
    leases = Leases(0, 3)
    leases.take(0, 2)
    leases.forget(0)
    assert leases.take(1, 2) == (0, 1)
    leases.done(0, [0, 1])
    assert leases.low == 2
    leases.done(1, [0, 1])
    assert (leases.low, leases.beyond) == (2, ())
    assert leases.forget(1) == ()


def test_who_has_nothing_gives_nothing_back() -> None:
    leases = Leases(0, 3)
    assert leases.forget(4) == ()
    assert leases.left == 3


def test_a_run_of_no_steps_is_finished() -> None:
    assert Leases(5, 5).finished
    assert Leases(3, 5, [3, 4]).finished

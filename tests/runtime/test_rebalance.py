from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.cost.curve import Curve
from convoy.cost.layers import NetworkFacts
from convoy.runtime.rebalance import Balancer, Caution, Rebalancing, balancer_for
from convoy.runtime.records import StepSummary
from convoy.runtime.results import WARM_UP_STEPS
from convoy.runtime.settings import TrainSettings
from convoy.strategies import Plan, Problem, Worker, make_strategy
from convoy.strategies.shares import finish_together

BATCH = 64
NETWORK = NetworkFacts(num_parameters=1, num_buffers=0)
DATA = make_strategy("data", {})
ONE_WINDOW = 12
"""Steps, where they take long enough."""


@dataclass(kw_only=True)
class Machines:
    """Simulated ranks that a balancer watches: seconds by rank, step and samples."""

    seconds: Sequence[Callable[[int, int], float]]
    """By rank: what a step of so many samples takes, without noise."""
    noise: float = 0.0
    """Times are multiplied by up to one more or less this."""
    curves: Sequence[Curve | None] = ()
    weights: Sequence[float] = ()
    seed: int = 0
    step: int = 0
    generation: int = 1
    done: list[Rebalancing] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.balancer = Balancer(DATA.plan)
        self.random = random.Random(self.seed)
        count = len(self.seconds)
        self.workers = tuple(
            Worker(index=i, machine=f"m{i}", device="cpu", weight=weight, seconds=curve)
            for i, weight, curve in zip(
                range(count),
                self.weights or [1.0] * count,
                self.curves or [None] * count,
                strict=True,
            )
        )
        self.plan = DATA.plan(problem(self.workers))
        self.balancer.begin(self.plan, self.generation, 0)

    def run(self, num_steps: int) -> Machines:
        """Do so many steps, with other shares as soon as the balancer asks for them."""
        for _ in range(num_steps):
            times = [
                seconds(self.step, n) * self.random.uniform(1 - self.noise, 1 + self.noise)
                for seconds, n in zip(self.seconds, self.plan.shares, strict=True)
            ]
            self.balancer.take([summary(self.step, times, generation=self.generation)])
            self.step += 1
            if self.balancer.asks:
                self.form(self.balancer.corrected(self.workers))
        return self

    def form(self, workers: Sequence[Worker]) -> None:
        """Another crew goes on."""
        self.generation += 1
        self.plan = DATA.plan(problem(workers))
        done = self.balancer.begin(self.plan, self.generation, self.step)
        self.done += [done] if done else []

    def longest_s(self, shares: Sequence[int]) -> float:
        """Seconds of a step with these shares as machines now are."""
        return max(f(self.step, n) for f, n in zip(self.seconds, shares, strict=True))

    def best_s(self) -> float:
        """Seconds of a step with the best shares there are."""
        now = [lambda n, f=f: f(self.step, n) for f in self.seconds]  # type: ignore[misc]
        return self.longest_s(finish_together(BATCH, now))


def problem(workers: Sequence[Worker], batch_size: int = BATCH) -> Problem:
    return Problem(batch_size=batch_size, workers=tuple(workers), network=NETWORK)


def summary(
    step: int,
    times: Sequence[float | None],
    *,
    generation: int = 1,
    samples: int = BATCH,
    wall_s: float | None = None,
) -> StepSummary:
    known = [time for time in times if time is not None]
    return StepSummary(
        step=step,
        generation=generation,
        samples=samples,
        wall_s=max(known) if wall_s is None else wall_s,
        loss=1.0,
        ranks=tuple({"rank": r, "compute_s": time} for r, time in enumerate(times)),
    )


def steady(pace_s: float) -> Callable[[int, int], float]:
    """A machine that takes this long per sample."""
    return lambda step, n: pace_s * n


def changing(pace_s: float, at: int, factor: float) -> Callable[[int, int], float]:
    """One that takes `factor` times as long from step `at`."""
    return lambda step, n: pace_s * n * (factor if step >= at else 1.0)


@pytest.mark.parametrize("measured", [False, True])
@given(
    paces=st.lists(st.floats(0.5, 4.0), min_size=2, max_size=4),
    factor=st.floats(2.0, 4.0),
    overhead=st.floats(0.0, 5.0),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_shares_follow_a_machine_that_slows_down(
    measured: bool, paces: list[float], factor: float, overhead: float, seed: int
) -> None:
    at = 40

    def machine(rank: int, pace: float) -> Callable[[int, int], float]:
        slower = factor if rank == 0 else 1.0
        return lambda step, n: (overhead + pace * n) * (slower if step >= at else 1.0)

    curves = [Curve((1, BATCH), (overhead + p, overhead + p * BATCH)) for p in paces]
    machines = Machines(
        seconds=[machine(rank, pace) for rank, pace in enumerate(paces)],
        noise=0.1,
        curves=curves if measured else [None] * len(paces),
        weights=[1 / pace for pace in paces],
        seed=seed,
    ).run(at)
    assert not (measured and machines.done)  # weights alone do not say what is best
    machines.run((5 if measured else 30) * ONE_WINDOW)
    assert machines.longest_s(machines.plan.shares) <= 1.2 * machines.best_s()
    assert len(machines.done) <= (1 if measured else 6)


@given(
    paces=st.lists(st.floats(0.2, 8.0), min_size=2, max_size=6),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_noise_alone_changes_nothing(paces: list[float], seed: int) -> None:
    machines = Machines(
        seconds=[steady(pace) for pace in paces],
        noise=0.1,
        curves=[Curve((1, BATCH), (pace, pace * BATCH)) for pace in paces],
        seed=seed,
    )
    assert machines.run(600).done == []


def test_shares_come_back_with_the_machine() -> None:
    machines = Machines(
        seconds=[
            steady(1.0),
            lambda step, n: n * (2.0 if 50 <= step < 250 else 1.0),
        ],
        noise=0.05,
    )
    slow = machines.run(250).plan.shares
    assert slow[1] == pytest.approx(BATCH / 3, abs=2)
    back = machines.run(250).plan.shares
    assert back[1] == pytest.approx(BATCH / 2, abs=3)
    assert len(machines.done) == 2


def test_a_moment_is_no_reason() -> None:
    def hiccups(step: int, n: int) -> float:
        return n * (5.0 if step % 60 < ONE_WINDOW else 1.0)  # a window of every five

    assert Machines(seconds=[steady(1.0), hiccups], noise=0.05).run(1000).done == []


def test_fast_steps_are_watched_for_as_long_as_slow_ones() -> None:
    machines = Machines(seconds=[steady(1e-3), changing(1e-3, 0, 2.0)])
    steps_per_s = 1 / machines.longest_s(machines.plan.shares)
    machines.run(int(4 * steps_per_s))
    assert machines.done == []
    machines.run(int(steps_per_s))
    assert len(machines.done) == 1


def test_what_cannot_be_mended_is_tried_less_and_less() -> None:
    machines = Machines(seconds=[steady(0.1), lambda step, n: 60.0])  # whatever its share
    machines.run(4000)
    assert len(machines.done) <= 8
    gaps = [b.step - a.step for a, b in zip(machines.done, machines.done[1:], strict=False)]
    assert gaps == sorted(gaps)


def test_a_promise_that_is_kept_shortens_the_rest() -> None:
    caution = Caution()
    machines = Machines(seconds=[steady(0.1), lambda step, n: 60.0 if step < 500 else 2.0 * n])
    machines.run(500)
    assert machines.balancer._next_rest > caution.rest_windows
    machines.run(4000)
    assert machines.longest_s(machines.plan.shares) <= 1.15 * machines.best_s()


def test_communication_is_no_gain() -> None:
    balancer = Balancer(DATA.plan)
    workers = [Worker(index=i, machine=f"m{i}", device="cpu") for i in range(2)]
    balancer.begin(DATA.plan(problem(workers)), 1, 0)
    # Other shares would save a quarter of the longest computation, a fortieth of the step.
    balancer.take(summary(step, [1.0, 2.0], wall_s=20.0) for step in range(200))
    assert not balancer.asks


def test_only_whole_timed_steps_of_the_present_crew_count() -> None:
    balancer = Balancer(DATA.plan)
    workers = [Worker(index=i, machine=f"m{i}", device="cpu") for i in range(2)]
    balancer.begin(DATA.plan(problem(workers)), 2, 0)
    slow = [1.0, 3.0]
    balancer.take(summary(step, slow, generation=1) for step in range(100))
    balancer.take(summary(step, slow, generation=2, samples=BATCH - 1) for step in range(100))
    balancer.take(summary(step, [1.0, None], generation=2) for step in range(100))
    assert not balancer.asks
    balancer.take(summary(step, slow, generation=2) for step in range(2 * ONE_WINDOW - 1))
    assert not balancer.asks
    balancer.take([summary(99, slow, generation=2)])
    assert balancer.asks


def test_the_first_steps_of_a_crew_do_not_count() -> None:
    machines = Machines(seconds=[steady(1.0), changing(1.0, 0, 2.0)])
    machines.run(WARM_UP_STEPS + 2 * ONE_WINDOW - 1)
    assert machines.done == []
    assert len(machines.run(1).done) == 1


def test_it_says_who_is_slow() -> None:
    machines = Machines(seconds=[steady(1.0), steady(2.0)]).run(60)
    (done,) = machines.done
    assert str(done) == (
        "rank 1 on m1 computes 2.0 times as long as the others: shares from 32/32 to 43/21 at "
        f"step {WARM_UP_STEPS + 2 * ONE_WINDOW}"
    )
    machines = Machines(seconds=[steady(1.0), steady(0.5)], curves=[Curve((1,), (1.0,))] * 2)
    (done,) = machines.run(60).done
    assert str(done).startswith("rank 1 on m1 computes 0.5 times as long as planned: shares from ")


def test_a_curve_keeps_its_shape() -> None:
    flat = Curve((1, 32, 64), (10.0, 10.0, 40.0))
    machines = Machines(
        seconds=[lambda step, n: 2 * flat(n), lambda step, n: flat(n)], curves=[flat, flat]
    )
    machines.run(60)
    assert len(machines.done) == 0  # a smaller share of the first would save nothing
    bent = Curve((1, 32, 64), (5.0, 10.0, 40.0))
    slower = Machines(seconds=[lambda step, n: 3 * bent(n), steady(0.3)], curves=[bent, bent])
    slower.run(60)
    corrected = slower.balancer.corrected(slower.workers)[0].seconds
    assert corrected is not None
    assert corrected.seconds == pytest.approx([15.0, 30.0, 120.0])


def test_places_keep_their_corrections() -> None:
    machines = Machines(seconds=[steady(1.0), changing(1.0, 0, 3.0), steady(1.0)], noise=0.02).run(
        60
    )
    whole = machines.plan.shares
    assert whole[1] == pytest.approx(BATCH / 7, abs=1)

    machines.form(machines.balancer.corrected(machines.workers[1:]))  # the first one dies
    assert machines.plan.shares[0] == pytest.approx(BATCH / 4, abs=1)
    machines.form(machines.balancer.corrected(machines.workers))  # and comes back
    assert machines.plan.shares == whole
    assert len(machines.done) == 1  # deaths and joins are none


def test_a_newcomer_is_put_beside_the_others_by_its_weight() -> None:
    machines = Machines(seconds=[steady(1.0), steady(3.0)]).run(60)
    newcomer = Worker(index=7, machine="m7", device="cpu", weight=0.5)
    *_, placed = machines.balancer.corrected([*machines.workers, newcomer])
    assert placed.seconds is not None
    assert placed.seconds(10) == pytest.approx(40.0)  # twice the mean of 10 and 30

    measured = Worker(index=8, machine="m8", device="cpu", seconds=Curve((1,), (5.0,)))
    assert machines.balancer.corrected([machines.workers[0], measured])[1] == measured
    assert machines.balancer.corrected([newcomer]) == (newcomer,)  # nobody to put it beside


def test_before_anything_is_known_workers_stay_as_they_are() -> None:
    machines = Machines(seconds=[steady(1.0), steady(1.0)]).run(100)
    assert machines.balancer.corrected(machines.workers) == machines.workers


def test_a_crew_that_changed_meanwhile_is_not_held_to_the_promise() -> None:
    machines = Machines(seconds=[steady(1.0), steady(2.0), steady(1.0)])
    while not machines.balancer.asks:
        times = [f(0, n) for f, n in zip(machines.seconds, machines.plan.shares, strict=True)]
        machines.balancer.take([summary(0, times)])
    machines.form(machines.balancer.corrected(machines.workers[:2]))  # one died meanwhile
    assert not machines.done  # it was the loss that changed the shares
    assert machines.balancer._promise is None


@given(
    times=st.lists(st.floats(0, 1e3), min_size=2, max_size=5),
    weights=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_whatever_is_measured_every_rank_keeps_a_sample(
    times: list[float], weights: list[float]
) -> None:
    seconds = [lambda step, n, t=time: t for time in times]  # type: ignore[misc]
    machines = Machines(seconds=seconds, weights=weights[: len(times)], noise=0.1).run(200)
    assert sum(machines.plan.shares) == BATCH
    assert min(machines.plan.shares) >= 1


@pytest.mark.parametrize(
    ("strategy", "options", "follows"),
    [
        ("data", {}, True),
        ("data", {"rebalance": False}, False),
        ("data", {"shares": (1.0, 1.0)}, False),
        ("averaging", {}, False),
        ("single", {}, False),
    ],
)
def test_where_it_was_ruled_out_or_makes_no_sense(
    strategy: str, options: dict[str, Any], follows: bool
) -> None:
    chosen = make_strategy(strategy, {})
    balancer = balancer_for(chosen, TrainSettings(strategy=strategy, **options))
    workers = tuple(Worker(index=i, machine=f"m{i}", device="cpu") for i in range(2))
    plan = Plan(problem=problem(workers), shares=(32, 32))
    balancer.begin(plan, 1, 0)
    balancer.take(summary(step, [1.0, 3.0]) for step in range(100))
    assert balancer.asks == follows


def test_a_crew_of_one_has_nothing_to_cut() -> None:
    assert Machines(seconds=[changing(1.0, 20, 3.0)]).run(100).done == []

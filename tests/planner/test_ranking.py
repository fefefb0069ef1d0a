"""Which plan is chosen, against worlds whose best is known, and what is said of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.errors import UsageError
from convoy.planner import Ranking, predict, rank_plans
from convoy.planner.ranking import WORTH_IT
from convoy.strategies import make_strategy

from .worlds import BATCH, BOTH, DATA, SINGLE, device, step_s, task, world

MS = st.integers(1, 60).map(lambda ms: ms / 1000)


def frugal(times: dict[tuple[int, ...], float]) -> float:
    """Of the plans that are hardly slower than the fastest, the one of fewest devices."""
    enough = min(times.values()) * (1 + WORTH_IT)
    return min((len(p), t) for p, t in times.items() if t <= enough)[1]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(MS, min_size=1, max_size=5),
    st.sampled_from([1e6, 2e7, 1e9]),
    st.sampled_from([0.0, 0.004]),
    st.integers(0, 4),
)
def test_of_few_devices_every_subset_is_looked_at(
    rates: list[float], bandwidth: float, latency_s: float, slow: int
) -> None:
    """One of them may be behind a link of a tenth of the others'."""
    found = rank_plans(
        world(rates, bandwidth, latency_s, slow={slow: bandwidth / 10}), task(), BOTH
    )
    times = {}
    for size in range(1, len(rates) + 1):
        for picks in itertools.combinations(range(len(rates)), size):
            link = bandwidth / 10 if slow in picks else bandwidth
            times[picks] = step_s([rates[i] for i in picks], 1e6, link, latency_s)
    assert {p.picks: p.step_s for p in found.predictions} == pytest.approx(times)
    assert found.best.step_s == pytest.approx(frugal(times))
    assert sum(found.best.plan.shares) == BATCH  # type: ignore[union-attr]
    rest = [p.step_s for p in found.predictions[1:]]
    assert rest == sorted(rest)


@pytest.mark.parametrize(
    ("num_devices", "latency_s"), [(9, 0.0), (12, 0.001), (12, 0.0025), (14, 0.02), (10, 0.1)]
)
def test_of_many_equal_devices_the_right_number_is_taken(
    num_devices: int, latency_s: float
) -> None:
    found = rank_plans(world([0.001] * num_devices, 1e9, latency_s), task(), BOTH)
    times = {(0,) * n: step_s([0.001] * n, 1e6, 1e9, latency_s) for n in range(1, num_devices + 1)}
    assert found.best.step_s == pytest.approx(frugal(times))


@settings(deadline=None, max_examples=8)
@given(st.lists(MS, min_size=9, max_size=11), st.sampled_from([0.0, 0.002]))
def test_of_many_unequal_devices_on_equal_links_the_fastest_are_taken(
    rates: list[float], latency_s: float
) -> None:
    found = rank_plans(world(rates, 1e9, latency_s), task(), BOTH)
    times = {
        tuple(range(n)): step_s(sorted(rates)[:n], 1e6, 1e9, latency_s)
        for n in range(1, len(rates) + 1)
    }
    assert found.best.step_s <= min(times.values()) * (1 + WORTH_IT) * 1.0011


@pytest.mark.parametrize("behind", [0, 5, 9])
def test_of_many_the_fastest_is_left_out_behind_a_slow_link(behind: int) -> None:
    rates = [0.010] * 10
    rates[behind] = 0.009
    found = rank_plans(world(rates, 1e8, slow={behind: 1e6}), task(), BOTH)
    assert found.best.picks == tuple(i for i in range(10) if i != behind)
    assert found.best.step_s == pytest.approx(step_s([0.010] * 9, 1e6, 1e8))


def test_several_behind_slow_links_are_left_out() -> None:
    rates = [0.009] * 6 + [0.010] * 8
    found = rank_plans(world(rates, 1e8, slow=dict.fromkeys(range(6), 1e6)), task(), BOTH)
    assert found.best.picks == tuple(range(6, 14))


def chosen(found: Ranking) -> tuple[int, ...]:
    return found.best.picks


def test_a_device_that_is_too_slow_is_left_out_and_why() -> None:
    """Its one sample takes it 300 ms; the others' 60 each take them 60."""
    found = rank_plans(world([0.001, 0.001, 0.3]), task(), BOTH)
    assert chosen(found) == (0, 1)
    assert "Use data on m0 (50%) and m1 (50%)" in found.advice
    assert "That is 1.71 times as fast as m0 alone." in found.advice
    assert "Leave m2 out: with it a step takes 313 ms instead of 70: " in found.advice
    assert "its 1 of 120 samples take it 300 ms, and the exchange the rest" in found.advice


def test_a_device_behind_a_slow_link_is_left_out_and_why() -> None:
    found = rank_plans(world([0.001] * 3, slow={2: 1e6}), task(), BOTH)
    assert chosen(found) == (0, 1)
    assert (
        "Leave m2 out: with it a step takes 1373 ms instead of 70: its 40 of 120 samples take it "
        "40 ms, and the exchange the rest." in found.advice
    )


def test_a_device_that_saves_hardly_anything_is_left_out() -> None:
    found = rank_plans(world([0.001, 0.119], 1e12), task(), BOTH)
    assert chosen(found) == (0,)
    assert "Use m0 alone: 1,000 images/s." in found.advice
    assert "Leave m1 out: it would save only 0.8% of a step." in found.advice
    assert "No link would be fast enough for several machines to be worth it." in found.advice


@pytest.mark.parametrize("bandwidth", [1e6, 1e8])
@pytest.mark.parametrize(
    "rates", [(0.001, 0.001), (0.001, 0.003, 0.002), (0.001, 0.001, 0.02)], ids=str
)
def test_break_even_is_where_the_choice_changes(rates: Sequence[float], bandwidth: float) -> None:
    """Planned anew at links a little slower and a little faster; wherever one starts from."""
    here = world(rates, bandwidth)
    found = rank_plans(here, task(), BOTH)
    even = found.break_even_bandwidth
    assert even is not None
    for factor, several in ((0.95, False), (1.05, True)):
        plans = rank_plans(here.at(even / 8 * factor), task(), BOTH)
        assert (len(plans.best.picks) > 1) == several
    wins = "Below" if bandwidth * 8 > even else "It would take links of"
    assert f"{wins} {even / 1e6:.3g} Mbit/s" in found.advice
    assert (len(found.best.picks) > 1) == (bandwidth * 8 > even)


def test_break_even_by_hand() -> None:
    """Two have 60 ms left of 120 for 1 MB to travel, less what makes the second worth it."""
    found = rank_plans(world([0.001, 0.001]), task(), BOTH)
    left = 0.120 / (1 + WORTH_IT) - 0.060
    assert found.break_even_bandwidth == pytest.approx(8 * 1e6 / left, rel=0.03)


def test_no_link_is_fast_enough() -> None:
    found = rank_plans(world([0.001, 0.001], latency_s=1.0), task(), BOTH)
    assert chosen(found) == (0,)
    assert found.break_even_bandwidth is None
    assert "No link would be fast enough" in found.advice


def test_other_mathematics_are_only_told_of() -> None:
    """What is averaged at the end of a run only is fastest, and not taken unasked."""
    alone = make_strategy("averaging", {"average_every": "end"})
    found = rank_plans(world([0.001, 0.001]), task(), [SINGLE, alone])
    assert found.predictions[0].strategy == alone
    assert found.best.strategy == SINGLE
    assert "with other mathematics than one machine's" in found.advice
    assert found.break_even_bandwidth is None


def test_two_ranks_of_one_machine_are_one_machine() -> None:
    """The other machine is of no use; links to it do not matter to the plan."""
    here = world([0.001, 0.001, 0.5], 1e6, machines=("a", "a", "b"))
    found = rank_plans(here, task(), BOTH)
    assert chosen(found) == (0, 1)
    assert "Use data on a (cpu, 1 of 2) (50%) and a (cpu, 2 of 2) (50%)" in found.advice
    assert "Below" not in found.advice
    assert "No link would be fast enough for several machines to be worth it." in found.advice


def test_one_device() -> None:
    found = rank_plans(world([0.002]), task(), BOTH)
    assert (found.best.picks, found.best.step_s) == ((0,), pytest.approx(0.240))
    assert found.best is found.best_single
    assert found.break_even_bandwidth is None
    assert found.advice == "Use m0 alone: 500 images/s."


def test_one_device_and_a_strategy_for_several() -> None:
    with pytest.raises(UsageError, match="nothing to choose from: data with 1 device"):
        rank_plans(world([0.002]), task(), [DATA])


def test_where_nothing_fits_it_says_why() -> None:
    found = rank_plans(world([0.001, 0.002], memory_bytes=2**30), task(2**28), BOTH)
    assert all(not p.feasible for p in found.predictions)
    assert found.best_single is None
    with pytest.raises(UsageError, match=r"no plan can be carried out: m\d \(cpu\) has 1.0 GiB"):
        _ = found.best
    assert found.advice.startswith("No plan can be carried out. m")
    assert "about 3.4 GiB are needed there" in found.advice


def test_a_device_without_the_memory_is_left_out() -> None:
    devices = world([0.001, 0.001, 0.0005])
    small = device("m2", 0.0005, memory_bytes=2**20)
    two = world([0.001, 0.001])
    object.__setattr__(devices.devices[2], "profile", small)
    found = rank_plans(devices, task(), BOTH)
    assert chosen(found) == chosen(rank_plans(two, task(), BOTH)) == (0, 1)
    assert "Leave m2 out: m2 (cpu) has 0.0 GiB of memory, and about 0.4 GiB are" in found.advice


VARIED = (0.7, 0.9, 1.0, 1.1, 1.8)


def test_no_plan_is_best_for_not_having_been_looked_at_closely() -> None:
    """Steps that vary are longer the more take part, and all plans' are lengthened by that."""
    rates = [0.001 * (1 + i / 10) for i in range(5)]
    found = rank_plans(world(rates, 1e9, variation=VARIED), task(), BOTH)
    assert chosen(found) == (0, 1, 2, 3, 4)
    played = predict(found.world, found.task, DATA, chosen(found))
    assert found.best == played


def test_the_same_seed_gives_the_same_ranking() -> None:
    here = world([0.001, 0.002, 0.003], variation=VARIED)
    rankings = [rank_plans(here, task(), BOTH, seed=seed) for seed in (3, 3, 4)]
    assert rankings[0] == rankings[1]
    assert rankings[0].best.step_s != rankings[2].best.step_s

"""Predictions against closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.cost.layers import NetworkFacts
from convoy.cost.schedule import in_a_row, sent_by_rank
from convoy.planner import play, predict
from convoy.planner.predict import Prediction
from convoy.strategies import Strategy, make_strategy

from .worlds import BATCH, DATA, SINGLE, step_s, task, world

RATES = st.lists(st.integers(1, 50).map(lambda ms: ms / 1000), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(RATES, st.sampled_from([1e6, 1e8]), st.sampled_from([0.0, 0.01]))
def test_a_step_by_the_formula(rates: list[float], bandwidth: float, latency_s: float) -> None:
    found = predict(world(rates, bandwidth, latency_s), task(), DATA, range(len(rates)), draws=0)
    assert found.step_s == pytest.approx(step_s(rates, 1e6, bandwidth, latency_s))
    assert found.plan is not None
    assert sum(found.plan.shares) == BATCH
    assert min(found.plan.shares) >= 1
    assert found.images_per_s == pytest.approx(BATCH / found.step_s)
    alone = predict(world(rates), task(), SINGLE, (len(rates) - 1,), draws=0)
    assert alone.step_s == pytest.approx(BATCH * rates[-1])


def schedule_bytes(found: Prediction) -> list[float]:
    """What each rank sends in a step, by the strategy's own schedules."""
    assert found.plan is not None
    first, count = found.strategy.period(found.plan)
    steps = [found.strategy.schedule(found.plan, first + i) for i in range(count)]
    return [size / count for size in sent_by_rank(in_a_row(steps), len(found.plan.shares))]


@pytest.mark.parametrize(
    ("strategy", "per_step"),
    [
        (SINGLE, 0.0),
        (DATA, 4.0e6),
        (make_strategy("data", {"batch_norm": "local", "wire": "bf16"}), 2.0e6),
        (make_strategy("averaging", {"average_every": 4}), 2.0e6),  # and momentum's
        (make_strategy("averaging", {"average_every": "end"}), 0.0),
    ],
    ids=["single", "data", "bf16", "averaging 4", "averaging end"],
)
def test_bytes_are_the_schedules(strategy: Strategy, per_step: float) -> None:
    """A ring of three sends 2 (n - 1) = 4 times the payload of 1 MB."""
    picks = (0, 1, 2) if strategy.uses_several else (1,)
    found = predict(world([0.001] * 3), task(), strategy, picks, draws=0)
    assert found.sent_bytes_per_step == sum(schedule_bytes(found)) == per_step
    assert found.link_bytes is not None
    assert sum(found.link_bytes.values()) == pytest.approx(per_step)
    if per_step:
        assert set(found.link_bytes) == {"m0 -> m1", "m1 -> m2", "m2 -> m0"}


def test_bytes_within_a_machine_are_on_no_link() -> None:
    three = world([0.001] * 3, machines=("a", "a", "b"))
    found = predict(three, task(), DATA, (0, 1, 2), draws=0)
    assert found.link_bytes == pytest.approx({"a -> b": 4e6 / 3, "b -> a": 4e6 / 3})


def test_averages_are_paid_for_over_their_period() -> None:
    every = make_strategy("averaging", {"average_every": 4})
    found = predict(world([0.001, 0.001], 1e6), task(), every, (0, 1), draws=0)
    assert found.step_s == pytest.approx(0.060 + 2.0 / 4)  # momentum travels, too


def test_steps_that_vary_take_longer_together() -> None:
    """Each takes 0.5 or 1.5 of its mean: of two, the slower one is 1.25 on average."""
    two = world([0.001, 0.001], 1e12, variation=(0.5, 1.5))
    found = predict(two, task(), DATA, (0, 1), draws=2000)
    assert found.step_s == pytest.approx(0.060 * 1.25, rel=0.02)
    assert found.step_p90_s == pytest.approx(0.060 * 1.5, rel=1e-3)
    alone = predict(two, task(), SINGLE, (0,), draws=2000)
    assert alone.step_s == pytest.approx(0.120, rel=0.03)


def test_a_seed_decides() -> None:
    two = world([0.001, 0.002], variation=(0.9, 1.0, 1.2))
    found = [predict(two, task(), DATA, (0, 1), seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0].step_s != found[2].step_s


def test_memory_decides_what_can_be() -> None:
    """Two ranks of one machine share it: 400 MiB each, and 1.5 GiB of state."""
    large = task(2**27)
    two = world([0.001, 0.001], machines=("a", "a"), memory_bytes=3 * 2**30)
    alone, both = (predict(two, large, DATA, picks, draws=0) for picks in ((0,), (0, 1)))
    assert alone.peak_bytes == (400 * 2**20 + 3 * 2**29,)
    assert alone.feasible
    assert not both.feasible
    assert both.reason == (
        "a (cpu) has 3.0 GiB of memory, and about 3.8 GiB are needed there. Try a smaller "
        "--batch-size"
    )
    apart = world([0.001, 0.001], memory_bytes=3 * 2**30)
    assert predict(apart, large, DATA, (0, 1), draws=0).feasible


def test_more_devices_than_samples() -> None:
    found = predict(world([0.001] * 3), task(batch_size=2), DATA, (0, 1, 2))
    assert (found.feasible, found.plan, found.images_per_s) == (False, None, 0.0)
    assert "batch of 2 cannot give 3 workers" in found.reason


def test_as_if_all_were_alike() -> None:
    """Planned so, but not played so: the slower one takes as long as it does."""
    found = predict(world([0.001, 0.003]), task(), DATA, (0, 1), draws=0, equal=True)
    assert found.plan is not None
    assert found.plan.shares == (60, 60)
    assert found.step_s == pytest.approx(0.180 + 0.010)


def test_a_plan_can_be_looked_at_in_detail() -> None:
    found = predict(world([0.001, 0.002]), task(), DATA, (0, 1), draws=0)
    schedule, played = play(world([0.001, 0.002]), found)
    assert len(schedule) == len(played.spans)
    assert played.step_s == pytest.approx(found.step_s)


def test_a_network_without_parameters() -> None:
    empty = task(network=NetworkFacts(num_parameters=0, num_buffers=0))
    assert predict(world([0.001] * 2), empty, DATA, (0, 1), draws=0).sent_bytes_per_step == 0

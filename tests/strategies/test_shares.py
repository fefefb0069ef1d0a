"""Cutting batches: exact sums, largest remainders, nobody left without work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.errors import UsageError
from convoy.strategies.shares import cut, finish_together, share_of_each

from .reference import largest_remainder

COUNTS = st.integers(0, 5000)
WHOLE = st.lists(st.integers(0, 64), min_size=1, max_size=8).filter(any)
REAL = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8)
WEIGHTS = st.one_of(WHOLE, REAL)


@given(COUNTS, WEIGHTS)
@settings(deadline=None, max_examples=300)
def test_parts_are_those_of_largest_remainders(count: int, weights: list[float]) -> None:
    parts = cut(count, weights)
    assert sum(parts) == count
    assert parts == largest_remainder(count, weights)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - count * weight / sum(weights)) < 1 + 1e-9


@given(WEIGHTS.filter(lambda weights: min(weights) > 0), COUNTS)
@settings(deadline=None, max_examples=300)
def test_every_worker_gets_a_share_and_a_faster_one_no_less(
    weights: list[float], more: int
) -> None:
    batch_size = len(weights) + more
    shares = share_of_each(batch_size, weights)
    assert sum(shares) == batch_size
    assert min(shares) >= 1
    in_order = sorted(zip(weights, shares, strict=True))
    for (slower, less), (faster, share) in pairwise(in_order):
        assert slower == faster or less <= share


@pytest.mark.parametrize(
    ("count", "weights", "parts"),
    [
        (8, [1, 2, 5], [1, 2, 5]),
        (2, [1, 2, 5], [0, 1, 1]),  # 0.25, 0.5, 1.25
        (10, [1, 1, 1], [4, 3, 3]),
        (4, [4, 7, 1], [2, 2, 0]),  # remainders of a third each: the first gets it
        (0, [3, 1], [0, 0]),
        (5, [0, 1], [0, 5]),
        (10, [1e308, 1e308], [5, 5]),
    ],
)
def test_cut_by_hand(count: int, weights: list[float], parts: list[int]) -> None:
    assert cut(count, weights) == parts


@pytest.mark.parametrize(
    ("batch_size", "weights", "shares"),
    [
        (64, [1.0], (64,)),
        (64, [1000.0, 1.0], (63, 1)),
        (3, [100.0, 1.0, 1.0], (1, 1, 1)),
        (10, [10.1, 10.0, 0.1], (5, 4, 1)),  # what the slowest takes, the fastest keeps
        (10, [10.0, 10.1, 0.1], (4, 5, 1)),
    ],
)
def test_shares_by_hand(batch_size: int, weights: list[float], shares: tuple[int, ...]) -> None:
    assert share_of_each(batch_size, weights) == shares


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [math.nan, 1], [math.inf, 1]], ids=repr)
def test_weights_that_nothing_can_be_cut_by(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="cannot cut 8 samples by weights"):
        cut(8, weights)


def test_fewer_samples_than_workers() -> None:
    with pytest.raises(UsageError, match=r"batch of 2 .* 3 workers.*--batch-size 3.*--workers 2"):
        share_of_each(2, [1, 1, 1])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_shares_must_be_above_zero(weight: float) -> None:
    with pytest.raises(UsageError, match=f"above zero.*1, {weight:g}"):
        share_of_each(8, [1.0, weight])


def curve(steps: list[int]) -> Callable[[int], float]:
    """Seconds that never fall: the sums of what each further sample adds."""
    totals = [0, *itertools.accumulate(steps)]
    return lambda samples: float(totals[samples])


CURVES = st.integers(1, 4).flatmap(
    lambda num_ranks: st.tuples(
        st.lists(
            st.lists(st.integers(0, 5), min_size=10, max_size=10),
            min_size=num_ranks,
            max_size=num_ranks,
        ),
        st.integers(num_ranks, 9),
    )
)


@given(CURVES)
def test_no_other_shares_end_earlier(case: tuple[list[list[int]], int]) -> None:
    """Against all ways to cut the batch."""
    steps, batch_size = case
    seconds = [curve(of_rank) for of_rank in steps]
    found = finish_together(batch_size, seconds)
    assert sum(found) == batch_size
    assert min(found) >= 1

    def ends(shares: tuple[int, ...]) -> float:
        return max(time(share) for time, share in zip(seconds, shares, strict=True))

    every = itertools.product(range(1, batch_size + 1), repeat=len(seconds))
    assert ends(found) == min(ends(shares) for shares in every if sum(shares) == batch_size)


def test_what_costs_a_rank_before_its_first_sample() -> None:
    """Rank 1 is as fast, but has 30 s of something else to do in each step."""
    assert finish_together(100, [lambda n: float(n), lambda n: 30.0 + n]) == (65, 35)


def test_a_batch_too_small_for_all() -> None:
    with pytest.raises(UsageError, match="a batch of 2 cannot give 3 workers 1 samples each"):
        finish_together(2, [float] * 3)

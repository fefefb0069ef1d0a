"""Curves through measured points."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.cost.curve import Curve, total

SECONDS = st.floats(0, 1e3, allow_subnormal=False)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    samples = sorted(draw(st.sets(st.integers(1, 5000), min_size=1, max_size=8)))
    return Curve(
        tuple(samples), tuple(draw(st.lists(SECONDS, min_size=len(samples), max_size=len(samples))))
    )


def close_or_above(a: float, b: float) -> bool:
    return a >= b or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12)


@given(curves(), st.floats(0, 10_000), st.floats(0, 10_000))
def test_more_samples_never_take_less(curve: Curve, a: float, b: float) -> None:
    few, many = sorted((a, b))
    assert close_or_above(curve(many), curve(few))


@given(st.lists(SECONDS, min_size=1, max_size=8))
def test_it_goes_through_its_points_or_above_them(seconds: list[float]) -> None:
    samples = tuple(range(3, 3 + 5 * len(seconds), 5))
    curve = Curve(samples, tuple(seconds))
    for i, n in enumerate(samples):
        assert curve(n) == max(seconds[: i + 1])
    rising = Curve(samples, tuple(sorted(seconds)))
    assert [rising(n) for n in samples] == sorted(seconds)


@given(curves(), st.data())
def test_between_two_points_it_is_between_their_times(curve: Curve, data: st.DataObject) -> None:
    n = data.draw(st.floats(curve.samples[0], curve.samples[-1]))
    below = max(i for i, s in enumerate(curve.samples) if s <= n)
    above = min(below + 1, len(curve.samples) - 1)
    assert close_or_above(curve(n), curve.seconds[below])
    assert close_or_above(curve.seconds[above], curve(n))


def test_by_hand() -> None:
    curve = Curve((2, 4, 8), (1.0, 2.0, 6.0))
    assert [curve(n) for n in (2, 3, 4, 5, 6, 8)] == [1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert [curve(n) for n in (0, 1, 1.9)] == [1.0, 1.0, 1.0]  # no less than the least measured
    assert [curve(n) for n in (9, 12)] == [7.0, 10.0]  # as from 4 to 8


def test_one_point_is_a_rate_from_there_on() -> None:
    curve = Curve((4,), (2.0,))
    assert [curve(n) for n in (1, 4, 8, 16)] == [2.0, 2.0, 4.0, 8.0]


def test_a_last_rise_that_noise_has_flattened_is_none() -> None:
    curve = Curve((1, 8, 16), (1.0, 8.0, 8.0))
    assert curve(16) == 8.0
    assert curve(32) == pytest.approx(8.0 + 16 * 0.8 * 8.0 / 16)


@given(curves(), st.floats(0.01, 100), st.floats(0, 10), st.floats(0, 10_000))
def test_scaled_and_longer_at_the_points(
    curve: Curve, factor: float, extra: float, samples: float
) -> None:
    n = min(samples, curve.samples[-1])
    assert curve.scaled(factor)(samples) == pytest.approx(factor * curve(samples))
    assert curve.plus(extra)(n) == pytest.approx(curve(n) + extra)


def test_a_sum() -> None:
    a, b = Curve((1, 5), (1.0, 3.0)), Curve((1, 5), (0.5, 0.5))
    assert total([a, b]) == Curve((1, 5), (1.5, 3.5))
    with pytest.raises(ValueError, match="too many values"):
        total([a, Curve((1, 6), (1.0, 1.0))])


@pytest.mark.parametrize(
    ("samples", "seconds", "message"),
    [
        ((), (), "0 times for 0 numbers"),
        ((1, 2), (1.0,), "1 times for 2 numbers"),
        ((2, 2), (1.0, 1.0), "expected rising numbers"),
        ((3, 2), (1.0, 1.0), "expected rising numbers"),
        ((0, 2), (1.0, 1.0), "from 1"),
        ((1, 2), (1.0, -1e-9), "0 or more"),
        ((1, 2), (1.0, math.nan), "finite"),
        ((1, 2), (1.0, math.inf), "finite"),
    ],
)
def test_what_is_no_curve(
    samples: tuple[int, ...], seconds: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Curve(samples, seconds)

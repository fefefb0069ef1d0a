"""What being a replica costs, out of differences that are mostly noise."""

from __future__ import annotations

import random

import pytest

from convoy.runtime.step_statistics import levelled, smoothed

SIZES = (1, 2, 4, 8, 16, 32, 64, 100)


def test_what_is_the_same_for_every_batch() -> None:
    rng = random.Random(3)
    noisy = {n: 0.002 + rng.gauss(0, 1e-5 * n) for n in SIZES}
    found = smoothed(noisy, SIZES, per_sample=False)
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(0.002, rel=0.05)


def test_what_grows_with_the_batch() -> None:
    found = smoothed({n: 0.001 + 0.0005 * n for n in SIZES}, SIZES, per_sample=True)
    assert found[-1] == pytest.approx(0.051, rel=0.05)
    assert found[-2] == pytest.approx(0.033, rel=0.05)


def test_noise_alone_costs_nothing_on_average() -> None:
    """Differences that are as often below as above zero are no cost, whatever their size."""
    noise = {n: 1e-6 * n * (-1) ** i for i, n in enumerate(SIZES)}
    assert smoothed(noise, SIZES, per_sample=True)[-1] < 4e-6


def test_one_size_alone() -> None:
    assert smoothed({4: 0.5}, (2, 4), per_sample=True) == (0.5, 0.5)


def test_a_machine_that_drifts_bends_no_curve() -> None:
    """Rounds at very different speeds: sizes stay in proportion, at the mean of the speeds."""
    rounds = [{n: speed * (0.002 + 0.001 * n) for n in SIZES} for speed in (0.8, 1.0, 1.5)]
    found = levelled(rounds)
    for n in SIZES:
        assert found[n] == pytest.approx(1.1 * (0.002 + 0.001 * n))


def test_one_slow_moment_is_not_the_sizes() -> None:
    rounds = [{n: 0.001 * n for n in SIZES} for _ in range(10)]
    rounds[3][100] *= 5
    assert levelled(rounds)[100] == pytest.approx(0.1)

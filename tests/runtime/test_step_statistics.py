"""What being a replica costs, out of differences that are mostly noise."""

from __future__ import annotations

import random

import pytest

from convoy.runtime.step_statistics import smoothed

SIZES = (1, 2, 4, 8, 16, 32, 64, 100)


def test_what_is_the_same_for_every_batch() -> None:
    rng = random.Random(3)
    noisy = [0.002 + rng.gauss(0, 1e-5 * n) for n in SIZES]
    found = smoothed(SIZES, noisy, per_sample=False)
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(0.002, rel=0.05)


def test_what_grows_with_the_batch() -> None:
    found = smoothed(SIZES, [0.001 + 0.0005 * n for n in SIZES], per_sample=True)
    assert found[-1] == pytest.approx(0.051, rel=0.05)
    assert found[-2] == pytest.approx(0.033, rel=0.05)


def test_noise_alone_costs_nothing_on_average() -> None:
    """Differences that are as often below as above zero are no cost, whatever their size."""
    noise = [1e-6 * n * (-1) ** i for i, n in enumerate(SIZES)]
    assert smoothed(SIZES, noise, per_sample=True)[-1] < 4e-6


def test_one_size_alone() -> None:
    assert smoothed((4,), [0.5], per_sample=True) == (0.5,)

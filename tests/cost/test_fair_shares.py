from __future__ import annotations

import pytest

from convoy.cost.fabric import Link
from convoy.cost.fair_shares import fair_rates

A: Link = ("up", 0)
B: Link = ("up", 1)
CAPACITY = {A: 100.0, B: 30.0}


def test_one_flow_goes_as_fast_as_its_worst_link() -> None:
    rates = fair_rates({7: {A: 50.0, B: 60.0}}, CAPACITY.__getitem__)
    assert rates == {7: pytest.approx(0.5)}


def test_one_flow_is_the_limit_of_two() -> None:
    """A second flow elsewhere changes nothing, and takes the general way."""
    alone = fair_rates({0: {A: 50.0}}, CAPACITY.__getitem__)
    beside = fair_rates({0: {A: 50.0}, 1: {B: 5.0}}, CAPACITY.__getitem__)
    assert beside[0] == pytest.approx(alone[0])


def test_what_a_held_back_flow_leaves_goes_to_the_other() -> None:
    rates = fair_rates({0: {A: 10.0, B: 10.0}, 1: {A: 10.0}}, CAPACITY.__getitem__)
    assert rates == {0: pytest.approx(3.0), 1: pytest.approx(7.0)}

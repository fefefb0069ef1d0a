"""What is foreseen of staleness, beside gates that are played and closed forms."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.strategies.staleness import mean_staleness, within_bound


def played(speeds: list[float], fetch_every: int, depth: int, pushes: int = 4000) -> float:
    """Mean staleness of pushes that are updates as they arrive.

    A replica takes over, after each push that is the last before a fetch, the weights as they were
    `depth` of its pushes ago.
    """
    behind = 0
    bases = [0] * len(speeds)
    seen: list[list[int]] = [[0] * (depth + 1) for _ in speeds]
    count = [0] * len(speeds)
    events = [(1 / speed * (1 + 0.01 * r), r) for r, speed in enumerate(speeds)]
    heapq.heapify(events)
    for version in range(pushes):
        now, replica = heapq.heappop(events)
        behind += version - bases[replica]
        count[replica] += 1
        seen[replica].append(version + 1)
        if count[replica] % fetch_every == 0:
            bases[replica] = seen[replica][-1 - depth]
        heapq.heappush(events, (now + 1 / speeds[replica], replica))
    return behind / pushes


@pytest.mark.parametrize("speeds", [[1.0], [1.0, 1.0], [1.0, 0.47], [1.0, 0.9, 0.33, 0.21]])
@pytest.mark.parametrize(("fetch_every", "depth"), [(1, 0), (4, 0), (1, 1), (1, 3)])
def test_replicas_that_run_freely(speeds: list[float], fetch_every: int, depth: int) -> None:
    foreseen = mean_staleness(len(speeds), fetches_every=fetch_every, depth=depth)
    assert foreseen == pytest.approx(played(speeds, fetch_every, depth), rel=0.05, abs=0.05)


def test_synchronous_replicas_are_as_slow_as_the_slowest() -> None:
    speeds, staleness = within_bound([1.0, 0.5, 0.1], 0)
    assert speeds == pytest.approx([0.1] * 3, rel=0.01)
    assert staleness == 0


def test_a_bound_is_how_many_others_may_push_while_the_slowest_computes() -> None:
    speeds, staleness = within_bound([1.0, 0.1], 4)
    assert speeds[1] == pytest.approx(0.1, rel=0.05)
    assert 0.3 < speeds[0] < 0.55
    assert staleness < 4


@given(st.lists(st.floats(0.2, 1.0), min_size=1, max_size=4), st.integers(0, 40))
def test_a_bound_holds_and_lets_nobody_be_faster(speeds: list[float], bound: int) -> None:
    found, staleness = within_bound(speeds, bound)
    assert staleness <= bound
    for pace, alone in zip(found, speeds, strict=True):
        assert pace <= alone * 1.01
    if bound >= 30:
        assert found == pytest.approx(speeds, rel=0.05)

"""The division of a network into stages, against every division there is."""

from __future__ import annotations

import itertools

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.strategies.pipeline_partition import Costs, Partition, best_partition


def costs_of(
    segments: list[list[int]],
    links: list[list[list[int]]] | None = None,
    first: list[int] | None = None,
    back: float = 1.0,
) -> Costs:
    """Of seconds by device and segment, of ways by device, device and cut, and of loading."""
    count, ends = len(segments), len(segments[0]) + 1
    stages = numpy.full((count, ends, ends), numpy.inf)
    for device, times in enumerate(segments):
        for start, end in itertools.combinations(range(ends), 2):
            stages[device, start, end] = sum(times[start:end])
    one_way = numpy.zeros((count, count, ends))
    if links is not None:
        one_way[:, :, 1:-1] = links
    return Costs(
        stages=stages,
        one_way=one_way,
        both_ways=one_way * (1 + back),
        first=numpy.array(first or [0] * count, dtype=float),
    )


def seconds_of(costs: Costs, micro_batches: int, partition: Partition) -> float:
    """By the definition."""
    starts = (0, *partition.ends)
    stages = [costs.stages[d, starts[s], starts[s + 1]] for s, d in enumerate(partition.devices)]
    pairs = zip(partition.devices, partition.devices[1:], partition.ends, strict=False)
    crossings = list(pairs)
    one_way = [costs.one_way[crossing] for crossing in crossings]
    both = [costs.both_ways[crossing] for crossing in crossings]
    busiest = max([*stages, *one_way])
    return float(
        (micro_batches - 1) * busiest + sum(stages) + sum(both) + costs.first[partition.devices[0]]
    )


def every_partition(costs: Costs) -> list[Partition]:
    count, last = len(costs.stages), costs.stages.shape[1] - 1
    return [
        Partition(devices=devices, ends=(*cuts, last), seconds=0.0)
        for devices in itertools.permutations(range(count))
        for cuts in itertools.combinations(range(1, last), count - 1)
    ]


@given(st.data())
def test_no_other_partition_is_through_earlier(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    segments = data.draw(st.integers(count, 6))
    times = st.integers(0, 20)
    costs = costs_of(
        [[data.draw(times) for _ in range(segments)] for _ in range(count)],
        [
            [[data.draw(times) for _ in range(segments - 1)] for _ in range(count)]
            for _ in range(count)
        ],
        [data.draw(times) for _ in range(count)],
        back=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    micro_batches = data.draw(st.integers(1, 9))
    found = best_partition(costs, micro_batches)
    assert found.seconds == pytest.approx(seconds_of(costs, micro_batches, found))
    assert sorted(found.devices) == list(range(count))
    best = min(seconds_of(costs, micro_batches, other) for other in every_partition(costs))
    assert found.seconds == pytest.approx(best)


@given(st.data())
def test_in_order_no_other_cuts_are_better(data: st.DataObject) -> None:
    segments = data.draw(st.integers(3, 7))
    times = st.lists(st.integers(0, 20), min_size=segments, max_size=segments)
    costs = costs_of([data.draw(times) for _ in range(3)])
    found = best_partition(costs, 4, in_order=True)
    assert found.devices == (0, 1, 2)
    others = [other for other in every_partition(costs) if other.devices == (0, 1, 2)]
    assert found.seconds == pytest.approx(min(seconds_of(costs, 4, other) for other in others))


def test_the_thickest_cut_gets_the_fastest_link() -> None:
    """Three equal devices, of which 0 and 2 are close; what crosses first is thick."""
    thick, thin = 30, 3
    near = [thick / 10, thin / 10]
    far = [thick, thin]
    apart = [[far, far, near], [far, far, far], [near, far, far]]
    found = best_partition(costs_of([[1, 1, 1]] * 3, apart), 8)  # type: ignore[arg-type]
    assert found.devices in ((0, 2, 1), (2, 0, 1))


def test_more_devices_than_orders_can_be_tried_keep_theirs() -> None:
    found = best_partition(costs_of([[1] * 12 for _ in range(9)]), 4)
    assert found.devices == tuple(range(9))
    assert found.ends[-1] == 12


def test_a_faster_device_gets_more() -> None:
    found = best_partition(costs_of([[2] * 6, [1] * 6]), 16)
    assert sorted(numpy.diff((0, *found.ends))) == [2, 4]
    assert found.devices[int(numpy.argmax(numpy.diff((0, *found.ends))))] == 1

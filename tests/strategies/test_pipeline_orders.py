"""Micro-batches, and the order in which a device computes their passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining import ScheduleInterleaved1F1B, ScheduleLoopedBFS

from convoy.cost.layers import NetworkFacts
from convoy.strategies.pipeline_orders import KINDS, Kind, micro_batch_sizes, passes, takes_turns


def order(kind: Kind, place: int, depth: int, number: int, stages_each: int = 1) -> str:
    """As `F0 B0`, or with several stages on each device `Fa0 Bb0`."""
    letters = "abc" if stages_each > 1 else " "
    done = passes(kind, place, depth, stages_each, number)
    return " ".join(f"{p[0].upper()}{letters[s // depth].strip()}{i}" for p, s, i in done)


def test_passes_in_order() -> None:
    assert order("gpipe", 0, 2, 3) == "F0 F1 F2 B0 B1 B2"
    assert order("1f1b", 0, 3, 4) == "F0 F1 F2 B0 F3 B1 B2 B3"
    assert order("1f1b", 1, 3, 4) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert order("1f1b", 2, 3, 4) == "F0 B0 F1 B1 F2 B2 F3 B3"
    assert order("1f1b", 0, 3, 2) == "F0 F1 B0 B1"  # too few to take turns
    assert order("gpipe", 0, 1, 2) == "F0 B0 F1 B1"  # alone


def test_passes_of_several_stages_on_a_device() -> None:
    assert order("gpipe", 1, 2, 2, 2) == "Fa0 Fa1 Fb0 Fb1 Bb1 Bb0 Ba1 Ba0"
    assert (
        order("1f1b", 0, 2, 4, 2)
        == "Fa0 Fa1 Fb0 Fb1 Fa2 Bb0 Fa3 Bb1 Fb2 Ba0 Fb3 Ba1 Bb2 Bb3 Ba2 Ba3"
    )
    assert order("1f1b", 0, 2, 5, 2) == order("gpipe", 0, 2, 5, 2)  # no whole rounds


@pytest.mark.parametrize("kind", KINDS)
@given(depth=st.integers(2, 5), stages_each=st.integers(2, 3), number=st.integers(1, 14))
def test_the_orders_are_torchs(kind: Kind, depth: int, stages_each: int, number: int) -> None:
    """Those of the schedules that carry them out; of one stage, torch's are written in code."""
    in_turns = takes_turns(kind, depth, stages_each, number)
    made: Any = ScheduleInterleaved1F1B if in_turns else ScheduleLoopedBFS
    schedule = made.__new__(made)  # without stages, which it wants processes for
    schedule._n_microbatches, schedule.pp_group_size = number, depth
    schedule._stages, schedule.n_local_stages = [None] * stages_each, stages_each
    schedule.number_of_rounds = max(1, number // depth)
    schedule.microbatches_per_round = number // schedule.number_of_rounds
    words = {"FORWARD": "forward", "FULL_BACKWARD": "backward"}
    for place in range(depth):
        torchs = [
            (words[a.computation_type.name], a.stage_index, a.microbatch_index)
            for a in schedule._calculate_single_rank_operations(place)
            if a is not None
        ]
        assert list(passes(kind, place, depth, stages_each, number)) == torchs


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.sampled_from(KINDS))
def test_every_micro_batch_goes_there_and_back_once(
    depth: int, stages_each: int, number: int, kind: Kind
) -> None:
    for place in range(depth):
        done = list(passes(kind, place, depth, stages_each, number))
        expected = {
            (stage, i) for stage in range(place, depth * stages_each, depth) for i in range(number)
        }
        for phase in ("forward", "backward"):
            assert {(s, i) for p, s, i in done if p == phase} == expected
        assert len(done) == 2 * len(expected)
        assert all(done.index(("forward", *x)) < done.index(("backward", *x)) for x in expected)


@given(st.integers(1, 100), st.integers(1, 20), st.booleans())
def test_micro_batches_are_even(samples: int, number: int, normalises: bool) -> None:
    network = NetworkFacts(
        num_parameters=1, num_buffers=0, batch_norm_channels=(3,) if normalises else ()
    )
    sizes = micro_batch_sizes(network, samples, number)
    assert sum(sizes) == samples
    assert list(sizes) == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= (2 if normalises and samples > 1 else 1)
    assert len(sizes) <= number

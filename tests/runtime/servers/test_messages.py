"""What replicas and shards say to each other arrives as it was said."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from convoy.runtime.servers.messages import (
    Answer,
    Kind,
    PushMessage,
    Request,
    pack_answer,
    pack_request,
    read_answer,
    read_request,
)

DTYPES = ["float32", "float64", "int16", "int32"]
"""Weights and values, bfloat16 in the clothes of int16, positions."""
COUNTS = st.integers(0, 2**53)
ARRAYS = st.builds(
    lambda dtype, content: numpy.frombuffer(content[: len(content) // 8 * 8], dtype=dtype),
    st.sampled_from(DTYPES),
    st.binary(max_size=64),
)
"""Of any bits, those of numbers that are none included."""
PUSHES = st.builds(
    PushMessage,
    replica=COUNTS,
    number=COUNTS,
    base=COUNTS,
    holds=st.lists(COUNTS, max_size=3).map(tuple),
    samples=COUNTS,
    lr=st.floats(allow_nan=False),
    arrays=st.lists(ARRAYS, min_size=1, max_size=2).map(tuple),
    fetch=st.booleans(),
)
ANSWERS = st.builds(
    Answer,
    version=COUNTS,
    staleness=st.none() | COUNTS,
    held_s=st.floats(0, 1e9),
    weights=st.none() | ARRAYS,
)


def requests(kinds: SearchStrategy[Any], pushes: SearchStrategy[Any]) -> SearchStrategy[Request]:
    return st.builds(
        Request,
        kind=kinds,
        session=st.text(max_size=40),
        ticket=COUNTS,
        replica=COUNTS,
        push=pushes,
    )


def on_the_wire(frames: list[Any]) -> list[memoryview]:
    """What arrives: the same bytes, in memory of others that may only be read."""
    return [memoryview(bytes(memoryview(frame).cast("B"))) for frame in frames]


def bits(array: numpy.ndarray) -> tuple[str, bytes]:
    """A number that is none equals nothing, but its bits do."""
    return array.dtype.name, array.tobytes()


def push(**changes: Any) -> PushMessage:
    values: dict[str, Any] = {
        "replica": 0,
        "number": 1,
        "base": 0,
        "holds": (),
        "samples": 1,
        "lr": 0.1,
    }
    values |= {"arrays": (numpy.ones(3),), "fetch": True}
    return PushMessage(**(values | changes))


def sent(message: PushMessage) -> PushMessage:
    """A push that has been sent and read."""
    request = Request(kind="push", session="s", ticket=1, replica=message.replica, push=message)
    found = read_request(on_the_wire(pack_request(request))).push
    assert found is not None
    return found


@settings(deadline=None)
@given(requests(st.sampled_from([k for k in get_args(Kind) if k != "push"]), st.none()))
def test_a_question_arrives_as_it_was_asked(request: Request) -> None:
    frames = pack_request(request)
    assert len(frames) == 1
    assert read_request(on_the_wire(frames)) == request


@settings(deadline=None)
@given(PUSHES)
def test_a_push_arrives_to_the_last_bit(message: PushMessage) -> None:
    found = sent(message)
    assert [bits(a) for a in found.arrays] == [bits(a) for a in message.arrays]
    rest = {"arrays": ()}
    assert vars(found) | rest == vars(message) | rest


@settings(deadline=None)
@given(COUNTS, ANSWERS)
def test_an_answer_arrives_to_the_last_bit(ticket: int, answer: Answer) -> None:
    found_ticket, found = read_answer(on_the_wire(pack_answer(ticket, answer)))
    assert found_ticket == ticket
    assert (found.version, found.staleness, found.held_s) == (
        answer.version,
        answer.staleness,
        answer.held_s,
    )
    assert (found.weights is None) == (answer.weights is None)
    if found.weights is not None and answer.weights is not None:
        assert bits(found.weights) == bits(answer.weights)


@settings(deadline=None, max_examples=300)
@given(st.floats(allow_nan=False))
def test_a_learning_rate_is_exact(lr: float) -> None:
    found = sent(push(lr=lr)).lr
    assert found == lr
    assert math.copysign(1, found) == math.copysign(1, lr)


def test_weights_stay_where_they_are_on_both_sides() -> None:
    """Neither side copies: the frame is the array, and what is read is the frame."""
    weights = numpy.arange(5.0)
    _, frame = pack_answer(3, Answer(version=1, weights=weights))
    assert frame is weights
    frames = on_the_wire(pack_answer(3, Answer(version=1, weights=weights)))
    _, found = read_answer(frames)
    assert found.weights is not None
    assert numpy.shares_memory(found.weights, numpy.frombuffer(frames[1], dtype=numpy.uint8))


def test_what_is_read_may_not_be_written_to() -> None:
    (found,) = sent(push()).arrays
    assert not found.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found += 1


def test_the_head_is_a_line_of_json_for_whoever_looks_at_the_wire() -> None:
    frames = pack_request(
        Request(kind="push", session="s", ticket=7, replica=2, push=push(base=41))
    )
    head = json.loads(frames[0])
    assert (head["kind"], head["ticket"], head["replica"], head["base"]) == ("push", 7, 2, 41)
    assert head["types"] == ["float64"]


def test_arrays_that_are_missing_are_noticed() -> None:
    frames = pack_request(Request(kind="push", session="s", ticket=1, replica=0, push=push()))
    with pytest.raises(ValueError, match="zip"):
        read_request(on_the_wire(frames[:1]))

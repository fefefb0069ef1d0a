from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from convoy.runtime.gate import Gate

PATIENCE_S = 30.0
"""How long a test waits for what comes at once, before it calls that a failure."""


@pytest.fixture
def loop(no_thread_left: None) -> Iterator[Callable[[Gate, int], Future[list[int]]]]:
    """A function that runs a training loop in a thread, which gives the steps it was let do."""
    gates: list[Gate] = []

    def start(gate: Gate, first_step: int = 0) -> Future[list[int]]:
        gates.append(gate)

        def run() -> list[int]:
            done = []
            step = first_step
            while gate.admit(step):
                done.append(step)
                step += 1
            return done

        return pool.submit(run)

    with ThreadPoolExecutor() as pool:
        try:
            yield start
        finally:
            for gate in gates:  # a failed test must not leave them running
                gate.release(0, "over")


def test_open_at_first() -> None:
    gate = Gate()
    assert all(gate.admit(step) for step in range(5))
    assert gate.reason == ""


def test_stops_before_the_step_it_is_told(loop: Callable[..., Future[list[int]]]) -> None:
    gate = Gate()
    gate.release(7, "checkpoint")
    assert loop(gate).result(PATIENCE_S) == list(range(7))
    assert gate.reason == "checkpoint"


def test_a_step_behind_the_boundary_does_not_begin() -> None:
    gate = Gate()
    assert gate.admit(3)
    gate.release(2, "lost")
    assert not gate.admit(4)


def test_a_held_loop_begins_no_step_until_it_is_released(
    loop: Callable[..., Future[list[int]]],
) -> None:
    gate = Gate()
    running = loop(gate)
    last = gate.hold()
    assert gate.hold() == last  # nothing moves any more, however often one asks
    assert not running.done()
    gate.release(last + 3, "regroup")
    assert running.result(PATIENCE_S) == list(range(last + 3))
    assert gate.reason == "regroup"


def test_hold_tells_the_last_step_begun() -> None:
    gate = Gate()
    assert gate.hold() == -1
    gate.reset(5)
    assert gate.hold() == 4
    gate.reset(5)
    assert gate.admit(5)
    assert gate.admit(6)
    assert gate.hold() == 6


def test_two_rounds_stop_all_ranks_between_the_same_steps(
    loop: Callable[..., Future[list[int]]],
) -> None:
    gates = [Gate() for _ in range(4)]
    running = [loop(gate) for gate in gates]
    boundary = max(gate.hold() for gate in gates) + 1
    for gate in gates:
        gate.release(boundary, "regroup")
    for future in running:
        assert future.result(PATIENCE_S) == list(range(boundary))


def test_an_immediate_stop_reaches_a_loop_that_waits(
    loop: Callable[..., Future[list[int]]],
) -> None:
    gate = Gate()
    begun = gate.hold()
    running = loop(gate)
    gate.release(0, "lost")
    assert running.result(PATIENCE_S) == []
    assert begun == -1


def test_reset_opens_it_again(loop: Callable[..., Future[list[int]]]) -> None:
    gate = Gate()
    gate.hold()
    gate.release(0, "lost")
    assert not gate.admit(0)
    gate.reset(10)
    assert gate.reason == ""
    assert gate.admit(10)
    gate.release(13, "checkpoint")
    assert loop(gate, 11).result(PATIENCE_S) == [11, 12]


def test_the_reason_is_there_when_the_loop_stops() -> None:
    gate = Gate()
    reasons: list[str] = []
    held = threading.Event()

    def run() -> None:
        held.wait(PATIENCE_S)
        while gate.admit(0):
            pass
        reasons.append(gate.reason)

    thread = threading.Thread(target=run)
    thread.start()
    gate.hold()
    held.set()
    gate.release(0, "regroup")
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert reasons == ["regroup"]

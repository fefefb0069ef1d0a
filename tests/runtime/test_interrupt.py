from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from convoy.runtime.interrupt import Interrupt

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers_are_as_before() -> Iterator[None]:
    before = [signal.getsignal(kind) for kind in SIGNALS]
    yield
    assert [signal.getsignal(kind) for kind in SIGNALS] == before


@pytest.mark.parametrize("kind", SIGNALS)
def test_the_first_signal_asks_and_the_second_interrupts(kind: signal.Signals) -> None:
    with Interrupt() as interrupt:
        assert not interrupt.asked
        signal.raise_signal(kind)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(kind)


def test_one_of_each_kind_are_two() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_afterwards_signals_act_as_they_did() -> None:
    # What runs in the background of a shell begins with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ZeroDivisionError), Interrupt():
            raise ZeroDivisionError
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_of_others_come_back() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with Interrupt():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    asked: list[bool] = []

    def run() -> None:
        with Interrupt() as interrupt:
            asked.append(interrupt.asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]

"""Strategies by name and option, and what is said of wrong ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from convoy.errors import UnknownNameError, UsageError
from convoy.strategies import STRATEGIES, make_strategy
from convoy.strategies.data_parallel import DataParallel
from convoy.strategies.parameter_averaging import ParameterAveraging
from convoy.strategies.single import Single


def test_strategies_are_made_with_the_options_given() -> None:
    assert make_strategy("single", {}) == Single()
    assert make_strategy("data", {"wire": "bf16"}) == DataParallel(wire="bf16", batch_norm="sync")
    assert make_strategy("averaging", {"average_every": "end", "sync_first": 3}) == (
        ParameterAveraging(average_every="end", sync_first=3)
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_a_frozen_configuration_under_its_own_name(name: str) -> None:
    strategy = make_strategy(name, {})
    assert strategy.name == name
    assert strategy.summary
    assert type(strategy).__doc__
    for field in dataclasses.fields(strategy):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, field.name, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "date",
            r"unknown strategy 'date'\. Nearest: data\. Known: averaging, data, downpour,",
        ),
        (
            "",
            r"unknown strategy ''\. Known: averaging, data, downpour, filter, hybrid, pipeline",
        ),
        ("DATA", r"unknown strategy 'DATA'\. Nearest: data\."),
    ],
)
def test_unknown_strategies(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        make_strategy(name, {})


def test_an_option_that_no_strategy_has() -> None:
    with pytest.raises(UsageError, match=r"unknown strategy option 'wires'\. Nearest: wire\."):
        make_strategy("data", {"wires": "bf16"})


@pytest.mark.parametrize(
    ("name", "option", "owner"),
    [
        ("data", {"average_every": 4}, "--average-every belongs to --strategy averaging; 'data'"),
        ("averaging", {"batch_norm": "sync"}, "--batch-norm belongs to --strategy data;"),
        (
            "single",
            {"wire": "fp32"},
            "--wire belongs to --strategy data or downpour or filter; 'single'",
        ),
    ],
)
def test_an_option_of_another_strategy(name: str, option: dict[str, Any], owner: str) -> None:
    with pytest.raises(UsageError, match=owner):
        make_strategy(name, option)


def test_the_option_at_fault_is_named_among_others() -> None:
    with pytest.raises(UsageError, match="--sync-first belongs to --strategy averaging"):
        make_strategy("data", {"wire": "bf16", "sync_first": 1})


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("data", {"wire": "fp16"}, "unknown --wire 'fp16'.*bf16, fp32"),
        ("data", {"wire": 16}, "unknown --wire '16'"),
        ("data", {"batch_norm": "snyc"}, "unknown --batch-norm 'snyc'. Nearest: sync"),
        ("averaging", {"average_every": 0}, "--average-every 0: expected 1 or more .* 'end'"),
        ("averaging", {"average_every": -3}, "--average-every -3: "),
        ("averaging", {"average_every": "never"}, "--average-every never: expected 1 or more"),
        ("averaging", {"average_every": 2.5}, "--average-every 2.5: expected 1 or more"),
        ("averaging", {"average_every": True}, "--average-every True: expected 1 or more"),
        ("averaging", {"sync_first": -1}, "--sync-first -1: expected 0 or more"),
        ("averaging", {"sync_first": "2"}, "--sync-first 2: expected 0 or more"),
    ],
)
def test_values_that_make_no_sense(name: str, option: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_strategy(name, option)

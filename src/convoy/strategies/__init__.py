"""The ways to distribute training, in one explicit table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from convoy.errors import UnknownNameError, UsageError, describe_unknown
from convoy.strategies.base import (
    Batch,
    Completed,
    Equipment,
    Pending,
    Plan,
    Problem,
    Rank,
    Strategy,
    Worker,
)
from convoy.strategies.data_parallel import DataParallel
from convoy.strategies.parameter_averaging import ParameterAveraging
from convoy.strategies.single import Single

__all__ = [
    "AUTO",
    "STRATEGIES",
    "UNPLANNED",
    "Batch",
    "Completed",
    "Equipment",
    "Pending",
    "Plan",
    "Problem",
    "Rank",
    "Strategy",
    "Worker",
    "candidates",
    "make_strategy",
]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (Single, DataParallel, ParameterAveraging)
}


AUTO = "auto"
"""In place of a strategy's name: whichever the planner predicts to be fastest."""

UNPLANNED = "data"
"""What `auto` is where there is nothing to plan: shares are given, or torchrun has placed ranks."""


def candidates(
    options: Mapping[str, Any], names: Iterable[str] = tuple(STRATEGIES)
) -> list[Strategy]:
    """The strategies of these names, each with those of the options that it has.

    Raises:
        UsageError: an option that none of them has.
    """
    names = list(names)
    for option in options:
        owners = [name for name in names if option in _fields(STRATEGIES[name])]
        if not owners:
            make_strategy(names[0], {option: options[option]})  # says whose it is
    return [
        make_strategy(name, {o: v for o, v in options.items() if o in _fields(STRATEGIES[name])})
        for name in names
    ]


def make_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """The strategy called `name`, configured by those of its fields that `options` give.

    Raises:
        UnknownNameError: no such strategy.
        UsageError: an option that this strategy does not have; says which ones do.
    """
    if name not in STRATEGIES:
        raise UnknownNameError("strategy", name, STRATEGIES)
    strategy = STRATEGIES[name]
    known = {field.name for field in fields(strategy)}  # type: ignore[arg-type]
    for option in options:
        if option in known:
            continue
        owners = [s.name for s in STRATEGIES.values() if option in _fields(s)]
        flag = "--" + option.replace("_", "-")
        if not owners:
            every = {f for s in STRATEGIES.values() for f in _fields(s)}
            raise UsageError(describe_unknown("strategy option", option, every))
        raise UsageError(
            f"{flag} belongs to --strategy {' or '.join(owners)}; {name!r} does not have it"
        )
    return strategy(**options)


def _fields(strategy: type[Strategy]) -> set[str]:
    return {field.name for field in fields(strategy)}  # type: ignore[arg-type]

"""The ways to distribute training, in one explicit table."""

from __future__ import annotations

from collections.abc import Mapping
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
    "STRATEGIES",
    "Batch",
    "Completed",
    "Equipment",
    "Pending",
    "Plan",
    "Problem",
    "Rank",
    "Strategy",
    "Worker",
    "make_strategy",
]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (Single, DataParallel, ParameterAveraging)
}


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

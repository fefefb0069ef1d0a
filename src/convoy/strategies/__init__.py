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
from convoy.strategies.downpour import Downpour
from convoy.strategies.filter_parallel import FilterParallel
from convoy.strategies.hybrid_parallel import HybridParallel
from convoy.strategies.parameter_averaging import ParameterAveraging
from convoy.strategies.pipeline_parallel import PipelineParallel
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
    "options_of",
]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        *(Single, DataParallel, ParameterAveraging, Downpour),
        *(FilterParallel, HybridParallel, PipelineParallel),
    )
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
    for name in names:
        if name not in STRATEGIES:
            raise UnknownNameError("strategy", name, STRATEGIES)
    every = {f: s.name for s in STRATEGIES.values() for f in _fields(s)}
    for option in options:
        if option not in every:
            raise UsageError(describe_unknown("strategy option", option, every))
        if not any(option in _fields(STRATEGIES[name]) for name in names):
            raise UsageError(
                f"--{option.replace('_', '-')} belongs to --strategy {every[option]}, and the "
                f"choice is among {', '.join(names)}: name that strategy, or leave the option out"
            )
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


def options_of(strategy: Strategy, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the strategy has."""
    return {name: value for name, value in options.items() if name in _fields(type(strategy))}


def _fields(strategy: type[Strategy]) -> set[str]:
    return {field.name for field in fields(strategy)}  # type: ignore[arg-type]

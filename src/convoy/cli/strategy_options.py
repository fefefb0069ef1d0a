"""Strategies' own options on the command line, taken from their fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

from typer import Option

from convoy.strategies import STRATEGIES


def with_strategy_options(panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's `**strategy_options` by an option for each field of each strategy.

    A field's help is its metadata's `help`; fields of one name in several strategies share one
    option.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[str | None, Option(help=text, rich_help_panel=panel)],
            )
            for name, text in _help_by_option().items()
        ]

        def whole(**given: Any) -> None:
            for parameter in added:
                given[parameter.name] = _value(given[parameter.name])
            command(**given)

        whole.__name__, whole.__doc__ = command.__name__, command.__doc__
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own] + added
        whole.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        whole.__annotations__ = {p.name: p.annotation for p in parameters}
        return whole

    return decorate


def _help_by_option() -> dict[str, str]:
    helps: dict[str, str] = {}
    owners: dict[str, list[str]] = {}
    for strategy in STRATEGIES.values():
        for field in fields(strategy):  # type: ignore[arg-type]
            owners.setdefault(field.name, []).append(strategy.name)
            text = field.metadata["help"]
            helps[field.name] = max(helps.get(field.name, ""), text, key=len)
    return {name: f"{', '.join(owners[name])}: {text}." for name, text in helps.items()}


def _value(text: str | None) -> int | str | None:
    """A number where it is one; whether it is a good one the strategy decides."""
    if text is not None and text.removeprefix("-").isdecimal():
        return int(text)
    return text

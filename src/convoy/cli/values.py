"""What several verbs take as text."""

from __future__ import annotations

import re

from convoy.errors import UsageError


def image_shape(option: str, text: str | None) -> tuple[int, int, int] | None:
    """Channels, height and width of "3x224x224"; UsageError, by the option's name, if it is not."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise UsageError(f"{option} {text}: expected channels x height x width, as 3x224x224")
    channels, height, width = map(int, found.groups())
    return channels, height, width


def names_in(text: str | None) -> list[str] | None:
    """The names in "single, data"; None where nothing is said."""
    return [name.strip() for name in text.split(",")] if text else None

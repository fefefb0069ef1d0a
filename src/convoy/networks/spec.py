"""What a builder is told: the network's name, what goes in and how many classes come out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from convoy.errors import UsageError

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height, width."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One request for a network."""

    name: str
    """As the user wrote it, with the numbers of a parametrised name."""
    input_shape: Shape
    """Of one image; each at least 1."""
    num_classes: int
    """Logits per image; at least 1."""

    @property
    def channels(self) -> int:
        return self.input_shape[0]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.input_shape[1:]


Builder: TypeAlias = Callable[[Spec], nn.Module]
"""Returns a module that maps images [N, C, H, W] to raw logits [N, num_classes]."""


def numbers_in(spec: Spec, pattern: str, *, form: str, example: str) -> tuple[int, ...]:
    """The whole numbers, from 1, that stand in a parametrised name where `pattern` has 'N'.

    numbers_in(spec, "marques:N:N", form=..., example=...)      # "marques:50:500": (50, 500)

    Raises:
        UsageError: the name is not of that form.
    """
    found = re.fullmatch(pattern.replace("N", "([1-9][0-9]*)"), spec.name)
    if found is None:
        raise UsageError(
            f"network {spec.name!r} is malformed: expected {form}, whole numbers from 1, "
            f"for example {example}"
        )
    return tuple(int(number) for number in found.groups())

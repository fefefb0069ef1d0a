"""What a loss came to, and what a crew goes on from."""

from __future__ import annotations

from dataclasses import dataclass

from convoy.runtime.checkpoint import Checkpoint


@dataclass
class Recovery:
    """A crew was lost, and how long it took until work went on."""

    generation: int
    """The crew that was lost."""
    step: int
    lost: list[str]
    noticed: float
    """time.monotonic()"""
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Footing:
    """What a crew goes on from."""

    step: int
    checkpoint: Checkpoint | None
    source: int | None = None
    """The rank whose state it is; None where it is the checkpoint's."""
    shared: bool = False
    """Whether every rank has it already, so that none is handed over."""

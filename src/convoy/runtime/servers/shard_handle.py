"""What the driver knows of shards: where each is, what became of it, how far training was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convoy.runtime.placement import Place


@dataclass
class ShardHandle:
    """The driver's view of one shard."""

    index: int
    actor: Any
    loaded: Any
    """Gives its endpoint once it has its state."""
    node_id: str
    home: int
    """The rank on whose machine it is."""
    serving: Any = None
    """Ends when the shard does."""
    incarnation: int = 0
    endpoint: str = ""
    """Where it listens, once it has its state."""


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """A shard that died and was started again."""

    shard: int
    lost_updates: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Move:
    """A shard that went to another machine."""

    shard: int
    to: str
    """The machine."""
    seconds: float
    """For which nobody served."""


@dataclass(frozen=True, kw_only=True)
class Moving:
    """Where a shard is to go, or one may, as soon as a process is there."""

    place: Place
    rank: int
    actor: Any
    ready: Any
    """Ends once it is."""
    since: float
    """When it was asked for (`time.monotonic`)."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training is when a snapshot is taken."""

    low: int
    """All steps before it are done."""
    beyond: tuple[int, ...]
    """And these."""
    shares: tuple[int, ...]
    layout: str | None
    """The memory format in use."""

"""Parameter servers as strategies know them: on which terms they serve, and what a replica sees.

server.fetch()                          the newest weights are in the model
server.exchange(push, fetch=True)       on its way; returns at once
server.settle()                         waits, and takes over what has been answered
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from convoy.strategies.parameter_shards import Pieces
from convoy.strategies.push_codec import Wire

WORTH_OVERLAPPING = 0.15
"""Of a step's computation: an exchange that takes more of it is overlapped with the next."""


@dataclass(frozen=True, kw_only=True)
class ServerLayout:
    """Which server holds which parameters; see `server_layout.py`."""

    homes: tuple[int, ...]
    """By shard: the rank on whose machine it is."""
    pieces: tuple[Pieces, ...]
    """By shard: what it holds."""
    places: tuple[int, ...]
    """By shard: which device of every replica talks to it."""
    team: int = 1
    """Devices of each replica: rank r `team` + d is device d of replica r."""

    def shards_of(self, place: int) -> tuple[int, ...]:
        """Those that the device in this place of its replica talks to."""
        return tuple(shard for shard, of in enumerate(self.places) if of == place)


@dataclass(frozen=True, kw_only=True)
class ServerTerms:
    """What asynchronous training asks of its servers."""

    bound: int | None
    """How many versions a push may be behind; None: any number."""
    staleness_scaled: bool
    """Whether the step of a push is divided by how many it is behind."""
    depth: int
    """Pushes that may be unanswered while a replica computes on, at first."""
    deepens: bool
    """Whether a replica that waits long for its answers lets one more be unanswered."""
    wire: Wire
    window: int
    """Steps after which pushes and fetches fall together again; leases are whole numbers of it."""
    warm_start: int
    """Steps that one replica does before the others join."""
    snapshot_s: float
    """Seconds between snapshots."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Gradients of one replica over some of its steps."""

    gradients: Mapping[str, Tensor]
    """By parameter: the sum over these steps of the mean over a step's samples."""
    samples: int
    lr: float
    """Learning rate of the last of these steps."""


class ParameterServer(Protocol):
    """All shards together, for one replica."""

    def fetch(self) -> None:
        """Have the newest weights in the model. Blocks."""

    def exchange(self, push: Push | None, *, fetch: bool) -> None:
        """Send a push, and ask for the weights after it. Returns at once."""

    def settle(self) -> None:
        """Wait until no more than the allowed number of exchanges is unanswered.

        Weights that have arrived are in the model then.
        """

    def finish(self) -> None:
        """Wait until every exchange is answered."""

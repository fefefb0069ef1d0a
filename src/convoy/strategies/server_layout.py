"""Which server holds which parameters, on whose machine, and which devices talk to it.

    replica 0    device 0 ──┐      ┌── device 0    replica 1
                         shard 0: convolutions
                 device 1 ──┐      ┌── device 1
                         shard 1: dense layers

Devices in the same place of their replicas have the same part of the network, and talk to the
shards of that part and to no other (Dean et al. 2012, section 4.1). Where a replica is one device
there is one place, and all shards are of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from convoy.cost.layers import NetworkFacts
from convoy.errors import UsageError
from convoy.strategies.base import Worker
from convoy.strategies.parameter_shards import Pieces, divide, num_elements
from convoy.strategies.server import ServerLayout

MOST_SHARDS = 8
"""For each place, that are made unasked, and"""
LEAST_ELEMENTS = 1_000_000
"""of each of these at least: smaller messages cost what they are and not what is in them, and every
machine with a shard is one more on which all depend."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Devices in the order of their ranks, `team` for each replica."""

    workers: tuple[Worker, ...]
    team: int
    speeds: tuple[float, ...]
    """By replica: steps per second, or in proportion to them."""

    def machines(self, place: int) -> dict[str, int]:
        """Machines with devices in this place, the fastest first, and the first rank on each."""
        ranks = range(place, len(self.workers), self.team)
        found: dict[str, int] = {}
        for rank in sorted(ranks, key=lambda rank: -self.speeds[rank // self.team]):
            found.setdefault(self.workers[rank].machine, rank)
        return found

    def machine_speeds(self, place: int) -> list[float]:
        """Of all replicas with a device in this place on each of the `machines`, together."""
        total = dict.fromkeys(self.machines(place), 0.0)
        for rank in range(place, len(self.workers), self.team):
            total[self.workers[rank].machine] += self.speeds[rank // self.team]
        return list(total.values())


def lay_out(
    network: NetworkFacts,
    replicas: Replicas,
    asked: int | Literal["auto"],
    place_of: Mapping[str, int],
) -> ServerLayout:
    """Cut the parameters of each place into shards, on the machines that have it.

    Args:
        asked: how many shards; auto is as few as keep links least busy, and not small ones.
        place_of: by parameter, whose part of the network it is; that of the first otherwise.

    Raises:
        UsageError: so many shards cannot be.
    """
    parts: list[Shapes] = [{} for _ in range(replicas.team)]
    for name, shape in _shapes(network).items():
        parts[place_of.get(name, 0)][name] = shape
    if asked == "auto":
        counts = [
            min(
                _rows(shapes),
                max(1, _elements(shapes) // LEAST_ELEMENTS),
                num_shards(replicas.machine_speeds(place)),
            )
            for place, shapes in enumerate(parts)
        ]
    else:
        counts = _allotted(asked, parts)
    homes: list[int] = []
    pieces: list[Pieces] = []
    places: list[int] = []
    for place, (shapes, count) in enumerate(zip(parts, counts, strict=True)):
        ranks = list(replicas.machines(place).values())
        shards = divide(shapes, count) if count else ()
        pieces += shards
        places += [place] * len(shards)
        homes += [ranks[number % len(ranks)] for number in range(len(shards))]
    return ServerLayout(
        homes=tuple(homes), pieces=tuple(pieces), places=tuple(places), team=replicas.team
    )


def num_shards(speeds: Sequence[float]) -> int:
    """How many shards keep the busiest machine's link least busy; of about equals, the fewest.

    With S shards on the S fastest machines each has an S-th of the parameters. A machine's link
    brings it the pushes of all others to its shard, and what its replicas fetch from other shards;
    what it sends is as much.

    Args:
        speeds: steps per second of each machine's replicas, the fastest first.
    """
    total = sum(speeds)

    def busiest(count: int) -> float:
        with_shard = max((total - s) / count + s * (count - 1) / count for s in speeds[:count])
        return max([with_shard, *speeds[count:]])

    loads = {count: busiest(count) for count in range(1, min(len(speeds), MOST_SHARDS) + 1)}
    return min(count for count, load in loads.items() if load <= 1.1 * min(loads.values()))


def _allotted(asked: int, parts: Sequence[Shapes]) -> list[int]:
    """Shards of each place, in proportion to what they hold; one at least where there is any."""
    if len(parts) == 1:
        return [asked]
    rows, sizes = [_rows(shapes) for shapes in parts], [_elements(shapes) for shapes in parts]
    counts = [min(1, number) for number in rows]
    if not sum(counts) <= asked <= sum(rows):
        raise UsageError(
            f"--shards {asked}: the {len(parts)} devices of a replica have shards of their own, "
            f"{sum(counts)} at least, and their parameters, which are split by rows, fill "
            f"{sum(rows)} at most"
        )
    while sum(counts) < asked:
        open_places = [place for place, number in enumerate(rows) if counts[place] < number]
        counts[max(open_places, key=lambda place: sizes[place] / counts[place])] += 1
    return counts


def _shapes(network: NetworkFacts) -> Shapes:
    """Trainable parameters; as one, where nobody knows more of them than how many there are."""
    return dict(network.shapes) or {"": (network.num_parameters,)}


def _rows(shapes: Shapes) -> int:
    return sum(shape[0] if shape else 1 for shape in shapes.values())


def _elements(shapes: Shapes) -> int:
    return sum(num_elements(shard) for shard in divide(shapes, 1)) if shapes else 0

"""One training step as operations and what waits for what.

A schedule is a tuple of operations; `after` holds the indices of those that must have
finished before one starts. It is data only: the simulator plays it, and the conformance
suite holds a real run's bytes against it.

    0 Compute(rank 0, forward+backward) ──┐
                                          ├─▶ 2 Collective(all-reduce) ─▶ 3, 4 Compute(update)
    1 Compute(rank 1, forward+backward) ──┘

Steps that follow one another are joined by `in_a_row`: a rank begins its next step when it has
ended its last, whatever the others do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal["load", "forward", "replica", "backward", "accumulate", "update", "average"]
"""`replica` is what a rank that exchanges gradients does more than one alone, bytes apart;
`average` what one does that averages its network and optimizer with others, likewise; `accumulate`
is adding gradients to those of another batch."""
CollectiveKind = Literal["all-reduce", "broadcast"]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """A rank works on `samples` samples in one phase of `layer` ('' is the whole network)."""

    rank: int
    phase: Phase
    samples: int
    layer: str = ""
    part: float = 1.0
    """Which part of the layer's filters or channels, or of all parameters, it is about."""
    portion: float = 1.0
    """Which portion of that work it is, where it is done in several goes."""
    step: int = 0
    """Which of several steps in a row it belongs to."""
    after: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """`payload_bytes` travel from one rank to another."""

    source: int
    destination: int
    payload_bytes: int
    after: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All of `ranks` take part; `payload_bytes` is the size of the tensor on each of them."""

    kind: CollectiveKind
    ranks: tuple[int, ...]
    payload_bytes: int
    after: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Each of `ranks` sends others what it has for them, all at once.

    It stands for as many transfers as there are pairs, where those would be too many to play.
    """

    ranks: tuple[int, ...]
    sends: tuple[int, ...]
    """Payload bytes that each sends in all."""
    receives: tuple[int, ...]
    """Payload bytes that each receives in all; their sum is that of `sends`."""
    peers: int
    """To how many others each sends."""
    after: tuple[int, ...] = ()


Operation = Compute | Transfer | Collective | Exchange
Schedule = tuple[Operation, ...]


def in_a_row(schedules: Iterable[Schedule]) -> Schedule:
    """Steps one after another: what a rank does first waits for what it did last.

    First is what waits for nothing that the rank itself does in the step, and last what nothing
    of the rank waits for. A transfer or collective is something that each of its ranks does.
    """
    joined: list[Operation] = []
    last: dict[int, tuple[int, ...]] = {}
    for step, schedule in enumerate(schedules):
        offset = len(joined)
        ended: dict[int, list[int]] = defaultdict(list)
        followed: set[tuple[int, int]] = set()
        for operation in schedule:
            after = {before + offset: None for before in operation.after}  # a set in order
            for rank in ranks_of(operation):
                own = [before for before in operation.after if rank in ranks_of(schedule[before])]
                followed |= {(rank, before + offset) for before in own}
                if not own:
                    after |= dict.fromkeys(last.get(rank, ()))
                ended[rank].append(len(joined))
            if isinstance(operation, Compute):
                joined.append(replace(operation, after=tuple(after), step=step))
            else:
                joined.append(replace(operation, after=tuple(after)))
        for rank, indices in ended.items():
            last[rank] = tuple(index for index in indices if (rank, index) not in followed)
    return tuple(joined)


def ranks_of(operation: Operation) -> tuple[int, ...]:
    """The ranks that take part in an operation."""
    match operation:
        case Compute(rank=rank):
            return (rank,)
        case Transfer(source=source, destination=destination):
            return (source, destination)
    return operation.ranks


def ring_share(payload_bytes: int, world_size: int, position: int) -> int:
    """Bytes that the rank at `position` sends in ring all-reduces of `payload_bytes` in all.

    A ring all-reduce of B bytes over n ranks sends 2 (n - 1) B bytes altogether
    (reduce-scatter, then all-gather; Patarasuk & Yuan 2009, section 3), as evenly as whole
    bytes allow. Gloo uses the ring, and interface counters agree to within 1%
    (`benchmarks/wire_bytes.py`).
    """
    total = 2 * (world_size - 1) * payload_bytes
    return total // world_size + (1 if position < total % world_size else 0)


def sent_bytes(schedule: Iterable[Operation], rank: int) -> int:
    """Payload bytes that `rank` sends in `schedule`. A broadcast's are counted at its root."""
    return sent_by_rank(schedule, rank + 1)[rank]


def sent_by_link(schedule: Iterable[Operation]) -> dict[tuple[int, int], float]:
    """Payload bytes by the rank that sends and the rank that receives.

    A sum goes round a ring, from each rank to the next; what an `Exchange` sends goes to all others
    alike. Links that nothing crosses are not there.
    """
    sent: defaultdict[tuple[int, int], float] = defaultdict(int)
    reduced: defaultdict[tuple[int, ...], int] = defaultdict(int)
    for operation in schedule:
        match operation:
            case Transfer(source=source, destination=destination, payload_bytes=size):
                sent[source, destination] += size
            case Collective(kind="all-reduce", ranks=ranks, payload_bytes=size):
                reduced[ranks] += size
            case Collective(kind="broadcast", ranks=(source, *others), payload_bytes=size):
                for other in others:
                    sent[source, other] += size
            case Exchange(ranks=ranks, sends=sends):
                for rank, size in zip(ranks, sends, strict=True):
                    for other in ranks:
                        if other != rank:
                            sent[rank, other] += size / (len(ranks) - 1)
    for ranks, size in reduced.items():
        for position, rank in enumerate(ranks):
            following = ranks[(position + 1) % len(ranks)]
            sent[rank, following] += ring_share(size, len(ranks), position)
    return {link: size for link, size in sent.items() if size}


def sent_by_rank(schedule: Iterable[Operation], num_ranks: int) -> list[int]:
    """Payload bytes that each of the first `num_ranks` ranks sends in `schedule`."""
    sent: defaultdict[int, int] = defaultdict(int)
    reduced: defaultdict[tuple[int, ...], int] = defaultdict(int)
    for operation in schedule:
        match operation:
            case Transfer(source=source, payload_bytes=size):
                sent[source] += size
            case Collective(kind="all-reduce", ranks=ranks, payload_bytes=size):
                reduced[ranks] += size
            case Collective(kind="broadcast", ranks=ranks, payload_bytes=size):
                sent[ranks[0]] += size * (len(ranks) - 1)
            case Exchange(ranks=ranks, sends=sends):
                for rank, size in zip(ranks, sends, strict=True):
                    sent[rank] += size
    for ranks, size in reduced.items():
        for position, rank in enumerate(ranks):
            sent[rank] += ring_share(size, len(ranks), position)
    return [sent[rank] for rank in range(num_ranks)]

"""What replicas and shards say to each other: a line of JSON, and arrays behind it as they are.

    replica ── {"kind": "push", "ticket": 7, "base": 41, ...} | gradient ──▶ shard
            ◀─ {"ticket": 7, "version": 42, "staleness": 0, ...} | weights ──

Nothing is unpickled, and arrays are neither copied nor converted on their way (ZeroMQ's frames).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy

from convoy.strategies.push_codec import Arrays

Kind = Literal["push", "fetch", "refetch", "leave"]


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Of all shards, or of those that somebody talks to."""

    endpoints: tuple[str, ...]
    """Where each listens."""
    incarnations: tuple[int, ...]
    """Which of its processes in a row it is: each is one more than the last one's."""
    homes: tuple[int, ...]
    """The rank on whose machine each is."""

    def of(self, shards: Sequence[int]) -> Whereabouts:
        """Those of some shards."""
        return Whereabouts(
            endpoints=tuple(self.endpoints[i] for i in shards),
            incarnations=tuple(self.incarnations[i] for i in shards),
            homes=tuple(self.homes[i] for i in shards),
        )


@dataclass(frozen=True, kw_only=True)
class PushMessage:
    """A push as it arrives."""

    replica: int
    number: int
    """Which of its pushes to this shard it is, from 1 on: one that is sent again is known by it."""
    base: int
    """The version of the weights that it is of."""
    holds: tuple[int, ...]
    """Versions that its replica goes on to compute with."""
    samples: int
    lr: float
    arrays: Arrays
    fetch: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What comes back."""

    version: int
    staleness: int | None = None
    """Of a push: updates between the fetch of its weights and its own. None of one that had been
    applied before it was sent again."""
    held_s: float = 0.0
    """How long the gate has held the push back."""
    weights: numpy.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A replica's question to one shard."""

    kind: Kind
    session: str
    """Of which run; what is left over from another is not answered."""
    ticket: int
    """Comes back with the answer."""
    replica: int
    push: PushMessage | None = None


def pack_request(request: Request) -> list[Any]:
    """Frames of a question."""
    head: dict[str, Any] = {
        "kind": request.kind,
        "session": request.session,
        "ticket": request.ticket,
        "replica": request.replica,
    }
    push = request.push
    if push is None:
        return [json.dumps(head).encode()]
    head |= {"number": push.number, "base": push.base, "holds": push.holds, "samples": push.samples}
    head |= {"lr": push.lr, "fetch": push.fetch, "types": [a.dtype.name for a in push.arrays]}
    return [json.dumps(head).encode(), *push.arrays]


def read_request(frames: Sequence[Any]) -> Request:
    """The question that `pack_request` made; frames are bytes-like."""
    head = json.loads(bytes(frames[0]))
    push = None
    if head["kind"] == "push":
        push = PushMessage(
            replica=head["replica"],
            number=head["number"],
            base=head["base"],
            holds=tuple(head["holds"]),
            samples=head["samples"],
            lr=head["lr"],
            arrays=_arrays(frames[1:], head["types"]),
            fetch=head["fetch"],
        )
    return Request(
        kind=head["kind"],
        session=head["session"],
        ticket=head["ticket"],
        replica=head["replica"],
        push=push,
    )


def pack_answer(ticket: int, answer: Answer) -> list[Any]:
    """Frames of an answer."""
    weights = answer.weights
    head = {
        "ticket": ticket,
        "version": answer.version,
        "staleness": answer.staleness,
        "held_s": answer.held_s,
        "types": [] if weights is None else [weights.dtype.name],
    }
    return [json.dumps(head).encode(), *([] if weights is None else [weights])]


def read_answer(frames: Sequence[Any]) -> tuple[int, Answer]:
    """The ticket, and the answer that `pack_answer` made."""
    head = json.loads(bytes(frames[0]))
    arrays = _arrays(frames[1:], head["types"])
    return head["ticket"], Answer(
        version=head["version"],
        staleness=head["staleness"],
        held_s=head["held_s"],
        weights=arrays[0] if arrays else None,
    )


def _arrays(frames: Sequence[Any], types: Sequence[str]) -> Arrays:
    return tuple(
        numpy.frombuffer(frame, dtype=numpy.dtype(name))
        for frame, name in zip(frames, types, strict=True)
    )

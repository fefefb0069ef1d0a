"""What a replica is to do next: its first device asks, and tells the others.

coordinator ── lease ──▶ first device ── Command ──▶ every device of the replica, itself included

A replica of one device tells nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import ray
from ray.exceptions import GetTimeoutError

from convoy.comm import Comm
from convoy.runtime.servers.coordinator import Lease

Kind = Literal["step", "judge", "pause", "wait", "fetch", "end"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Command:
    """One thing to do."""

    kind: Kind
    """
    step    train on the batch of `step`
    judge   judge the network, as after `step`
    pause   have all exchanges answered; others may wait for nothing that comes of this replica
    wait    nothing: whoever says so is there still
    fetch   take the newest weights: others have gone on
    end     nothing is left to do
    """
    step: int = -1
    ends_lease: bool = False
    """Whether nobody knows yet what follows."""
    alone: bool = False
    """Whether no other replica is at work."""


def asked(coordinator: Any, replica: int, patience_s: float) -> Iterator[Command]:
    """What follows from the coordinator's leases.

    Args:
        patience_s: after so long without a lease it says `wait`.
    """
    while True:
        lease: Lease | None = ray.get(coordinator.lease.remote(replica))
        if lease is None:
            yield Command(kind="pause")
            waiting = coordinator.wait_for_lease.remote(replica)
            while lease is None:
                try:
                    lease = ray.get(waiting, timeout=patience_s)
                except GetTimeoutError:
                    yield Command(kind="wait")
            yield Command(kind="end" if lease.ends else "fetch")
        elif lease.ends:
            yield Command(kind="pause")
            yield Command(kind="end")
        if lease.ends:
            return
        if lease.evaluates is not None:
            yield Command(kind="judge", step=lease.evaluates, alone=lease.alone)
        for position, step in enumerate(lease.steps):
            ends = position + 1 == len(lease.steps)
            yield Command(kind="step", step=step, ends_lease=ends, alone=lease.alone)


def told(comm: Comm, own: Iterator[Command] | None) -> Iterator[Command]:
    """The first rank's commands, `own` there and None elsewhere, on all ranks until the end."""
    while True:
        values = [0, 0, 0, 0]
        if own is not None:
            command = next(own)
            kind = KINDS.index(command.kind)
            values = [kind, command.step, int(command.ends_lease), int(command.alone)]
        kind, step, ends_lease, alone = comm.announce(values)
        yield Command(kind=KINDS[kind], step=step, ends_lease=bool(ends_lease), alone=bool(alone))
        if KINDS[kind] == "end":
            return

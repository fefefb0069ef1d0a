"""The driver's view of one member of a crew: hired, ready, at work, or gone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
)

from convoy.errors import ConvoyError, CrewError
from convoy.runtime.events import Event
from convoy.runtime.formation import Outcome
from convoy.runtime.member import describe
from convoy.runtime.placement import Place
from convoy.runtime.pool import Pool

START_TIMEOUT_S = 120.0
POLL_PATIENCE_S = 10.0
"""How long one that is asked what it has to report may take, and how much longer than a collective
(--timeout-s) one that does not answer is waited for before it counts as dead."""
AGAIN_S = 0.5
"""How long one that has not answered is waited for when it is asked again."""
GONE = (RayActorError, ObjectLostError, ActorUnschedulableError)
"""What Ray raises for an answer that died with its process or its machine."""


@dataclass
class MemberHandle:
    """The driver's view of one member."""

    place: Place
    actor: Any
    call: Any
    """Reference to what it was last asked to do: to prepare, or to train."""
    pid: int | None = None
    outcome: Outcome | None = None
    received: int = 0
    """How many of its events have arrived here."""
    silent_since: float | None = None
    """When it was asked (`time.monotonic`) what it has not answered in time, if it owes that."""


def hire(place: Place, num_threads: int, job_reference: Any, pool: Pool) -> MemberHandle:
    """Take a member at `place` out of the pool; it prepares in the background."""
    actor = pool.take(place, num_threads)
    call = actor.prepare.remote(job_reference, num_threads)
    return MemberHandle(place=place, actor=actor, call=call)


def dismiss(members: Sequence[MemberHandle], pool: Pool, *, reusable: bool) -> None:
    """Give members back to the pool, or end them where they may not have come to rest."""
    for member in members:
        if reusable and member.pid is not None:
            pool.give_back(member.place, member.actor)
        else:
            ray.kill(member.actor)


def end(member: MemberHandle) -> None:
    """End its process, and count it as dead."""
    ray.kill(member.actor)
    member.pid = None


def await_ready(members: Sequence[MemberHandle]) -> None:
    """Wait until all are prepared.

    Raises:
        ConvoyError: one of them cannot be: what it raised, or CrewError.
    """
    for member in members:
        where = f"the rank on {member.place.machine} ({member.place.device})"
        try:
            member.pid = ray.get(member.call, timeout=START_TIMEOUT_S)
        except GetTimeoutError:
            raise CrewError(
                f"{where} did not start within {START_TIMEOUT_S:.0f} s. Does the cluster have "
                f"free cores there? `convoy doctor` tells more"
            ) from None
        except RayTaskError as error:
            raise foreign_error(error, where) from None
        except GONE as error:
            raise CrewError(f"{where} died while it started: {error}") from None


def foreign_error(error: RayTaskError, where: str) -> ConvoyError:
    """What a member raised, as the driver raises it: its own ConvoyError, or the traceback."""
    cause = error.cause
    if isinstance(cause, ConvoyError):
        return cause
    return CrewError(f"{where} failed: {describe(error)}\n{error}")


def stop_all(members: Sequence[MemberHandle], reason: str) -> bool:
    """Have all members stop at one boundary; False if one is lost meanwhile."""
    try:
        begun = ray.get([s.actor.hold.remote() for s in members], timeout=10)
        boundary = max(begun) + 1
        ray.get([s.actor.release.remote(boundary, reason) for s in members], timeout=10)
    except (*GONE, GetTimeoutError):
        for member in members:
            member.actor.release.remote(0, "lost")
        return False
    return True


def fetch(members: Sequence[MemberHandle], *, patience_s: float = POLL_PATIENCE_S) -> list[Event]:
    """What living members have reported since the last time, of those that answer in time.

    Those who did not last time are not waited for as long again, unless more patience is asked for.
    """
    asked = time.monotonic()
    polls = [s.actor.poll.remote(s.received) for s in members]
    events = []
    for member, poll in zip(members, polls, strict=True):
        again = member.silent_since is not None and patience_s <= POLL_PATIENCE_S
        patience = AGAIN_S if again else patience_s
        try:
            arrived = ray.get(poll, timeout=patience)
        except GetTimeoutError:
            member.silent_since = member.silent_since or asked
            continue  # asked for again next time
        except GONE:
            continue
        member.silent_since = None
        member.received += len(arrived)
        events += arrived
    return events


def note_the_dead(members: Sequence[MemberHandle], *, patience_s: float = 10.0) -> None:
    """Ask members that nobody waits for whether they live; those that do not lose their `pid`."""
    asked = [s.actor.poll.remote(s.received) for s in members]
    for member, answer in zip(members, asked, strict=True):
        try:
            ray.get(answer, timeout=patience_s)
        except (*GONE, GetTimeoutError):
            member.pid = None


def committed(member: MemberHandle) -> int:
    """The step that `member`'s state goes on from; -1 where it has none to offer."""
    step = member.outcome.step if member.outcome else None
    return -1 if step is None else step

"""Members that are one replica together, and those who wait until there are enough for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayTaskError

from convoy.errors import ConvoyError, DivergedError
from convoy.runtime.formation import Outcome
from convoy.runtime.member_handle import GONE, MemberHandle, end, foreign_error

END_TOGETHER_S = 15.0
"""How long those may take to end who have lost a device of their replica."""


@dataclass
class Team:
    """A replica: its number, and its members by device."""

    number: int
    members: list[MemberHandle]
    failure: ConvoyError | None = None
    """What a member of it raised."""

    @property
    def has_finished(self) -> bool:
        """Whether every part has ended as it should."""
        return all(m.outcome and m.outcome.kind == "finished" for m in self.members)

    @property
    def is_lost(self) -> bool:
        """Whether a member is gone, or has lost another."""
        return any(m.outcome and m.outcome.kind == "peer lost" for m in self.members)

    def collect(self, done: Sequence[object]) -> None:
        """Take the outcomes of those whose calls are `done`.

        Raises:
            DivergedError: a member's loss is not finite.
        """
        for member in self.members:
            if member.outcome is None and member.call in done:
                member.outcome = self._outcome(member)

    def part(self) -> tuple[list[MemberHandle], list[MemberHandle]]:
        """Of a team that is lost: those who can go on, and those who are gone, once all have ended.

        Those who neither answer nor die are ended.

        Raises:
            DivergedError: a member's loss is not finite.
        """
        calls = [member.call for member in self.members if member.outcome is None]
        if calls:
            done, _ = ray.wait(calls, num_returns=len(calls), timeout=END_TOGETHER_S)
            self.collect(done)
        for member in self.members:
            if member.outcome is None:
                end(member)
        gone = [member for member in self.members if member.pid is None]
        return [member for member in self.members if member.pid is not None], gone

    def _outcome(self, member: MemberHandle) -> Outcome:
        try:
            outcome: Outcome = ray.get(member.call)
        except RayTaskError as error:
            where = f"replica {self.number} on {member.place.machine}"
            failure = foreign_error(error, where)
            if isinstance(failure, DivergedError):
                raise failure from None
            self.failure = self.failure or failure
            end(member)
            return Outcome(kind="peer lost", step=None, detail="failed")
        except GONE:
            member.pid = None
            return Outcome(kind="peer lost", step=None, detail="died")
        return outcome


@dataclass
class Bench:
    """Members that are ready, until there are enough of them for a replica."""

    size: int
    """Devices of a replica."""
    position_of: Callable[[MemberHandle], int]
    """Which device of a replica a member is, if it may choose."""
    members: list[MemberHandle] = field(default_factory=list)

    def take_teams(self) -> list[list[MemberHandle]]:
        """As many replicas as there are members for; the rest wait on."""
        teams = []
        while len(self.members) >= self.size:
            positions: list[MemberHandle | None] = [None] * self.size
            for member in list(self.members):
                if positions[wanted := self.position_of(member)] is None:
                    positions[wanted] = member
                    self.members.remove(member)
            teams.append([member or self.members.pop(0) for member in positions])
        return teams

"""Ranks on their way: started again in a lost one's place, until they can join at a boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayTaskError

from convoy.errors import CrewError
from convoy.runtime.member import describe
from convoy.runtime.member_handle import GONE, MemberHandle, await_ready
from convoy.runtime.observer import Observer
from convoy.runtime.placement import Place

RESTARTS_PER_PLACE = 5  # in a row, without a step done in between


@dataclass
class Recruits:
    """Those who will join, and how often each place has been tried."""

    observer: Observer
    start: Callable[[Place], MemberHandle]
    """Starts a rank at a place."""
    members: list[MemberHandle] = field(default_factory=list)
    _restarts: dict[int, int] = field(default_factory=dict)

    def replace(self, dead: MemberHandle) -> None:
        """Start the lost rank again, if its machine lives and has not lost it too often."""
        index = dead.place.index
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._restarts[index] = self._restarts.get(index, 0) + 1
        if dead.place.node_id not in alive:
            self.observer.say(
                f"{dead.place.machine} itself is gone: going on without it", "warning"
            )
        elif self._restarts[index] > RESTARTS_PER_PLACE:
            self.observer.say(
                f"{dead.place.machine} has lost its rank {RESTARTS_PER_PLACE} times: going on "
                "without it",
                "warning",
            )
        else:
            self.members.append(self.start(dead.place))

    def note_step(self, working: Iterable[MemberHandle]) -> None:
        """Those at work have done a step: they have come back for good."""
        for member in working:
            self._restarts.pop(member.place.index, None)

    def any_ready(self) -> bool:
        """Whether somebody can join now. Those that could not be started are tried again."""
        for member in list(self.members):
            done, _ = ray.wait([member.call], timeout=0)
            if not done:
                continue
            try:
                member.pid = ray.get(member.call)
            except (*GONE, RayTaskError) as error:
                self.members.remove(member)
                self.observer.say(
                    f"{member.place.machine} could not be started again: {describe(error)}",
                    "warning",
                )
                self.replace(member)
        return any(member.pid is not None for member in self.members)

    def await_all(self) -> None:
        """Wait for all of them; of those that cannot come, only the last is an error."""
        for member in list(self.members):
            try:
                await_ready([member])
            except CrewError:
                if len(self.members) == 1:
                    raise
                self.members.remove(member)

    def take_ready(self) -> list[MemberHandle]:
        """Those who can join now; they are recruits no more."""
        ready = [member for member in self.members if member.pid is not None]
        self.members = [member for member in self.members if member.pid is None]
        return ready

"""The driver's side of replicas, over a Ray that is played: who is given up, and what goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from convoy.errors import ClusterError, CrewError, DivergedError
from convoy.runtime import member_handle, recruits
from convoy.runtime.formation import Outcome
from convoy.runtime.member_handle import MemberHandle
from convoy.runtime.servers import replica_keeper as module
from convoy.runtime.servers import teams
from convoy.runtime.servers.replica_keeper import ReplicaKeeper
from convoy.runtime.servers.teams import Team
from convoy.runtime.settings import TrainSettings

from .played_ray import PENDING, Actor, Answer, PlayedRay

PATIENCE_S = 70.0
"""--timeout-s, and ten seconds."""


class World:
    """Two machines with a replica each, and what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.found: Callable[[], list[Any]] = list
        self.actors = [Actor(node, {"poll": [], "newest": {}}) for node in "ab"]
        self.places = [
            SimpleNamespace(index=i, node_id=node, machine=node) for i, node in enumerate("ab")
        ]
        log: Any = SimpleNamespace(
            versions={0: (0, 4)}, take=lambda events: None, wants_clock=lambda rank: False
        )
        served: Any = SimpleNamespace(
            job=SimpleNamespace(settings=TrainSettings(strategy="downpour")),
            layout=SimpleNamespace(team=1),
            terms=SimpleNamespace(bound=None),
            places=self.places,
            log=log,
            observer=SimpleNamespace(say=lambda text, level="info": self.said.append(text)),
            find_places=lambda: self.found(),
        )
        self.coordinator: Any = Actor("a", {"forget": (3, 4), "progress": (3, ())})
        shards: Any = SimpleNamespace(
            forget=lambda replica: None, how_to_go_on=lambda: "Go on with --resume run"
        )
        self.keeping = ReplicaKeeper(
            served=served, network={}, shards=shards, coordinator=self.coordinator
        )
        self.replaced: list[str] = []
        replace: Any = lambda member: self.replaced.append(member.place.machine)  # noqa: E731
        self.keeping.recruits.replace = replace  # type: ignore[method-assign]
        for number, (place, actor) in enumerate(zip(self.places, self.actors, strict=True)):
            member = MemberHandle(place=place, actor=actor, call=Answer(), pid=number + 1)  # type: ignore[arg-type]
            self.keeping.teams[number] = Team(number=number, members=[member])

    def ends(self, number: int, how: Any) -> None:
        """A replica's part comes to an end."""
        (member,) = self.keeping.teams[number].members
        member.call.value = how
        self.keeping.collect([member.call], stopping=False)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    played = PlayedRay(["a", "b"])
    for one in (module, teams, member_handle, recruits):
        monkeypatch.setattr(one, "ray", played)
    return World()


def raised(error: Exception) -> RayTaskError:
    """What Ray raises in the driver for what a process raised."""
    return RayTaskError("replicate", "traceback", error)


def test_one_that_hangs_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had leased others do, and its place is taken again."""
    now = [100.0]
    for one in (module, member_handle):
        monkeypatch.setattr(one.time, "monotonic", lambda: now[0])
    world.actors[0].answers["poll"] = PENDING
    world.keeping.drain()
    now[0] += PATIENCE_S - 1
    world.keeping.drain()
    world.keeping.collect([], stopping=False)
    assert set(world.keeping.teams) == {0, 1}
    now[0] += 2
    world.keeping.drain()
    world.keeping.collect([], stopping=False)
    assert set(world.keeping.teams) == {1}
    assert world.actors[0].killed
    assert world.replaced == ["a"]
    assert world.keeping.losses == [{"step": 3, "lost": ["a"], "again": 2}]
    assert world.said[0] == "a has not answered for 70 s: its process is ended"


def test_one_that_answers_again_is_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    for one in (module, member_handle):
        monkeypatch.setattr(one.time, "monotonic", lambda: now[0])
    for answer in (PENDING, [], PENDING):
        world.actors[0].answers["poll"] = answer
        world.keeping.drain()
        now[0] += PATIENCE_S - 1
    world.keeping.collect([], stopping=False)
    assert set(world.keeping.teams) == {0, 1}
    assert world.said == []


def test_an_error_of_one_is_not_everyone_s(world: World) -> None:
    world.ends(0, raised(CrewError("shard 1 of the parameters has not answered")))
    assert set(world.keeping.teams) == {1}
    assert world.actors[0].killed
    assert world.replaced == ["a"]
    assert world.said[0] == "shard 1 of the parameters has not answered"
    with pytest.raises(CrewError, match=r"replica 1 on b failed: .*ValueError: of mine"):
        world.ends(1, raised(ValueError("of mine")))


def test_one_that_diverges_ends_the_run(world: World) -> None:
    with pytest.raises(DivergedError, match="the loss became nan"):
        world.ends(1, raised(DivergedError("the loss became nan")))


def test_one_that_dies_is_replaced(world: World) -> None:
    world.ends(1, ActorDiedError())
    assert set(world.keeping.teams) == {0}
    assert world.replaced == ["b"]


def test_one_that_is_done_rests(world: World) -> None:
    world.ends(1, Outcome(kind="finished", step=None))
    assert [member.place.machine for member in world.keeping.resting] == ["b"]
    assert world.replaced == []


def test_the_newest_version_is_what_any_replica_knows(world: World) -> None:
    assert world.keeping.newest_version(0, incarnation=1) == 0
    world.actors[0].answers["newest"] = {0: (0, 6), 1: (0, 9)}
    world.actors[1].answers["newest"] = ActorDiedError()
    assert world.keeping.newest_version(0, incarnation=0) == 6
    assert world.keeping.newest_version(1, incarnation=0) == 9
    world.actors[1].answers["newest"] = {0: (1, 2)}
    assert world.keeping.newest_version(0, incarnation=1) == 2


def test_a_cluster_file_that_is_being_edited_ends_nothing(world: World, tmp_path: Path) -> None:
    def find() -> list[Any]:
        raise ClusterError(f"{tmp_path}: half of it is missing")

    world.found = find
    for _ in range(3):
        world.keeping.look_for_machines()
    (text,) = world.said
    assert text == f"machines that come are not looked for: {tmp_path}: half of it is missing"

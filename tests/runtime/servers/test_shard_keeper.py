"""The driver's side of shards, over a Ray that is played: who starts where, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError

from convoy.errors import CheckpointError, CrewError, DivergedError
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.servers import shard_keeper as module
from convoy.runtime.servers.shard import ShardState
from convoy.runtime.servers.shard_handle import Progress
from convoy.runtime.servers.shard_keeper import ShardKeeper
from convoy.runtime.servers.snapshots import Snapshots
from convoy.runtime.settings import TrainSettings
from convoy.strategies.parameter_shards import divide

from .played_ray import PENDING, Actor, PlayedRay

PROGRESS = Progress(low=7, beyond=(9,), shares=(4, 4, 4), layout=None)


@dataclass
class World:
    """Three machines, a Ray and a pool."""

    folder: Path
    ray: PlayedRay = field(default_factory=lambda: PlayedRay(["a", "b", "c"]))
    started: list[Actor] = field(default_factory=list)
    given_back: list[Actor] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of processes that are started from now on, by node."""
    said: list[str] = field(default_factory=list)
    has_room: bool = True
    risen: tuple[float, float] | None = None

    def take_server(self, kind: type, node: str) -> Actor:
        """A new process."""
        del kind
        usual = {"load": lambda orders: f"tcp://{node}:{orders.index}", "serve": PENDING}
        usual |= {"snapshot": lambda: state(5), "retire": lambda: state(6)}
        self.started.append(Actor(node, usual | self.answers.get(node, {})))
        return self.started[-1]

    def give_back_server(self, kind: type, node: str, actor: Actor) -> None:
        """Note it."""
        del kind, node
        self.given_back.append(actor)

    def discards(self) -> list[str]:
        """The nodes of processes that were ended."""
        return [actor.node for actor in self.started if actor.killed]


class Log:
    """What shards' keeper is told of a run, and its folder."""

    def __init__(self, world: World) -> None:
        self._world, self.folder = world, RunFolder(world.folder)

    def flush(self) -> bool:
        """Whether there is room."""
        return self._world.has_room

    @property
    def risen(self) -> tuple[float, float] | None:
        """The best loss and the last ones'."""
        return self._world.risen


def state(version: int, value: float = 1.0) -> ShardState:
    return ShardState(version=version, weights=torch.full((8,), value))


def keeper(world: World, bound: int | None = None) -> ShardKeeper:
    """Of two shards, on machines a and b, which serve."""
    places = [
        SimpleNamespace(node_id=node, address=f"10.0.0.{i}", machine=node)
        for i, node in enumerate("abc")
    ]
    served: Any = SimpleNamespace(
        job=SimpleNamespace(settings=TrainSettings(strategy="downpour")),
        terms=SimpleNamespace(bound=bound),
        layout=SimpleNamespace(pieces=divide({"w": (8, 2)}, 2), homes=(0, 1)),
        places=places,
        log=Log(world),
        observer=SimpleNamespace(say=lambda text, level="info": world.said.append(text)),
        pool=world,
        generation=1,
    )
    coordinator: Any = Actor("a", {"at_work": []})
    found = ShardKeeper(served, coordinator, Snapshots(served))
    found.start({"model/w": torch.zeros(8, 2)}, [0, 0])
    found.tell()
    return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(folder=tmp_path / "run")
    made.folder.mkdir()
    monkeypatch.setattr(module, "ray", made.ray)
    yield made
    monkeypatch.undo()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that lets time pass."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def pass_(seconds: float) -> None:
        now[0] += seconds

    return pass_


def test_a_dead_shard_is_there_again_on_its_machine(world: World) -> None:
    keeping = keeper(world)
    keeping.keep({"w": torch.zeros(8, 2)}, PROGRESS)
    keeping.restore(keeping.shards[1], newest=9)
    (again,) = world.started[2:]
    assert again.node == "b"
    assert keeping.where().incarnations == (0, 1)
    (restoration,) = keeping.restorations
    assert (restoration.shard, restoration.lost_updates) == (1, 4)


def test_on_another_machine_if_its_own_is_gone(world: World) -> None:
    keeping = keeper(world)
    world.ray.alive = ["a", "c"]
    keeping.restore(keeping.shards[1], newest=0)
    assert world.started[-1].node == "a"
    assert keeping.where().homes == (0, 0)
    assert keeping.restorations[0].lost_updates == 0


def test_a_process_that_waits_takes_its_place(world: World) -> None:
    keeping = keeper(world)
    keeping.keep_spare([2, 0, 1])
    assert [actor.node for actor in world.started] == ["a", "b", "c"]
    keeping.restore(keeping.shards[0], newest=0)
    assert len(world.started) == 3
    assert keeping.where().homes == (2, 1)


@pytest.mark.parametrize("comes", [PENDING, ActorDiedError()])
def test_one_that_is_not_there_keeps_nobody_waiting(world: World, comes: Any) -> None:
    keeping = keeper(world)
    world.answers["c"] = {"ready": comes}
    keeping.keep_spare([2, 0, 1])
    keeping.restore(keeping.shards[0], newest=0)
    assert world.discards() == ["c"]
    assert world.started[-1].node == "a"


def test_a_spare_leaves_a_machine_that_has_become_slow(world: World) -> None:
    keeping = keeper(world)
    keeping.keep_spare([0, 1, 2])
    assert world.started[-1].node == "c"  # the one without a shard
    keeping.keep_spare([1, 2, 0])
    assert len(world.started) == 3
    keeping.keep_spare([1, 0])  # c is slow
    assert world.started[-1].node == "b"
    assert world.discards() == ["c"]
    world.ray.alive = ["a", "c"]
    keeping.keep_spare([0, 1, 2])
    assert world.started[-1].node == "c"


def test_a_spare_that_died_is_replaced(world: World) -> None:
    keeping = keeper(world)
    world.answers["c"] = {"ready": ActorDiedError()}
    keeping.keep_spare([0, 1, 2])
    world.answers.clear()
    keeping.keep_spare([0, 1, 2])
    assert [actor.node for actor in world.started[2:]] == ["c", "c"]
    assert [actor.killed for actor in world.started[2:]] == [True, False]


def test_a_shard_goes_where_it_was_sent(world: World) -> None:
    keeping = keeper(world)
    keeping.keep_spare([2, 0, 1])  # on c
    keeping.move(0, 1)
    keeping.settle_moves()
    assert world.started[-1].node == "b"
    assert keeping.where().homes == (1, 1)
    assert [(move.shard, move.to) for move in keeping.moves] == [(0, "b")]
    assert world.given_back == [world.started[0]]
    keeping.move(1, 2)
    keeping.settle_moves()
    assert len(world.started) == 4  # the one that waited there
    assert keeping.where().homes == (1, 2)
    keeping.move(1, 2)  # it is there
    assert len(world.started) == 4


def test_what_is_moved_is_its_state_as_it_is(world: World) -> None:
    keeping = keeper(world)
    loaded: list[ShardState] = []
    world.answers["c"] = {"load": lambda orders: loaded.append(orders.state) or "tcp://c:1"}
    keeping.move(0, 2)
    keeping.settle_moves()
    assert loaded[0].version == 6


def test_a_process_that_never_comes_is_not_waited_for(
    world: World, later: Callable[[float], None]
) -> None:
    keeping = keeper(world)
    world.answers["c"] = {"ready": PENDING}
    keeping.move(0, 2)
    keeping.settle_moves()
    keeping.move(0, 2)  # is on its way
    assert len(world.started) == 3
    later(module.START_S + 1)
    keeping.settle_moves()
    assert world.discards() == ["c"]
    assert keeping.moves == []
    world.answers.clear()
    keeping.move(0, 2)
    keeping.settle_moves()
    assert keeping.where().homes == (2, 1)


def test_one_that_does_not_let_go_is_ended(world: World) -> None:
    world.answers["a"] = {"retire": PENDING}
    keeping = keeper(world)
    keeping.move(0, 2)
    keeping.settle_moves()
    assert world.discards() == ["a", "c"]
    assert keeping.moves == []


def test_who_cannot_start_is_tried_elsewhere(world: World) -> None:
    world.answers["b"] = {"load": PENDING}
    keeping = keeper(world)
    assert [actor.node for actor in world.started] == ["a", "b", "a"]
    assert keeping.where().endpoints == ("tcp://a:0", "tcp://a:1")


def test_a_gate_that_waits_knows_all_replicas_however_often_its_shard_starts(world: World) -> None:
    keeping = keeper(world, bound=0)
    world.answers["b"] = {"load": PENDING}
    keeping.coordinator.answers["at_work"] = [3, 4]
    keeping.restore(keeping.shards[1], newest=0)
    assert [actor.node for actor in world.started[2:]] == ["b", "a"]
    assert "join" in world.started[-1].asked


def test_who_starts_nowhere_ends_the_run(world: World) -> None:
    world.answers |= {node: {"load": ActorDiedError()} for node in "abc"}
    with pytest.raises(CrewError, match=r"^shard 0 of the parameters .* in 3 attempts; .* died\."):
        keeper(world)


def test_a_snapshot_is_kept(world: World) -> None:
    keeping = keeper(world)
    keeping.keep({"w": torch.zeros(8, 2)}, PROGRESS)
    kept = keeping.snapshots.kept
    assert kept is not None
    assert (kept.step, kept.meta["servers"]["versions"]) == (7, [5, 5])
    assert [path.name for path in (world.folder / "checkpoints").iterdir()] == ["step-7"]
    assert "step 7" in keeping.snapshots.last_good()


def test_a_shard_that_hangs_is_ended_when_a_snapshot_is_due(world: World) -> None:
    world.answers["b"] = {"snapshot": PENDING}
    keeping = keeper(world)
    keeping.keep({"w": torch.zeros(8, 2)}, PROGRESS)
    assert world.discards() == ["b"]
    assert keeping.snapshots.kept is None
    assert any("has not answered for 60 s" in text for text in world.said)
    with pytest.raises(CrewError, match="at the very end"):
        keeping.keep({"w": torch.zeros(8, 2)}, PROGRESS, last=True)


def test_without_room_a_snapshot_stays_in_memory(world: World) -> None:
    keeping = keeper(world)
    world.has_room = False
    keeping.keep({"w": torch.zeros(8, 2)}, PROGRESS)
    assert keeping.snapshots.kept is None
    assert not (world.folder / "checkpoints").exists()
    assert any("in memory only" in text for text in world.said)
    keeping.restore(keeping.shards[0], newest=6)
    assert keeping.restorations[0].lost_updates == 1
    with pytest.raises(CheckpointError):
        keeping.keep({"w": torch.zeros(8, 2)}, PROGRESS, last=True)
    assert keeping.conclude({"w": torch.zeros(8, 2)})["model/w"].sum() == 16


def test_nothing_is_kept_of_what_is_not_finite(world: World) -> None:
    world.answers["b"] = {"snapshot": lambda: state(5, float("inf"))}
    keeping = keeper(world)
    with pytest.raises(DivergedError, match="w is no longer finite after 7 steps"):
        keeping.keep({"w": torch.zeros(8, 2)}, PROGRESS)
    assert keeping.snapshots.kept is None


def test_while_the_loss_has_risen_no_snapshot_is_written(world: World) -> None:
    keeping = keeper(world)
    keeping.keep({"w": torch.zeros(8, 2)}, PROGRESS)
    world.risen = (0.5, 8.0)
    for step in (20, 30):
        keeping.keep({"w": torch.zeros(8, 2)}, Progress(**(vars(PROGRESS) | {"low": step})))
    assert keeping.snapshots.kept is not None
    assert keeping.snapshots.kept.step == 7
    (text,) = world.said
    assert text.startswith("the loss has risen from 0.5 to 8: no snapshot is written until")
    assert "that of step 7" in text
    world.risen = None
    keeping.keep({"w": torch.zeros(8, 2)}, Progress(**(vars(PROGRESS) | {"low": 40})))
    assert keeping.snapshots.kept.step == 40

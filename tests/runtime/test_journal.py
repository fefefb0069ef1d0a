from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy.errors import CheckpointError, ConvoyError
from convoy.runtime.checkpoint import newest_checkpoint, read_checkpoint
from convoy.runtime.events import Event, EventSink
from convoy.runtime.formation import Formation, Part
from convoy.runtime.journal import Journal
from convoy.runtime.observer import Level
from convoy.runtime.records import Record, StepSummary, read_steps
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.sampler import GlobalOrder
from convoy.runtime.settings import TrainSettings
from convoy.runtime.timeline import Timeline
from convoy.strategies import Pending

MakeFormation = Callable[..., Formation]
MakeRecord = Callable[..., Record]

SETTINGS = TrainSettings(batch_size=4, steps=6, keep=2)


class Listener:
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def planned(self, plan: Mapping[str, Any]) -> None:
        self.heard.append(("planned", plan))

    def stepped(self, step: StepSummary, num_steps: int) -> None:
        self.heard.append(("stepped", step.step, num_steps))

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        self.heard.append(("evaluated", step, accuracy, loss))

    def say(self, text: str, level: Level = "info") -> None:
        self.heard.append(("said", text, level))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def journal(folder: RunFolder, listener: Listener, no_thread_left: None) -> Iterator[Journal]:
    order = GlobalOrder(num_samples=10, batch_size=4, seed=0)
    found = Journal(folder, SETTINGS, order, 6, listener, Timeline())
    yield found
    found.close()


def evaluation(rank: int, *, generation: int = 1, step: int = 2, **sums: float) -> Event:
    given = {"step": step, "generation": generation, "rank": rank}
    return ("evaluation", given | {"samples": 10, "correct": 5, "loss_sum": 20.0} | sums)


def done(steps: int, ranks: int, make: MakeRecord, generation: int = 1) -> list[Event]:
    """The records of the run's first steps."""
    places = itertools.product(range(steps), range(ranks))
    return [("record", make(step, rank, generation=generation)) for step, rank in places]


def part(
    rank: int, value: float, *, step: int = 3, generation: int = 1, whole: bool = False
) -> Event:
    events: list[Event] = []
    pending = Pending() if whole else Pending(samples=rank + 1, step_samples=3)
    EventSink(events.append).checkpoint(
        step,
        generation,
        Part(tensors={"model/w": torch.tensor([value])}, pending=pending),
        rank=rank,
        whole=whole,
    )
    return events[0]


def test_a_sink_hands_on_what_it_is_given() -> None:
    events: list[Event] = []
    sink = EventSink(events.append)
    sink.record({"step": 1})
    sink.layout("channels-last")
    sink.convolutions(1, {"conv1": "pipelined"})
    sink.evaluation({"samples": 3})
    given = Part(tensors={})
    sink.checkpoint(4, 2, given, rank=1, whole=True)
    assert events == [
        ("record", {"step": 1}),
        ("layout", {"layout": "channels-last"}),
        ("convolutions", {"rank": 1, "algorithms": {"conv1": "pipelined"}}),
        ("evaluation", {"samples": 3}),
        ("checkpoint", {"step": 4, "generation": 2, "rank": 1, "part": given, "whole": True}),
    ]


def test_steps_are_written_shown_and_counted(
    journal: Journal,
    folder: RunFolder,
    listener: Listener,
    formation: MakeFormation,
    record: MakeRecord,
) -> None:
    journal.begin(formation([3, 1]))
    assert (journal.last_step, journal.first_step_done_s) == (-1, None)
    assert journal.take([("record", record(0, 0)), ("record", record(1, 0))]) == []
    assert (listener.heard, journal.first_step_done_s) == ([], None)
    completed = journal.take([("record", record(1, 1)), ("record", record(0, 1))])
    assert [step.step for step in completed] == [0, 1]
    assert listener.heard == [("stepped", 0, 6), ("stepped", 1, 6)]
    assert journal.last_step == 1
    assert journal.first_step_done_s is not None
    assert "first step" in journal.timeline.phases()
    assert [step.step for step in read_steps(folder.steps)] == [0, 1]


def test_a_lost_crews_steps_are_settled(
    journal: Journal, folder: RunFolder, formation: MakeFormation, record: MakeRecord
) -> None:
    journal.begin(formation([3, 1]))
    journal.take([("record", record(step, 0)) for step in range(4)])
    journal.settle(1, 2)
    assert journal.last_step == 1
    assert journal.first_step_done_s is None
    journal.begin(formation([4], generation=2))
    journal.take([("record", record(2, 0, generation=2))])
    assert journal.last_step == 2
    assert [(s.step, s.generation) for s in read_steps(folder.steps)] == [(0, 1), (1, 1), (2, 2)]


def test_the_layout_that_was_chosen(journal: Journal) -> None:
    journal.take([("layout", {"layout": "channels-last"})])
    assert journal.layout == "channels-last"


def test_the_algorithms_that_were_chosen(journal: Journal, formation: MakeFormation) -> None:
    journal.begin(formation([3, 1]))
    for rank, algorithms in ((1, {"conv1": "lowering"}), (0, {}), (1, {"conv1": "pipelined"})):
        journal.take([("convolutions", {"rank": rank, "algorithms": algorithms})])
    assert journal.convolutions == {0: {}, 1: {"conv1": "pipelined"}}
    journal.settle(1, 0)
    assert journal.convolutions[1] == {"conv1": "pipelined"}  # what a run that ends now has used
    journal.begin(formation([4], generation=2))  # rank 1 is lost, and rank 0 goes on alone
    journal.take([("convolutions", {"rank": 0, "algorithms": {"conv1": "lowering"}})])
    assert journal.convolutions == {0: {"conv1": "lowering"}}


def test_an_evaluation_needs_all_ranks(
    journal: Journal, folder: RunFolder, listener: Listener, formation: MakeFormation
) -> None:
    journal.begin(formation([2, 1, 1]))
    journal.take([evaluation(2, samples=10, correct=9, loss_sum=5.0), evaluation(0)])
    assert journal.evaluation is None
    assert not folder.evaluations.exists()
    journal.take([evaluation(1, samples=20, correct=6, loss_sum=15.0)])
    assert journal.evaluation == (2, 20 / 40, 40.0 / 40)
    assert listener.heard == [("evaluated", 2, 0.5, 1.0)]
    (line,) = folder.evaluations.read_text().splitlines()
    assert json.loads(line) == {"step": 2, "test_accuracy": 0.5, "test_loss": 1.0}


def test_an_evaluation_of_a_lost_crew_is_not_finished_by_another(
    journal: Journal, folder: RunFolder, formation: MakeFormation
) -> None:
    journal.begin(formation([3, 1]))
    journal.take([evaluation(0)])
    journal.begin(formation([4], generation=2))
    journal.take([evaluation(0)])  # late: a part of the test set, though of as many as there are
    assert journal.evaluation is None
    assert not folder.evaluations.exists()
    journal.take([evaluation(0, generation=2, samples=20, correct=20)])
    assert journal.evaluation == (2, 1.0, 1.0)


def test_evaluations_go_on_after_a_line_that_a_crash_cut(
    journal: Journal, folder: RunFolder, formation: MakeFormation
) -> None:
    folder.evaluations.write_text('{"step": 1, "test_accuracy": 0.5, "test_loss": 1.0}\n{"step"')
    journal.begin(formation([4]))
    journal.take([evaluation(0)])
    rows = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


def test_an_evaluation_that_cannot_be_written(
    journal: Journal, folder: RunFolder, formation: MakeFormation
) -> None:
    folder.evaluations.mkdir()
    journal.begin(formation([4]))
    with pytest.raises(ConvoyError, match=rf"evaluations\.jsonl: .*--resume {folder.path}"):
        journal.take([evaluation(0)])


def test_a_state_that_stands_for_all(
    journal: Journal, folder: RunFolder, formation: MakeFormation, record: MakeRecord
) -> None:
    journal.begin(formation([3, 1]))
    journal.take(done(3, 2, record))
    journal.take([("layout", {"layout": "contiguous"}), part(0, 1.5, whole=True)])
    saved = read_checkpoint(folder.checkpoints / "step-3")
    assert (saved.step, saved.generation, len(saved.parts)) == (3, 1, 1)
    assert saved.parts[0].tensors["model/w"].item() == 1.5
    assert (saved.meta["layout"], saved.meta["shares"]) == ("contiguous", [3, 1])
    assert saved.meta["settings"]["batch_size"] == 4
    assert journal.last_checkpoint is not None
    assert journal.last_checkpoint.step == 3


def test_states_that_differ_are_kept_once_all_are_there(
    journal: Journal, folder: RunFolder, formation: MakeFormation, record: MakeRecord
) -> None:
    journal.begin(formation([2, 1, 1]))
    journal.take(done(3, 3, record))
    journal.take([part(2, 2.0), part(0, 0.0), part(0, 9.0, step=4)])
    assert journal.last_checkpoint is None
    assert newest_checkpoint(folder.checkpoints) == (None, [])
    journal.take([part(1, 1.0)])
    saved = read_checkpoint(folder.checkpoints / "step-3")
    assert [p.tensors["model/w"].item() for p in saved.parts] == [0.0, 1.0, 2.0]  # by rank
    assert [p.pending.samples for p in saved.parts] == [1, 2, 3]


def test_parts_of_a_lost_crew_do_not_make_a_checkpoint(
    journal: Journal, folder: RunFolder, formation: MakeFormation, record: MakeRecord
) -> None:
    journal.begin(formation([3, 1]))
    journal.take([part(0, 0.0)])
    journal.begin(formation([2, 2], generation=2))
    journal.take([part(1, 1.0), part(0, 5.0, whole=True), part(1, 1.0, generation=2)])
    assert newest_checkpoint(folder.checkpoints) == (None, [])
    journal.take([*done(3, 2, record, generation=2), part(0, 0.0, generation=2)])
    assert read_checkpoint(folder.checkpoints / "step-3").generation == 2


def test_a_checkpoint_waits_for_the_records_of_the_steps_before_it(
    journal: Journal, folder: RunFolder, formation: MakeFormation, record: MakeRecord
) -> None:
    journal.begin(formation([3, 1]))
    of_both = done(3, 2, record)
    journal.take([*of_both[:-1], part(0, 0.0, whole=True)])  # rank 1's last is still to come
    assert journal.last_checkpoint is not None  # a crew that re-forms can go on from it
    assert newest_checkpoint(folder.checkpoints) == (None, [])
    journal.take(of_both[-1:])
    assert [step.step for step in read_steps(folder.steps)] == [0, 1, 2]
    assert read_checkpoint(folder.checkpoints / "step-3").step == 3


@pytest.mark.parametrize("ending", ["close", "settle"])
def test_a_checkpoint_does_not_wait_for_records_that_are_lost(
    journal: Journal, folder: RunFolder, formation: MakeFormation, record: MakeRecord, ending: str
) -> None:
    journal.begin(formation([3, 1]))
    journal.take([*done(3, 2, record)[:-1], part(0, 0.0, whole=True)])
    if ending == "close":
        journal.close()
    else:
        journal.settle(1, 3)
    assert read_checkpoint(folder.checkpoints / "step-3").step == 3
    steps = read_steps(folder.steps)
    assert [step.step for step in steps] == [0, 1, 2]
    assert steps[-1].ranks[1]["compute_s"] is None


def test_only_the_newest_are_kept(
    journal: Journal, folder: RunFolder, formation: MakeFormation, record: MakeRecord
) -> None:
    journal.begin(formation([4]))
    journal.take(done(3, 1, record))
    journal.take([part(0, 0.0, step=step, whole=True) for step in (1, 2, 3)])
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["step-2", "step-3"]


def test_a_checkpoint_that_cannot_be_written(
    journal: Journal, folder: RunFolder, formation: MakeFormation, record: MakeRecord
) -> None:
    folder.checkpoints.write_text("in the way")
    journal.begin(formation([4]))
    with pytest.raises(CheckpointError, match="cannot write the checkpoint of step 3"):
        journal.take([*done(3, 1, record), part(0, 0.0, whole=True)])


def test_nothing_is_taken_before_a_crew_has_formed(journal: Journal) -> None:
    journal.take([evaluation(0), part(0, 0.0, whole=True)])
    assert (journal.evaluation, journal.last_checkpoint) == (None, None)


def test_all_files_are_closed_though_one_cannot_be(
    folder: RunFolder, listener: Listener, no_thread_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = GlobalOrder(num_samples=10, batch_size=4, seed=0)
    journal = Journal(folder, SETTINGS, order, 6, listener, Timeline())
    logbook = journal._logbook

    def refuse() -> None:
        type(logbook).close(logbook)
        raise ConvoyError("full")

    monkeypatch.setattr(logbook, "close", refuse)
    with pytest.raises(ConvoyError, match="full"):
        journal.close()

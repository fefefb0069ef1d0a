"""The record of replicas that each go at their own pace."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from convoy.errors import ConvoyError
from convoy.runtime.events import Event
from convoy.runtime.observer import Level
from convoy.runtime.records import StepSummary
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.sampler import GlobalOrder
from convoy.runtime.servers.fleet_log import ASK_CLOCK_S, FleetLog, pace_of
from convoy.runtime.timeline import Timeline

MountDisk = Callable[..., Path]
ORDER = GlobalOrder(num_samples=10, batch_size=4, seed=0)
"""Steps of 4, 4 and 2 samples."""
OF_TENSORBOARD = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
"""Whose own thread ends with a disk that is full."""


class Listener:
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.steps: list[StepSummary] = []
        self.evaluations: list[tuple[int, float, float]] = []
        self.said: list[tuple[str, Level]] = []

    def planned(self, plan: Mapping[str, Any]) -> None:
        raise AssertionError("the plan is announced before")

    def stepped(self, step: StepSummary, num_steps: int) -> None:
        assert num_steps == 6
        self.steps.append(step)

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        self.evaluations.append((step, accuracy, loss))

    def say(self, text: str, level: Level = "info") -> None:
        self.said.append((text, level))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def make(listener: Listener, no_thread_left: None) -> Iterator[Callable[..., FleetLog]]:
    """A function that opens a log in a folder, and closes it where the test does not."""
    logs: list[FleetLog] = []

    def make(path: Path, **given: Any) -> FleetLog:
        logs.append(FleetLog(RunFolder(path), ORDER, 5, 6, listener, Timeline(), **given))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


@pytest.fixture
def log(make: Callable[..., FleetLog], tmp_path: Path) -> FleetLog:
    return make(tmp_path)


def record(step: int, rank: int = 0, **changes: Any) -> Event:
    values: dict[str, Any] = {
        "step": step,
        "rank": rank,
        "replica": rank,
        "position": 0,
        "machine": f"m{rank}",
        "generation": 1,
        "first": 0,
        "samples": 4,
        "step_samples": 4,
        "wall_s": 1.0,
        "compute_s": 0.7,
        "blocked_s": 0.3,
        "held_s": 0.1,
        "sent_bytes": 200,
        "sent_to": {1: 100},
        "received_from": {1: 100},
        "loss": 2.0,
        "time": 1000.0 + step,
        "staleness": 0,
        "versions": {0: (0, step + 1), 1: (0, 2 * step)},
    }
    return ("record", values | changes)


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_steps_are_written_as_they_come(log: FleetLog, listener: Listener) -> None:
    log.take([record(4, 1, samples=2, held_s=None), record(1)])
    log.flush()
    late, early = rows_in(log.folder.steps)
    assert (late["step"], late["rank"], late["epoch"]) == (4, 1, 1)
    assert (early["step"], early["epoch"]) == (1, 0)
    assert early["sent_to"] == early["received_from"] == {"1": 100}
    assert (early["wait_s"], early["comm_s"]) == (0.1, pytest.approx(0.2))
    assert (late["wait_s"], late["comm_s"]) == (0.0, 0.3)
    assert not {"versions", "held_s", "blocked_s"} & early.keys()
    assert [step.step for step in listener.steps] == [0, 1]  # as many as have been done
    assert log.rows == [late, early]


def test_a_step_is_never_held_longer_than_it_was_blocked(log: FleetLog) -> None:
    """While it computed on, the gate may have held its push back as well."""
    log.take([record(0, blocked_s=0.2, held_s=5.0)])
    assert (log.rows[0]["wait_s"], log.rows[0]["comm_s"]) == (0.2, 0.0)


def test_staleness_is_counted_by_pushes(log: FleetLog) -> None:
    log.take([record(0, staleness=0), record(1, staleness=2)])
    log.take([record(2, staleness=2), record(3, staleness=None)])
    assert log.tally.staleness == {0: 1, 2: 2}
    assert log.tally.steps == 4


def test_samples_that_were_used_again_are_counted(log: FleetLog) -> None:
    log.take([record(0), record(1, 1, samples=3, step_samples=3), record(0, 1)])
    log.take([record(1, samples=3, step_samples=3)])
    tally = log.tally
    assert (tally.steps, tally.samples, tally.repeated) == (4, 14, 7)
    assert tally.by_rank == {0: 7, 1: 7}


def test_the_newest_version_of_each_shard_is_known(log: FleetLog) -> None:
    log.take(
        [record(0, versions={0: (0, 3), 1: (0, 9)}), record(1, versions={0: (0, 5), 1: (0, 2)})]
    )
    assert log.versions == {0: (0, 5), 1: (0, 9)}
    log.take([record(2, versions={0: (1, 2), 1: (0, 8)})])  # the first has been started again
    assert log.versions == {0: (1, 2), 1: (0, 9)}


def test_the_first_layout_counts(log: FleetLog) -> None:
    log.take([("layout", {"layout": "channels_last"}), ("layout", {"layout": "contiguous"})])
    assert log.layout == "channels_last"


def test_an_evaluation_is_written_and_told(log: FleetLog, listener: Listener) -> None:
    log.begin()
    log.take([("evaluation", {"step": 2, "correct": 4, "loss_sum": 10.0, "samples": 5})])
    assert log.evaluation == (2, 0.8, 2.0)
    assert listener.evaluations == [(2, 0.8, 2.0)]
    (row,) = rows_in(log.folder.evaluations)
    assert (row["step"], row["test_accuracy"], row["test_loss"]) == (2, 0.8, 2.0)
    assert row["elapsed_s"] >= 0


def test_a_loss_that_has_risen_over_that_of_guessing(
    make: Callable[..., FleetLog], tmp_path: Path
) -> None:
    log = make(tmp_path, chance=2.3)
    for step, loss in enumerate([*[5.0] * 30, *[1.0] * 30]):
        log.take([record(step, loss=loss)])
        assert log.risen is None
    log.take([record(step, loss=2.2) for step in range(60, 100)])
    assert log.risen is None  # it may be noise: somebody who guesses has more
    log.take([record(step, loss=4.0) for step in range(100, 120)])
    assert log.risen == (1.0, 4.0)


@pytest.mark.parametrize(("skew", "way"), [(600.0, "600 s ahead of"), (-7.0, "7 s behind")])
def test_a_wrong_clock_is_noticed_once_and_its_times_are_told_in_ours(
    log: FleetLog, listener: Listener, skew: float, way: str
) -> None:
    for asked in (50.0, 90.0):
        log.clock(1, "m1", asked, asked + 0.5 + skew, asked + 1.0)
    log.clock(0, "m0", 50.0, 50.5, 51.0)
    ((text, level),) = listener.said
    assert level == "warning"
    assert text.startswith(f"the clock of m1 is {way} this machine's")
    log.take([record(0, 1, time=1000.0 + skew), record(1, 0, time=1001.0)])
    assert [row["time"] for row in log.rows] == [pytest.approx(1000.0), pytest.approx(1001.0)]
    assert listener.steps[-1].wall_s == pytest.approx(1.0)


def test_a_clock_that_is_a_little_off_is_no_news(log: FleetLog, listener: Listener) -> None:
    log.clock(0, "m0", 10.0, 13.5, 11.0)
    assert listener.said == []
    log.take([record(0, time=103.0)])
    assert log.rows[0]["time"] == 100.0


def test_clocks_are_asked_now_and_then(log: FleetLog, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 500.0
    monkeypatch.setattr("convoy.runtime.servers.fleet_log.time.monotonic", lambda: now)
    assert log.wants_clock(3)
    log.clock(3, "m3", 0.0, 0.0, 0.0)
    assert not log.wants_clock(3)
    assert log.wants_clock(2)
    now += ASK_CLOCK_S
    assert log.wants_clock(3)


def test_the_pace_that_is_shown_is_that_of_all(log: FleetLog, listener: Listener) -> None:
    """Two replicas, each with a step every 2 s: one a second."""
    log.take([record(step, step % 2, time=1000.0 + step) for step in range(6)])
    assert [step.wall_s for step in listener.steps[1:]] == [pytest.approx(1.0)] * 5


def test_a_line_cut_short_is_taken_off_and_others_are_kept(
    make: Callable[[Path], FleetLog], tmp_path: Path
) -> None:
    before = make(tmp_path)
    before.take([record(0, staleness=1)])
    before.close()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 1')
    log = make(tmp_path)
    log.take([record(1)])
    assert [row["step"] for row in rows_in(log.folder.steps)] == [0, 1]


def test_what_was_interrupted_counts(
    make: Callable[[Path], FleetLog], tmp_path: Path, listener: Listener
) -> None:
    """Also what was done after the snapshot, and is done again."""
    before = make(tmp_path)
    before.take([record(0, staleness=1), record(1, staleness=None), record(2, staleness=2)])
    before.evaluated(2, {"correct": 1, "loss_sum": 1.0, "samples": 5})
    before.close()
    log = make(tmp_path)
    tally = log.tally
    assert (tally.steps, tally.samples, tally.repeated) == (3, 12, 0)
    assert tally.staleness == {1: 1, 2: 1}
    log.take([record(2, staleness=0), record(3)])
    assert (tally.steps, tally.samples, tally.repeated) == (5, 20, 4)
    assert tally.staleness == {0: 2, 1: 1, 2: 1}
    assert (log.steps_now, tally.by_rank) == (2, {0: 8})
    assert [step.step for step in listener.steps[-2:]] == [2, 3]  # of so many that are done
    log.evaluated(3, {"correct": 1, "loss_sum": 1.0, "samples": 5})
    first, second = rows_in(log.folder.evaluations)
    assert second["elapsed_s"] >= first["elapsed_s"]


def test_another_strategy_may_have_begun(make: Callable[[Path], FleetLog], tmp_path: Path) -> None:
    lines = [
        {"step": step, "rank": rank, "generation": 0, "samples": 2, "wall_s": 1.0, "loss": 1.0}
        for step in range(2)
        for rank in range(2)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "steps.jsonl").write_text(text)
    tally = make(tmp_path).tally
    assert (tally.steps, tally.samples, tally.repeated) == (2, 8, 0)


def test_what_json_has_no_number_for_is_null(log: FleetLog) -> None:
    log.take([record(0, loss=float("nan"))])
    log.flush()
    assert rows_in(log.folder.steps)[0]["loss"] is None


@OF_TENSORBOARD
def test_on_a_full_disk_records_wait_until_there_is_room(
    mount_disk: MountDisk, make: Callable[[Path], FleetLog], listener: Listener
) -> None:
    place, log, filler = on_a_full_disk(mount_disk, make)
    assert not log.flush()
    full = [text for text, _ in listener.said if "records wait in memory until" in text]
    assert len(full) == 1
    assert full[0].startswith(f"cannot write in {place}: No space left")
    log.evaluated(5, {"correct": 1, "loss_sum": 1.0, "samples": 5})
    filler.unlink()
    assert log.flush()
    assert [row["step"] for row in rows_in(log.folder.steps)] == list(range(60))
    assert len(rows_in(log.folder.evaluations)) == 1


@OF_TENSORBOARD
def test_a_disk_that_stays_full_says_how_to_go_on(
    mount_disk: MountDisk, make: Callable[[Path], FleetLog]
) -> None:
    place, log, filler = on_a_full_disk(mount_disk, make)
    with pytest.raises(
        ConvoyError, match=rf"^cannot write in {place}: No space left.*--resume {place}$"
    ):
        log.close()
    filler.unlink()


def on_a_full_disk(
    mount_disk: MountDisk, make: Callable[[Path], FleetLog]
) -> tuple[Path, FleetLog, Path]:
    """A log for whose steps there is no room, and what takes it up."""
    place = mount_disk(size_kib=64)
    log, filler = make(place), place / "filler"
    fill(filler)
    take_many(log)
    return place, log, filler


def fill(path: Path) -> None:
    """Write until there is no room."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)


def take_many(log: FleetLog) -> None:
    for step in range(60):
        log.take([record(step)])


def rows(ends: list[tuple[float, int]], samples: int = 8) -> list[dict[str, Any]]:
    return [{"time": end, "rank": rank, "samples": samples} for end, rank in ends]


def test_the_pace_of_one_replica() -> None:
    found = pace_of(rows([(10.0 + 0.5 * i, 0) for i in range(20)]), warm_up=5)
    assert found["images_per_s"] == pytest.approx(16.0)
    assert found["step_s"] == {"median": pytest.approx(0.5), "p90": pytest.approx(0.5)}


def test_speeds_of_replicas_add_up_in_whatever_order_steps_are_told() -> None:
    """A step each 1 s and each 0.25 s: five a second."""
    ends = [(1.0 * i, 0) for i in range(20)] + [(0.1 + 0.25 * i, 1) for i in range(80)]
    found = pace_of(rows(ends[::-1]), warm_up=2)
    assert found["images_per_s"] == pytest.approx(5 * 8, rel=0.05)
    assert found["step_s"]["median"] == pytest.approx(0.2, rel=0.3)


def test_warming_up_and_the_last_ones_alone_do_not_count() -> None:
    slow = [(100.0 * i, 0) for i in range(3)]
    steady = [(300.0 + i, 0) for i in range(10)]
    alone = [(1000.0, 0)]
    assert pace_of(rows(slow + steady + alone), warm_up=3)["images_per_s"] == pytest.approx(8.0)


@pytest.mark.parametrize("ends", [[], [(1.0, 0)], [(1.0, 0), (1.0, 1)]], ids=str)
def test_there_is_no_pace_of_too_few_steps(ends: list[tuple[float, int]]) -> None:
    found = pace_of(rows(ends), warm_up=0)
    assert found == {"images_per_s": None, "step_s": {"median": None, "p90": None}}


def test_a_step_of_a_replica_of_two_devices_is_one(
    make: Callable[..., FleetLog], tmp_path: Path
) -> None:
    log = make(tmp_path, parts=(0.75, 0.25))
    second = {"position": 1, "samples": 0, "loss": None, "staleness": 3}
    log.take([record(0), record(0, 1, **second), record(1, **{"staleness": 1})])
    tally = log.tally
    assert (tally.steps, tally.samples, tally.repeated) == (2, 8, 0)
    assert tally.by_rank == {0: 6, 1: 1}
    assert tally.staleness == {0: 1, 1: 1}
    log.flush()
    assert [row["position"] for row in rows_in(log.folder.steps)] == [0, 1, 0]

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convoy.errors import ConvoyError, DataError
from convoy.runtime.formation import Formation
from convoy.runtime.records import Logbook, Record, StepSummary, read_steps, summarise
from convoy.runtime.sampler import GlobalOrder

MakeFormation = Callable[..., Formation]
MakeRecord = Callable[..., Record]

ORDER = GlobalOrder(num_samples=10, batch_size=4, seed=0)
"""Steps of 4, 4 and 2 samples."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.jsonl"


@pytest.fixture
def logbook(path: Path) -> Iterator[Logbook]:
    book = Logbook(path, ORDER)
    yield book
    book.close()


def column(step: StepSummary, key: str) -> list[object]:
    return [row[key] for row in step.ranks]


def test_waiting_for_others_is_told_from_communicating(
    logbook: Logbook, formation: MakeFormation, record: MakeRecord
) -> None:
    logbook.begin(formation([1, 1, 2]))
    # All wait for rank 2, which comes last and waits for the bytes only.
    blocked = {0: 0.5, 1: 0.75, 2: 0.125}
    (step,) = logbook.take(record(0, rank, blocked_s=blocked[rank]) for rank in range(3))
    assert column(step, "comm_s") == [0.125, 0.125, 0.125]
    assert column(step, "wait_s") == [0.375, 0.625, 0.0]


def test_a_rank_alone_neither_waits_nor_is_waited_for(
    logbook: Logbook, formation: MakeFormation, record: MakeRecord
) -> None:
    logbook.begin(formation([4]))
    (step,) = logbook.take([record(0, 0, blocked_s=0.0)])
    assert (step.ranks[0]["wait_s"], step.ranks[0]["comm_s"]) == (0.0, 0.0)


def test_a_step_is_complete_once_all_ranks_have_reported(
    logbook: Logbook, formation: MakeFormation, record: MakeRecord, path: Path
) -> None:
    logbook.begin(formation([3, 1]))
    assert logbook.take([record(0, 0), record(1, 0)]) == []
    assert path.read_text() == ""
    (step,) = logbook.take([record(0, 1, loss=6.0, wall_s=3.0)])
    assert (step.step, step.generation, step.samples, step.wall_s) == (0, 1, 4, 3.0)
    assert step.loss == (3 * 2.0 + 1 * 6.0) / 4
    assert read_steps(path) == [step]  # it is on disk already
    (other,) = logbook.take([record(1, 1)])
    assert read_steps(path) == [step, other]


def test_what_a_line_holds(
    logbook: Logbook, formation: MakeFormation, record: MakeRecord, path: Path
) -> None:
    logbook.begin(formation([3, 1], generation=2))
    logbook.take(record(4, rank, generation=2, blocked_s=0.25 * rank) for rank in range(2))
    assert json.loads(path.read_text().splitlines()[1]) == {
        "step": 4,
        "rank": 1,
        "machine": "m1",
        "generation": 2,
        "epoch": 1,
        "first": 7,  # step 1 of its epoch begins at 4, and rank 0 takes 3
        "samples": 1,
        "compute_s": 0.75,
        "wait_s": 0.25,
        "comm_s": 0.0,
        "wall_s": 1.0,
        "sent_bytes": 100,
        "sent_to": {"0": 100},
        "loss": 2.0,
        "time": 1000.0,
    }


def test_what_a_rank_says_it_did_is_what_is_written(
    logbook: Logbook, formation: MakeFormation, record: MakeRecord
) -> None:
    """So that samples that are done twice, or not at all, can be seen."""
    logbook.begin(formation([3, 1]))
    (step,) = logbook.take([record(0, 0), record(0, 1, first=0, samples=2)])
    assert [(row["first"], row["samples"]) for row in step.ranks] == [(0, 3), (0, 2)]


def test_a_lost_rank_has_samples_but_no_times(
    logbook: Logbook, formation: MakeFormation, record: MakeRecord, path: Path
) -> None:
    logbook.begin(formation([2, 1, 1]))
    logbook.take([record(0, 0, blocked_s=0.5, loss=1.0), record(0, 2, blocked_s=0.25, loss=4.0)])
    (step,) = logbook.settle(1, 1)
    lost = step.ranks[1]
    assert (lost["first"], lost["samples"], lost["machine"]) == (2, 1, "m1")
    for key in ("compute_s", "wait_s", "comm_s", "wall_s", "sent_bytes", "sent_to", "loss", "time"):
        assert lost[key] is None
    assert (step.samples, step.loss, step.wall_s) == (4, (2 * 1.0 + 1 * 4.0) / 3, 1.0)
    assert column(step, "comm_s") == [0.25, None, 0.25]
    assert read_steps(path) == [step]


def test_later_steps_of_a_lost_crew_are_dropped(
    logbook: Logbook, formation: MakeFormation, record: MakeRecord, path: Path
) -> None:
    logbook.begin(formation([3, 1]))
    logbook.take([record(step, 0) for step in range(4)])
    assert [step.step for step in logbook.settle(1, 2)] == [0, 1]
    assert [step.step for step in read_steps(path)] == [0, 1]
    logbook.begin(formation([4], generation=2))
    logbook.take([record(2, 0, generation=2)])
    assert [(step.step, step.generation) for step in read_steps(path)] == [(0, 1), (1, 1), (2, 2)]


def test_settling_leaves_other_crews_alone(
    logbook: Logbook, formation: MakeFormation, record: MakeRecord
) -> None:
    logbook.begin(formation([3, 1], generation=1))
    logbook.begin(formation([2, 2], generation=2))
    logbook.take([record(5, 0, generation=2)])
    assert logbook.settle(1, 9) == []
    assert len(logbook.take([record(5, 1, generation=2)])) == 1


@pytest.mark.parametrize("generation", [2, 1, 0])
def test_of_a_step_done_again_the_last_doing_counts(
    path: Path, formation: MakeFormation, record: MakeRecord, generation: int
) -> None:
    # A run that is resumed begins after its checkpoint's generation, which crews that formed
    # after the checkpoint may have reached or passed.
    doings = [(1, [2, 1, 1]), (generation, [3, 1])]
    for number, shares in doings:
        book = Logbook(path, ORDER)
        book.begin(formation(shares, generation=number))
        for step in range(3):
            book.take(record(step, rank, generation=number) for rank in range(len(shares)))
        book.close()
    steps = read_steps(path)
    assert [step.step for step in steps] == [0, 1, 2]
    assert [step.samples for step in steps] == [4, 4, 2]
    assert [step.generation for step in steps] == [generation] * 3
    assert [len(step.ranks) for step in steps] == [2] * 3


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_last_line_cut_by_a_crash_is_left_out_and_written_anew(
    path: Path, formation: MakeFormation, record: MakeRecord, cut: int
) -> None:
    for number in (1, 2):
        book = Logbook(path, ORDER)
        book.begin(formation([3, 1], generation=number))
        for step in range(number - 1, 3):
            book.take(record(step, rank, generation=number) for rank in range(2))
        book.close()
        if number == 1:
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(lines[:-1]) + lines[-1][:cut])
            assert [len(step.ranks) for step in read_steps(path)] == [2, 2, 1]
    assert [(s.step, s.generation, s.samples) for s in read_steps(path)] == [
        (0, 1, 4),
        (1, 2, 4),
        (2, 2, 2),
    ]


def test_a_damaged_line_in_the_middle_is_named(
    path: Path, formation: MakeFormation, record: MakeRecord
) -> None:
    book = Logbook(path, ORDER)
    book.begin(formation([4]))
    book.take(record(step, 0) for step in range(3))
    book.close()
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:-5]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"steps\.jsonl, line 2: not a JSON record"):
        read_steps(path)


def test_a_disk_that_is_full(formation: MakeFormation, record: MakeRecord) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    book = Logbook(full, ORDER)
    book.begin(formation([4]))
    with pytest.raises(ConvoyError, match=r"cannot write /dev/full: No space left .*--resume /dev"):
        book.take([record(0, 0)])
    with pytest.raises(ConvoyError, match="cannot write /dev/full"):
        book.close()  # what could not be written still cannot


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConvoyError, match=r"cannot write .*steps\.jsonl: No such file"):
        Logbook(tmp_path / "absent" / "steps.jsonl", ORDER)


def test_a_step_of_which_nothing_is_known() -> None:
    lost = {"step": 3, "generation": 1, "samples": 2, "loss": None, "wall_s": None}
    summary = summarise([lost, lost])
    assert (summary.step, summary.samples, summary.wall_s, summary.loss) == (3, 4, 0.0, 0.0)


@st.composite
def voyages(draw: st.DrawFn) -> list[tuple[int, list[int], int]]:
    """Crews one after another: first step, shares of a batch of 4, steps begun."""
    crews = []
    first = 0
    while first < 6:
        cuts = sorted(draw(st.lists(st.integers(1, 3), max_size=2, unique=True)))
        shares = [b - a for a, b in zip([0, *cuts], [*cuts, 4], strict=True)]
        done = draw(st.integers(1, 7 - first)) if len(crews) < 5 else 6 - first
        done = min(done, 6 - first)
        crews.append((first, shares, done))
        # One that is lost may fall back some steps; the last goes on to the end.
        back = draw(st.integers(0, 2)) if first + done < 6 else 0
        first = max(0, first + done - back)
    return crews


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(voyage=voyages(), data=st.data())
def test_the_lines_that_count_cover_each_epoch_once(
    tmp_path: Path,
    formation: MakeFormation,
    record: MakeRecord,
    voyage: list[tuple[int, list[int], int]],
    data: st.DataObject,
) -> None:
    path = tmp_path / "steps.jsonl"
    path.unlink(missing_ok=True)
    with closing(Logbook(path, ORDER)) as book:
        for number, (first, shares, done) in enumerate(voyage, start=1):
            ranks = range(len(shares))
            book.begin(formation(shares, generation=number, first_step=first))
            # One rank's last record may never have come, of a crew of several.
            lost = data.draw(st.sampled_from([None, *ranks])) if len(shares) > 1 else None
            book.take(
                record(step, rank, generation=number)
                for step in range(first, first + done)
                for rank in ranks
                if (step, rank) != (first + done - 1, lost)
            )
            book.settle(number, voyage[number][0] if number < len(voyage) else 6)
    steps = read_steps(path)
    assert [step.step for step in steps] == list(range(6))
    taken = Counter(
        (row["epoch"], position)
        for step in steps
        for row in step.ranks
        for position in range(row["first"], row["first"] + row["samples"])
    )
    assert taken == Counter((epoch, position) for epoch in range(2) for position in range(10))


def served(step: int, replica: int, rank: int, generation: int = 1, **more: Any) -> str:
    """A line of asynchronous training."""
    row = {"step": step, "rank": rank, "replica": replica, "generation": generation}
    row |= {"position": 0, "samples": 4, "wall_s": 1.0, "loss": 1.0} | more
    return json.dumps(row) + "\n"


@pytest.mark.parametrize("swapped", [False, True])
def test_of_steps_done_twice_by_replicas_the_later_ones_count(
    tmp_path: Path, swapped: bool
) -> None:
    """Lines come in any order; a replica of two devices has one of each."""
    lines = [
        served(0, 0, 0),
        served(0, 2, 1, samples=3),
        served(1, 2, 1, samples=0, position=1),
        served(1, 2, 0),
        served(1, 1, 0, generation=2, samples=2),
    ]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(lines[::-1] if swapped else lines))
    assert [(step.step, step.samples) for step in read_steps(path)] == [(0, 3), (1, 2)]
    path.write_text("".join(lines[:4][::-1] if swapped else lines[:4]))
    assert [(step.samples, len(step.ranks)) for step in read_steps(path)] == [(3, 1), (4, 2)]

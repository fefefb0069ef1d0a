"""What is left when a rank dies, and how the rest go on; the general case is in the conformance
suite."""

from __future__ import annotations

from typing import Any

import pytest

from .harness import Crew, Halt, job_for, plan_of
from .reference import assert_equal, first_part, train_alone

WEIGHTS = (1, 2, 5)
LOST = ("peer lost", 4)


def lose(crew: Crew, job: Any, weights: tuple[int, ...], rank: int, place: str) -> list[Any]:
    """Train from the start until `rank` dies in step 4; what the others report."""
    crew.build(job)
    halt = Halt(rank=rank, place=place, step=4)
    formed = crew.form(plan_of(job, weights), parts={0: first_part(job)}, halt=halt)
    formed.await_halt()
    formed.kill(rank)
    return formed.reports()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("lost", [0, 2])
def test_statistics_of_the_unfinished_step_are_undone(
    crew: Crew, lost: int, place: str, optimizer: str
) -> None:
    """The peer dies between two normalisations: the first has updated its running statistics.

    Rank 0, where ranks met and which holds what others take over, is as dispensable as any.
    """
    job = job_for("normalised", "data", optimizer=optimizer)
    left = lose(crew, job, WEIGHTS, lost, place)
    expected = train_alone(job, 4)
    for report in left:
        assert (report.outcome.kind, report.outcome.step) == LOST
        assert [record["step"] for record in report.records] == [0, 1, 2, 3]
        assert_equal(report.state, expected, atol=1e-9)

    places = [place for place in range(3) if place != lost]
    ended = crew.form(plan_of(job, (2, 5)), places=places, first_step=4).reports()
    for report in ended:
        assert (report.outcome.kind, report.outcome.step) == ("finished", 7)
        assert_equal(report.state, train_alone(job), atol=1e-9)


@pytest.mark.parametrize("strategy", ["data", "averaging"])
def test_the_last_one_goes_on_alone(crew: Crew, strategy: str) -> None:
    options = {"average_every": 1} if strategy == "averaging" else {}
    job = job_for("image_normalised", strategy, options)
    (left,) = lose(crew, job, (3, 5), 0, "forward")
    assert (left.outcome.kind, left.outcome.step) == LOST
    (ended,) = crew.form(plan_of(job, (1,)), places=[1], first_step=4).reports()
    assert (ended.outcome.kind, ended.outcome.step) == ("finished", 7)
    if strategy == "data":
        assert_equal(left.state, train_alone(job, 4), atol=1e-9)
        assert_equal(ended.state, train_alone(job), atol=1e-9)


def test_one_that_was_alone_is_joined_by_others(crew: Crew) -> None:
    job = job_for("normalised", "data")
    crew.build(job)
    crew.form(plan_of(job, (1,)), parts={0: first_part(job)}, stop_before=3).reports()
    for report in crew.form(plan_of(job, WEIGHTS), first_step=3).reports():
        assert_equal(report.state, train_alone(job), atol=1e-9)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_survivor_one_step_behind_takes_over_the_state_of_the_one_ahead(
    crew: Crew, ahead: int
) -> None:
    job = job_for("normalised", "data")
    crew.build(job)
    plan = plan_of(job, (3, 5))
    formed = crew.form(plan, parts={0: first_part(job)}, stop_before=4)
    assert {report.outcome.step for report in formed.reports()} == {4}
    alone = plan_of(job, (1,))
    (one,) = crew.form(alone, places=[ahead], first_step=4, stop_before=5).reports()
    assert_equal(one.state, train_alone(job, 5), atol=1e-9)
    for report in crew.form(plan, first_step=5, source_rank=ahead).reports():
        assert (report.outcome.kind, report.outcome.step) == ("finished", 7)
        assert [record["step"] for record in report.records] == [5, 6]
        assert_equal(report.state, train_alone(job), atol=1e-9)


def test_a_peer_that_never_turns_up(crew: Crew) -> None:
    """The others give up after the timeout, as they were, and form again without it."""
    job = job_for("normalised", "data", timeout_s=2.5)
    crew.build(job)
    crew.form(plan_of(job, (3, 5)), parts={0: first_part(job)}, stop_before=4).reports()
    for report in crew.form(plan_of(job, WEIGHTS), places=(0, 1), first_step=4).reports():
        assert (report.outcome.kind, report.outcome.step) == LOST
        assert_equal(report.state, train_alone(job, 4), atol=1e-9)
    for report in crew.form(plan_of(job, (3, 5)), first_step=4).reports():
        assert report.outcome.kind == "finished"
        assert_equal(report.state, train_alone(job), atol=1e-9)


def test_a_peer_that_hangs(crew: Crew) -> None:
    """A rank that lives but stands still is lost after the timeout."""
    job = job_for("plain", "data", timeout_s=2.5)
    crew.build(job)
    halt = Halt(rank=1, place="backward", step=2)
    formed = crew.form(plan_of(job, (3, 5)), parts={0: first_part(job)}, halt=halt)
    formed.await_halt()
    waiting = formed.report(0)
    assert (waiting.outcome.kind, waiting.outcome.step) == ("peer lost", 2)
    assert_equal(waiting.state, train_alone(job, 2), atol=1e-9)
    formed.go_on()
    late = formed.report(1)
    assert (late.outcome.kind, late.outcome.step) == ("peer lost", 2)
    assert_equal(late.state, train_alone(job, 2), atol=1e-9)

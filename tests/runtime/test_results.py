from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from convoy.runtime.records import StepSummary
from convoy.runtime.results import RunResult, rank_times, slowest, speed, steady


def summary(
    step: int, wall_s: float, *, generation: int = 1, samples: int = 10, ranks: Sequence[Any] = ()
) -> StepSummary:
    return StepSummary(
        step=step,
        generation=generation,
        samples=samples,
        wall_s=wall_s,
        loss=1.0,
        ranks=tuple(ranks),
    )


def row(rank: int, compute_s: float | None, wait_s: float = 0.0, samples: int = 4) -> Any:
    times = {"compute_s": compute_s, "wait_s": wait_s, "comm_s": 0.5, "sent_bytes": 80}
    if compute_s is None:
        times = dict.fromkeys(times)
    return {"rank": rank, "machine": f"m{rank}", "samples": samples} | times


def test_the_warm_up_of_every_crew_is_left_out() -> None:
    steps = [summary(step, 1.0) for step in range(7)]
    steps += [summary(step, 1.0, generation=2) for step in range(7, 14)]
    assert [step.step for step in steady(steps)] == [5, 6, 12, 13]


def test_where_all_is_warm_up_all_of_it_counts() -> None:
    steps = [summary(0, 3.0), summary(1, 0.0), summary(2, 1.0)]
    assert [step.step for step in steady(steps)] == [0, 2]  # nobody lived to time step 1
    assert steady([]) == []


def test_speed_is_images_over_seconds() -> None:
    steps = [summary(step, 9.0) for step in range(5)]
    steps += [summary(5 + i, wall_s) for i, wall_s in enumerate((4.0, 2.0, 1.0, 3.0))]
    found = speed(steps)
    assert found["images_per_s"] == 40 / 10.0
    # Sorted 1, 2, 3, 4: nine tenths of the way from the first to the last is 3.7.
    assert found["step_s"] == {"median": 2.5, "p90": pytest.approx(3.7)}


def test_unequal_steps_weigh_by_their_time() -> None:
    found = speed([summary(0, 1.0, samples=100), summary(1, 4.0, samples=50)])
    assert found["images_per_s"] == 150 / 5.0


@pytest.mark.parametrize("times", [[2.0], [1.0, 2.0], [1.0, 1.0, 8.0]])
def test_no_percentile_beyond_what_was_measured(times: list[float]) -> None:
    found = speed([summary(step, wall_s) for step, wall_s in enumerate(times)])
    assert min(times) <= found["step_s"]["p90"] <= max(times)


def test_no_step_no_speed() -> None:
    nothing = {"images_per_s": None, "step_s": {"median": None, "p90": None}}
    assert speed([]) == speed([summary(0, 0.0)]) == nothing


def test_rank_times_are_medians_of_the_last_crew() -> None:
    steps = [
        summary(step, 1.0, ranks=[row(0, 9.0), row(1, 9.0), row(2, 9.0)]) for step in range(10)
    ]
    warming_up = [
        summary(step, 1.0, generation=2, ranks=[row(0, 7.0), row(1, 7.0)]) for step in range(10, 15)
    ]
    last = [
        summary(15 + i, 1.0, generation=2, ranks=[row(0, mine, 0.25), row(1, yours)])
        for i, (mine, yours) in enumerate([(1.0, 4.0), (2.0, 6.0), (3.0, 5.0)])
    ]
    assert rank_times([*steps, *warming_up, *last]) == [
        {
            "rank": 0,
            "machine": "m0",
            "samples": 4,
            "compute_s": 2.0,
            "wait_s": 0.25,
            "comm_s": 0.5,
            "sent_bytes": 80,
        },
        {
            "rank": 1,
            "machine": "m1",
            "samples": 4,
            "compute_s": 5.0,
            "wait_s": 0.0,
            "comm_s": 0.5,
            "sent_bytes": 80,
        },
    ]


def test_a_last_crew_that_is_still_warming_up() -> None:
    steps = [summary(step, 1.0, ranks=[row(0, 9.0), row(1, 9.0)]) for step in range(10)]
    steps += [summary(10 + i, 1.0, generation=2, ranks=[row(0, 1.0 + i)]) for i in range(3)]
    (found,) = rank_times(steps)
    assert (found["rank"], found["compute_s"]) == (0, 3.0)


def test_steps_that_a_rank_did_not_live_to_report() -> None:
    steps = [summary(step, 1.0, ranks=[row(0, 1.0), row(1, 2.0)]) for step in range(6)]
    steps += [summary(6, 1.0, ranks=[row(0, 1.0), row(1, None)])]
    assert [found["compute_s"] for found in rank_times(steps)] == [1.0, 2.0]
    assert [found["rank"] for found in rank_times(steps[-1:])] == [0]
    assert rank_times([]) == []


def test_the_slowest_against_the_median_of_the_others() -> None:
    ranks = [row(0, 1.0), row(1, 6.0), row(2, 2.0), row(3, 4.0)]
    assert slowest(ranks) == {"machine": "m1", "rank": 1, "ratio": 3.0}


def test_waiting_is_not_computing() -> None:
    assert slowest([row(0, 1.0, wait_s=9.0), row(1, 1.5)]) == {
        "machine": "m1",
        "rank": 1,
        "ratio": 1.5,
    }


@pytest.mark.parametrize("ranks", [[], [row(0, 1.0)], [row(0, 0.0), row(1, 1.0)]])
def test_nobody_to_compare_with(ranks: list[Any]) -> None:
    assert slowest(ranks) is None


def test_a_result_is_plain_json() -> None:
    result = RunResult(
        strategy="data",
        network="lenet",
        dataset="digits",
        machines=[{"name": "m0", "device": "cpu", "share": 1.0}],
        batch_size=8,
        steps=3,
        epochs=0.5,
        seed=0,
        precision="fp32",
        memory_format="contiguous",
        wall_s=1.5,
        **speed([]),
        sent_bytes_per_step=0.0,
        train_loss=None,
        test_loss=None,
        test_accuracy=None,
        samples_seen=24,
        reformations=0,
        resumed_from_step=None,
        slowest=None,
        ranks=[],
        folder=Path("runs/x"),
    )
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain == result.to_dict()
    assert plain["folder"] == "runs/x"
    promised = (
        *("strategy", "network", "dataset", "machines", "batch_size", "steps", "epochs", "seed"),
        *("precision", "wall_s", "images_per_s", "step_s", "predicted_step_s"),
        *("predicted_images_per_s", "sent_bytes_per_step", "train_loss", "test_loss"),
        *("test_accuracy", "samples_seen", "reformations", "resumed_from_step", "slowest"),
    )
    assert set(promised) <= plain.keys()

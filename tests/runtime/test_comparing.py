"""What a comparison makes of the records that runs leave, written by hand here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from convoy.runtime.comparing import measured_step_s, time_to
from convoy.runtime.results import WARM_UP_STEPS

BATCH = 8


def written(folder: Path, walls: Sequence[Sequence[float]], short: Sequence[int] = ()) -> Path:
    """A run whose ranks took `walls` seconds, by step; of some steps the batch is short."""
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "rank": rank,
            "generation": 1,
            "samples": (2 if step in short else BATCH) // len(of_step),
            "wall_s": wall_s,
            "loss": 1.0,
        }
        for step, of_step in enumerate(walls)
        for rank, wall_s in enumerate(of_step)
    ]
    (folder / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_warm_up_and_short_batches_do_not_count(tmp_path: Path) -> None:
    walls = [(9.0,)] * WARM_UP_STEPS + [(0.1,), (0.2,), (0.01,), (0.3,)]
    run = written(tmp_path, walls, short=[WARM_UP_STEPS + 2])
    assert measured_step_s(run, 1, BATCH) == pytest.approx(0.2)


def test_a_tenth_at_either_end_does_not_count(tmp_path: Path) -> None:
    walls = [(9.0,)] * WARM_UP_STEPS + [(0.001,), *[(0.1,)] * 8, (5.0,)]
    assert measured_step_s(written(tmp_path, walls), 1, BATCH) == pytest.approx(0.1)


def test_ranks_that_are_slow_in_turns_are_not_slow_together(tmp_path: Path) -> None:
    """Alone between averages, each takes 0.2 s on average; the maximum by step would say 0.3."""
    walls = [(9.0, 9.0)] * WARM_UP_STEPS + [(0.1, 0.3), (0.3, 0.1)] * 4
    run = written(tmp_path, walls)
    assert measured_step_s(run, 2, BATCH) == pytest.approx(0.2)
    assert measured_step_s(run, 1, BATCH) == pytest.approx(0.3)


def test_groups_begin_after_warm_up_and_a_rest_is_left_out(tmp_path: Path) -> None:
    walls = [(9.0,)] * WARM_UP_STEPS + [(0.1,), (0.1,), (0.4,)] * 3 + [(7.0,), (7.0,)]
    assert measured_step_s(written(tmp_path, walls), 3, BATCH) == pytest.approx(0.2)


def test_time_to_an_accuracy(tmp_path: Path) -> None:
    run = written(tmp_path, [(0.5,)] * 6)
    rows = [
        {"step": step, "test_accuracy": a, "test_loss": 1.0}
        for step, a in ((1, 0.4), (3, 0.9), (5, 0.8))
    ]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert time_to(run, 0.4) == pytest.approx(1.0)
    assert time_to(run, 0.7) == pytest.approx(2.0)
    assert time_to(run, 0.95) == float("inf")

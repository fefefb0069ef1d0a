from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.errors import ConvoyError, DataError
from convoy.report import draw_run

SIZE = (1210, 440)
"""11 by 4 inches at 110 dots per inch."""

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """A function that writes the part of a run folder that pictures are drawn from."""

    def write(
        *,
        num_ranks: int = 2,
        num_steps: int = 12,
        lost: int | None = None,
        evaluations: str | None = '{"step": 5, "test_accuracy": 0.5, "test_loss": 1.5}\n'
        '{"step": 11, "test_accuracy": 0.75, "test_loss": 1.0}\n',
        **changes: Any,
    ) -> Path:
        lines = []
        for step in range(num_steps):
            for rank in range(num_ranks):
                times = {"compute_s": 0.25, "wait_s": 0.125, "comm_s": 0.0625, "wall_s": 0.5}
                row: dict[str, Any] = times | {"loss": 2.0 / (step + 1), "sent_bytes": 80}
                if (step, rank) == (num_steps // 2, lost):
                    row = dict.fromkeys(row)
                place = {"step": step, "rank": rank, "generation": 1, "machine": f"m{rank}"}
                lines.append(place | {"samples": 4} | row)
        (tmp_path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if evaluations is not None:
            (tmp_path / "evaluations.jsonl").write_text(evaluations)
        names = [f"m{rank}" for rank in range(num_ranks)]
        result = {
            "network": "lenet",
            "dataset": "digits",
            "strategy": "data",
            "machines": [{"name": name, "device": "cpu", "share": 1 / num_ranks} for name in names],
            "test_accuracy": 0.75,
            "ranks": [
                {"rank": rank, "machine": name, "samples": 4}
                | {"compute_s": 0.25, "wait_s": 0.125, "comm_s": 0.0625}
                for rank, name in enumerate(names)
            ],
        }
        (tmp_path / "result.json").write_text(json.dumps(result | changes))
        return tmp_path

    return write


def drawn(run: Path) -> np.ndarray:
    """Draw the run; the pixels of its picture, as bytes [height, width, RGB]."""
    path = draw_run(run)
    assert path == run / "run.png"
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", SIZE)
        return np.asarray(image.convert("RGB"))


def share_of(pixels: np.ndarray, colour: str, columns: slice) -> float:
    """How much of some columns has exactly this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return float((pixels[:, columns] == wanted).all(2).mean())


LEFT, RIGHT = slice(0, 640), slice(760, 1210)
COMPUTE, WAIT, COMM, ACCURACY = "#3b6fb6", "#d9a441", "#8c4a6b", "#2f8f5b"


def test_curves_on_the_left_and_ranks_on_the_right(write_run: WriteRun) -> None:
    pixels = drawn(write_run())
    assert 0.5 < (pixels == 255).all(2).mean() < 0.97  # neither blank nor filled
    assert share_of(pixels, COMPUTE, LEFT) > 0.0005
    assert share_of(pixels, ACCURACY, LEFT) > 0.0005
    bars = [share_of(pixels, colour, RIGHT) for colour in (COMPUTE, WAIT, COMM)]
    # The key repeats each colour in patches of one size, so bars of 4:2:1 stay in that order.
    assert bars[0] > 1.5 * bars[1] > 2 * bars[2] > 0


def test_without_evaluations(write_run: WriteRun) -> None:
    pixels = drawn(write_run(evaluations=None, test_accuracy=None))
    assert share_of(pixels, COMPUTE, LEFT) > 0.0005
    assert share_of(pixels, ACCURACY, LEFT) == 0


def test_one_rank_and_one_step(write_run: WriteRun) -> None:
    assert share_of(drawn(write_run(num_ranks=1, num_steps=1)), COMPUTE, RIGHT) > 0.01


@pytest.mark.parametrize("lost", [0, 1])
def test_a_step_in_which_a_rank_was_lost(write_run: WriteRun, lost: int) -> None:
    drawn(write_run(lost=lost))


def test_no_rank_that_lived_to_be_timed(write_run: WriteRun) -> None:
    pixels = drawn(write_run(ranks=[]))
    assert share_of(pixels, COMPUTE, LEFT) > 0.0005


def test_a_step_judged_twice_counts_once(write_run: WriteRun) -> None:
    twice = '{"step": 5, "test_accuracy": 0.1, "test_loss": 9.0}\n'
    once = '{"step": 5, "test_accuracy": 0.5, "test_loss": 1.5}\n'
    before = drawn(write_run(evaluations=once))
    assert np.array_equal(drawn(write_run(evaluations=twice + once)), before)


def test_lines_that_a_crash_cut_are_left_out(write_run: WriteRun) -> None:
    run = write_run()
    before = drawn(run)
    for name in ("steps.jsonl", "evaluations.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 3, "ra')
    assert np.array_equal(drawn(run), before)


def test_a_damaged_line_is_named(write_run: WriteRun) -> None:
    run = write_run(evaluations='{"step"\n{"step": 5, "test_accuracy": 0.1, "test_loss": 9.0}\n')
    with pytest.raises(DataError, match=r"evaluations\.jsonl, line 1"):
        draw_run(run)


def test_a_picture_that_cannot_be_written(write_run: WriteRun) -> None:
    run = write_run()
    (run / "run.png").mkdir()
    with pytest.raises(ConvoyError, match=r"cannot write .*run\.png"):
        draw_run(run)


def test_names_are_text_and_not_formulas(write_run: WriteRun) -> None:
    drawn(write_run(network="nets:a", dataset="folder:$_$"))


def test_no_window_system_is_touched(write_run: WriteRun) -> None:
    before = "matplotlib.pyplot" in sys.modules
    drawn(write_run())
    assert ("matplotlib.pyplot" in sys.modules) == before

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from convoy.cli.watching import Watcher, show_result, size
from convoy.runtime.records import StepSummary
from convoy.runtime.results import RunResult

PLAN: dict[str, Any] = {
    "network": "lenet",
    "parameters": 1234567,
    "dataset": "folder:[a]",
    "train_samples": 60000,
    "test_samples": 10000,
    "image_shape": [1, 28, 28],
    "classes": 10,
    "strategy": "data",
    "machines": [
        {"name": "tower[1]", "device": "cuda:0", "samples": 48, "share": 0.75},
        {"name": "old", "device": "cpu", "samples": 16, "share": 0.25},
    ],
    "settled": {},
    "divided": {},
    "kept": {},
    "batch_size": 64,
    "steps": 20,
    "steps_per_epoch": 10,
    "optimizer": "sgd",
    "folder": "runs/[x]",
}

RESULT = RunResult(
    strategy="data",
    network="lenet",
    dataset="digits",
    machines=[],
    batch_size=64,
    steps=20,
    epochs=2.0,
    seed=0,
    precision="fp32",
    memory_format="contiguous",
    wall_s=12.34,
    images_per_s=1234.4,
    step_s={"median": 0.5, "p90": 0.75},
    sent_bytes_per_step=2_500_000.0,
    train_loss=0.25,
    test_loss=0.5,
    test_accuracy=0.9876,
    samples_seen=1280,
    reformations=0,
    resumed_from_step=None,
    slowest={"machine": "old", "rank": 1, "ratio": 1.25},
    ranks=[
        {"rank": 0, "machine": "tower[1]", "samples": 48, "compute_s": 0.0125}
        | {"wait_s": 0.00025, "comm_s": 0.001, "sent_bytes": 1500},
        {"rank": 1, "machine": "old", "samples": 16, "compute_s": 0.015}
        | {"wait_s": 0.0, "comm_s": 0.001, "sent_bytes": 999},
    ],
    folder=Path("runs/x"),
)


@pytest.fixture
def output() -> StringIO:
    return StringIO()


@pytest.fixture
def console(output: StringIO) -> Iterator[Console]:
    before = set(threading.enumerate())
    yield Console(file=output, width=200, highlight=False)
    for thread in set(threading.enumerate()) - before:  # told to end, but not waited for
        thread.join(10)
        assert not thread.is_alive()


def summary(step: int, wall_s: float = 0.5) -> StepSummary:
    return StepSummary(step=step, generation=1, samples=64, wall_s=wall_s, loss=1.5, ranks=())


def test_the_plan_in_words(console: Console, output: StringIO) -> None:
    with Watcher(console) as watcher:
        watcher.planned(PLAN)
    lines = output.getvalue().splitlines()
    assert lines[:3] == [
        "lenet (1,234,567 parameters) on folder:[a]: 60,000 images of 1x28x28, 10 classes; "
        "10,000 to test with",
        "data over 2 ranks, batch 64 = tower[1] cuda:0 48, old cpu 16; 20 steps of sgd",
        "run folder: runs/[x]",
    ]


def test_which_layers_are_divided_and_why_others_are_not(
    console: Console, output: StringIO
) -> None:
    divided = {"conv1": [24, 8], "conv[2]": [24, 8], "conv3": [50, 14]}
    kept = {"stem": "it is small", "head": "it is small"}
    with Watcher(console) as watcher:
        settled = {"stages_per_device": 2, "pipeline_schedule": "1f1b"}
        watcher.planned(PLAN | {"settled": settled, "divided": divided, "kept": kept})
    assert output.getvalue().splitlines()[2:6] == [
        "stages per device 2, pipeline schedule 1f1b",
        "conv1, conv[2] divided as 24/8",
        "conv3 divided as 50/14",
        "stem, head not: it is small",
    ]


def test_one_rank_is_not_many(console: Console, output: StringIO) -> None:
    with Watcher(console) as watcher:
        watcher.planned(PLAN | {"machines": PLAN["machines"][:1]})
    assert "data over 1 rank, batch" in output.getvalue()


def test_the_bar_shows_how_far_it_is(console: Console, output: StringIO) -> None:
    with Watcher(console) as watcher:
        watcher.planned(PLAN)
        watcher.evaluated(9, 0.75, 1.0)
        watcher.stepped(summary(10), 20)
        watcher.stepped(summary(11, wall_s=1.5), 20)
    bar = output.getvalue().splitlines()[-1]
    assert bar.startswith("epoch 2 ")
    assert "12/20" in bar
    # Two steps of 64 images took 2 seconds.
    assert "loss 1.5000  64 images/s  test 75.00%" in bar


def test_steps_without_times_or_before_a_plan(console: Console, output: StringIO) -> None:
    with Watcher(console) as watcher:
        watcher.stepped(summary(0, wall_s=0.0), 20)
        watcher.evaluated(0, 0.5, 1.0)
    assert output.getvalue() == ""


def test_what_is_said_stands_above_the_bar(console: Console, output: StringIO) -> None:
    long = "word " * 100
    with Watcher(console) as watcher:
        watcher.say("rank 0 on [tower] died", "warning")
        watcher.planned(PLAN)
        watcher.say(long.strip())
    assert "rank 0 on [tower] died\n" in output.getvalue()
    assert long.strip() + "\n" in output.getvalue()


def test_the_bar_ends_when_the_run_fails(console: Console) -> None:
    def fail() -> None:
        with Watcher(console) as watcher:
            watcher.planned(PLAN)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()  # and the fixture sees that its thread has ended


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]


def test_the_table_at_the_end(console: Console, output: StringIO) -> None:
    show_result(console, RESULT)
    lines = output.getvalue().splitlines()
    rows = [cells(line) for line in lines if "│" in line or "┃" in line]
    heading = "rank machine samples/step compute-ms wait-ms comm-ms sent/step"
    assert rows == [
        [name.replace("-", " ") for name in heading.split()],
        ["0", "tower[1]", "48", "12.50", "0.25", "1.00", "1.5 kB"],
        ["1", "old", "16", "15.00", "0.00", "1.00", "999 B"],
    ]
    assert "test accuracy 98.76%   1,234 images/s   2.5 MB sent per step   12.3 s in all" in lines
    assert lines[-1] == "picture: runs/x/run.png"
    assert "computes" not in output.getvalue()  # 1.25 times as long is no matter
    assert "formed anew" not in output.getvalue()


def test_algorithms_of_convolutions(console: Console, output: StringIO) -> None:
    show_result(console, RESULT)
    assert "convolutions" not in output.getvalue()
    show_result(console, replace(RESULT, conv_algorithm="auto"))
    assert "convolutions: torch's own on all ranks" in output.getvalue()
    many = {f"conv{n}": "pipelined" for n in range(1, 7)}
    chosen = {"0": {"conv1": "torch/lowering/torch"}, "2": many}
    show_result(console, replace(RESULT, conv_algorithm="auto", convolutions=chosen))
    assert (
        "convolutions: rank 0: conv1 torch/lowering/torch; rank 2: conv1 pipelined, "
        "conv2 pipelined, conv3 pipelined, conv4 pipelined and 2 more"
    ) in " ".join(output.getvalue().split())


def test_what_a_person_should_know_besides(console: Console, output: StringIO) -> None:
    show_result(console, replace(RESULT, reformations=2))
    said = " ".join(output.getvalue().split())
    assert "ranks were lost and the others formed anew 2 times" in said


def test_figures_that_are_not_there(console: Console, output: StringIO) -> None:
    nothing = replace(RESULT, test_accuracy=None, images_per_s=None, slowest=None, ranks=[])
    show_result(console, nothing)
    assert "test accuracy not measured   not measured images/s" in output.getvalue()


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1500, "1.5 kB"),
        (2_345_678, "2.3 MB"),
        (1e9, "1.0 GB"),
        (12_345e9, "12,345.0 GB"),
    ],
)
def test_sizes_for_people(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text

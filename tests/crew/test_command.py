"""`convoy train` from a shell: what it prints and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .processes import Harbour, Program
from .reference import (
    NETWORK,
    STEPS_PER_EPOCH,
    TRAIN_SAMPLES,
    assert_each_sample_once,
    assert_same_bits,
)

ALONE = ("--workers=1", "--epochs=1")
LEFT = ("run.toml", "host.json", "plan.json", "steps.jsonl", "result.json", "checkpoints")
LEFT += ("tensorboard", "model.safetensors", "run.png")
RESULT = {
    *("strategy", "network", "dataset", "machines", "batch_size", "steps", "epochs", "seed"),
    *("precision", "wall_s", "images_per_s", "step_s", "predicted_step_s"),
    *("predicted_images_per_s", "sent_bytes_per_step", "train_loss", "test_loss"),
    *("test_accuracy", "samples_seen", "reformations", "resumed_from_step", "slowest"),
}


def test_two_runs_at_once(
    program: Callable[..., Program], harbour: Harbour, tmp_path: Path
) -> None:
    command = ("-m", "convoy", "train", "--network", NETWORK, "--data", "digits", "--json")
    command += ("--strategy", "data")
    programs = [program(*command, *of) for of in (("--workers=2", "--epochs=3"), ALONE)]
    for train in programs:
        assert train.wait() == 0, train.stderr
    both, alone = [json.loads(train.stdout) for train in programs]
    runs = {tmp_path / result["folder"] for result in (both, alone)}
    assert set((tmp_path / "runs").iterdir()) == runs
    assert len(runs) == 2
    check_run(tmp_path / both["folder"], both, num_epochs=3)
    check_run(tmp_path / alone["folder"], alone, num_epochs=1)

    assert [machine["share"] for machine in both["machines"]] == [0.5, 0.5]
    assert both["sent_bytes_per_step"] == 2 * 5130 * 4  # every gradient, in float32
    assert [machine["share"] for machine in alone["machines"]] == [1.0]
    assert alone["sent_bytes_per_step"] == 0
    check_evaluation(harbour, tmp_path / both["folder"], both)

    again = harbour.command("train", "--resume", str(tmp_path / alone["folder"]))
    assert again["code"] == 2
    assert "already at step 23 of 23" in again["stderr"]
    assert "--epochs" in again["stderr"]

    run = tmp_path / alone["folder"]
    (tmp_path / "whole").mkdir()
    for name in ("result.json", "model.safetensors"):  # stopped before it could be concluded
        (run / name).rename(tmp_path / "whole" / name)
    again = harbour.command("train", "--resume", str(run), "--json")
    assert again["code"] == 0, again["stderr"]
    concluded = json.loads(again["stdout"])
    assert concluded["test_accuracy"] == alone["test_accuracy"]
    assert_same_bits(run, tmp_path / "whole")


def check_run(run: Path, result: dict[str, Any], *, num_epochs: int) -> None:
    """The folder holds all that it should, and what was printed is in it."""
    assert result == json.loads((run / "result.json").read_text())
    assert result.keys() >= RESULT
    assert {path.name for path in run.iterdir()} >= set(LEFT)
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]  # half-written
    for name in LEFT:
        path = run / name
        assert any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0

    steps, samples = num_epochs * STEPS_PER_EPOCH, num_epochs * TRAIN_SAMPLES
    assert_each_sample_once(run, steps)
    assert (result["samples_seen"], result["steps"]) == (samples, steps)
    assert (result["strategy"], result["dataset"]) == ("data", "digits")
    assert result["epochs"] == num_epochs
    assert result["images_per_s"] > 0
    assert 0 < result["step_s"]["median"] <= result["step_s"]["p90"]
    assert (result["reformations"], result["resumed_from_step"]) == (0, None)


def check_evaluation(harbour: Harbour, run: Path, result: dict[str, Any]) -> None:
    """`convoy evaluate` finds what the run itself did."""
    judged = harbour.command("evaluate", str(run), "--json")
    assert judged["code"] == 0
    found = json.loads(judged["stdout"])
    assert (found["accuracy"], found["samples"]) == (result["test_accuracy"], 360)
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-5)

"""`convoy train` from a shell: what it prints and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .processes import Harbour, Program
from .reference import NETWORK, STEPS_PER_EPOCH, assert_each_sample_once

LEFT = ("run.toml", "host.json", "plan.json", "steps.jsonl", "result.json", "checkpoints")
LEFT += ("tensorboard", "model.safetensors", "run.png")
RESULT = {
    *("strategy", "network", "dataset", "machines", "batch_size", "steps", "epochs", "seed"),
    *("precision", "wall_s", "images_per_s", "step_s", "predicted_step_s"),
    *("predicted_images_per_s", "sent_bytes_per_step", "train_loss", "test_loss"),
    *("test_accuracy", "samples_seen", "reformations", "resumed_from_step", "slowest"),
}


@pytest.mark.timeout(90)
def test_two_workers(program: Callable[..., Program], harbour: Harbour, tmp_path: Path) -> None:
    train = program(
        *("-m", "convoy", "train", "--network", NETWORK, "--data", "digits", "--workers", "2"),
        *("--epochs", "3", "--json"),
    )
    assert train.wait(60) == 0, train.stderr
    result = json.loads(train.stdout)
    (run,) = (tmp_path / "runs").iterdir()
    assert result == json.loads((run / "result.json").read_text())
    assert result.keys() >= RESULT
    assert {path.name for path in run.iterdir()} >= set(LEFT)
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]  # half-written
    for name in LEFT:
        path = run / name
        assert any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0

    assert_each_sample_once(run, 3 * STEPS_PER_EPOCH)
    assert (result["samples_seen"], result["steps"], result["epochs"]) == (3 * 1437, 69, 3)
    assert (result["strategy"], result["dataset"]) == ("data", "digits")
    assert [machine["share"] for machine in result["machines"]] == [0.5, 0.5]
    assert result["sent_bytes_per_step"] == 2 * 5130 * 4  # every gradient, in float32
    assert result["images_per_s"] > 0
    assert 0 < result["step_s"]["median"] <= result["step_s"]["p90"]
    assert (result["reformations"], result["resumed_from_step"]) == (0, None)

    judged = harbour.command("evaluate", str(run), "--json")
    assert judged["code"] == 0
    found = json.loads(judged["stdout"])
    assert (found["accuracy"], found["samples"]) == (result["test_accuracy"], 360)
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-5)

    again = harbour.command("train", "--resume", str(run))
    assert again["code"] == 2
    assert "already at step 69 of 69" in again["stderr"]
    assert "--epochs" in again["stderr"]


@pytest.mark.timeout(90)
def test_two_runs_at_once(program: Callable[..., Program], tmp_path: Path) -> None:
    command = ("-m", "convoy", "train", "--network", NETWORK, "--epochs", "1", "--json")
    runs = [program(*command, "--workers", "1") for _ in range(2)]
    for train in runs:
        assert train.wait(70) == 0, train.stderr
    results = [json.loads(train.stdout) for train in runs]
    assert len({result["folder"] for result in results}) == 2
    for result in results:
        assert_each_sample_once(tmp_path / result["folder"], STEPS_PER_EPOCH)

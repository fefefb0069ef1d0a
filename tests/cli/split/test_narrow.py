"""`convoy split narrow`, from a finished run to an account of all widths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from convoy.networks import build
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.settings import TrainSettings

Convoy = Callable[..., Any]
NETWORK = "chavan:3-8-16-10"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of a network that has its first weights still, and says that it is good."""
    folder = RunFolder(tmp_path / "full")
    folder.path.mkdir()
    folder.write_settings(TrainSettings(network=NETWORK, epochs=4, lr=0.05))
    folder.write_json("plan.json", {"image_shape": [1, 8, 8], "classes": 10})
    folder.write_json("result.json", {"test_accuracy": 0.9, "test_loss": 0.3, "epochs": 4.0})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(NETWORK, input_shape=(1, 8, 8), num_classes=10)
    folder.write_model(network.state_dict(), {})
    return folder


def test_two_widths(convoy: Convoy, run: RunFolder) -> None:
    """Trained once; the second time what there is is told again, for people and for programs."""
    command = ("split", "narrow", str(run.path), "--cut", "pool1", "--filters", "8,2")
    command += ("--epochs", "3", "--lr", "0.05", "--workers", "2", "--data-dir", str(run.path))
    ran = convoy(*command, "--json")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    folder = run.path / "narrow" / "pool1"
    assert json.loads((folder / "narrow.json").read_text()) == found
    assert (found["run"], found["cut"], found["from_scratch"]) == (str(run.path), "pool1", False)
    assert (found["full"]["accuracy"], found["full"]["filters"]) == (0.9, 8)

    two, eight = found["filters"]
    assert (two["filters"], eight["filters"]) == (2, 8)
    for row in (two, eight):
        filters = row["filters"]
        assert row["network"] == f"{NETWORK}@pool1:{filters}"
        assert row["parameters"] == filters * 10 + 16 * (9 * filters + 1) + 10 * 17
        assert row["bytes_per_image_float32"] == filters * 3 * 3 * 4
        assert row["epochs"] == 3
        assert 0.2 < row["accuracy"] <= 1  # a tenth by chance
        result = json.loads((folder / f"f{filters}" / "result.json").read_text())
        assert (row["accuracy"], row["loss"]) == (result["test_accuracy"], result["test_loss"])
        assert result["strategy"] == "single"
    assert eight["accuracy"] > two["accuracy"]
    with Image.open(folder / "narrow.png") as picture:
        assert picture.size == (770, 462)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("f*/*") if path.is_file()}

    ran = convoy(*command)
    assert ran.status == 0, ran.err
    assert f"{two['accuracy']:.2%}" in ran.out
    assert f"{two['accuracy'] * 100 - 90:+.2f}" in ran.out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    evaluated = convoy("evaluate", str(folder / "f2"), "--json")
    assert evaluated.status == 0, evaluated.err
    assert json.loads(evaluated.out)["accuracy"] == pytest.approx(two["accuracy"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--cut", "pool1", "--filters", "4,many"), "--filters 4,many: expected whole numbers"),
        (("--cut", "pool1", "--filters", "4,9"), "conv1 has 8 filters; expected a number from 1"),
        (("--cut", "pol1", "--filters", "4"), "Nearest: pool1"),
        (("--cut", "ip1", "--filters", "4"), "cannot be narrowed at ip1"),
    ],
)
def test_wrong_usage_starts_nothing(
    convoy: Convoy, run: RunFolder, options: tuple[str, ...], text: str
) -> None:
    ran = convoy("split", "narrow", str(run.path), *options, "--json")
    assert (ran.status, ran.out) == (2, "")
    assert text in ran.err
    assert not (run.path / "narrow").exists()


def test_a_training_that_fails_is_named(convoy: Convoy, run: RunFolder) -> None:
    options = ("--cut", "pool1", "--filters", "2", "--lr", "1e9", "--json")
    ran = convoy("split", "narrow", str(run.path), *options)
    assert (ran.status, ran.out) == (1, "")
    assert f"{NETWORK}@pool1:2 ended with status 1 (error: the loss became" in ran.err
    assert "f2.log" in ran.err


def test_a_run_that_has_not_finished(convoy: Convoy, run: RunFolder) -> None:
    run.model.unlink()
    ran = convoy("split", "narrow", str(run.path), "--cut", "pool1", "--filters", "2")
    assert ran.status == 1
    assert "the run did not finish" in ran.err


def test_a_network_that_only_its_caller_knows(convoy: Convoy, run: RunFolder) -> None:
    run.write_settings(TrainSettings(network="python:Mine", epochs=4))
    ran = convoy("split", "narrow", str(run.path), "--cut", "pool1", "--filters", "2")
    assert ran.status == 2
    assert "'Mine' was given in Python" in ran.err


def test_split_lists_its_verbs(convoy: Convoy) -> None:
    assert "narrow" in convoy("split", "--help").out

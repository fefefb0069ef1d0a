from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import convoy as library
from convoy import networks
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.settings import TrainSettings

Convoy = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has finished, made without training."""
    folder = RunFolder(tmp_path / "run[1]")
    folder.path.mkdir()
    name, shape = "chavan:3-4-8-3", (1, 8, 8)
    folder.write_settings(TrainSettings(network=name, data="synthetic:1x8x8:3:64"))
    folder.write_json("plan.json", {"image_shape": shape, "classes": 3})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = networks.build(name, input_shape=shape, num_classes=3)
    folder.write_model(dict(model.state_dict()), {})
    return folder


def test_for_people(convoy: Convoy, run: RunFolder) -> None:
    expected = library.evaluate(run.path)
    ran = convoy("evaluate", str(run.path))
    assert (ran.status, ran.err) == (0, "")
    assert f"chavan:3-4-8-3 of {run.path} on synthetic:1x8x8:3:64" in ran.out
    assert f"accuracy {expected.accuracy:.2%} of 16 test samples, loss" in ran.out
    rows = [line for line in ran.out.splitlines() if line.startswith("│")]
    counts = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    for number, (cells, row) in enumerate(zip(counts, expected.confusion, strict=True)):
        share = f"{row[number] / sum(row):.1%}"
        shown = [
            str(count) if count or column == number else "·" for column, count in enumerate(row)
        ]
        assert cells == [str(number), *shown, share]


def test_for_programs(convoy: Convoy, run: RunFolder) -> None:
    ran = convoy("evaluate", str(run.path), "--json")
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out) == vars(library.evaluate(run.path))


def test_another_data_set(convoy: Convoy, run: RunFolder) -> None:
    ran = convoy("evaluate", str(run.path), "--data", "synthetic:1x8x8:3:8", "--json")
    assert json.loads(ran.out)["samples"] == 2
    ran = convoy("evaluate", str(run.path), "--data", "digits", "--json")
    assert (ran.status, ran.out) == (2, "")
    assert "was trained on 1x8x8 images of 3 classes; digits has" in ran.err


def test_stdout_is_for_json_though_the_users_code_prints(
    convoy: Convoy, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talkative_data.py").write_text(
        "from convoy.datasets import open_dataset\n"
        "def load():\n"
        "    print('loading')\n"
        "    return open_dataset('synthetic:1x8x8:3:8')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ran = convoy("evaluate", str(run.path), "--data", "talkative_data:load", "--json")
    assert json.loads(ran.out)["samples"] == 2
    assert "loading" in ran.err


def test_a_run_that_has_not_finished(convoy: Convoy, run: RunFolder) -> None:
    run.model.unlink()
    ran = convoy("evaluate", str(run.path), "--json")
    assert (ran.status, ran.out) == (1, "")
    assert "the run did not finish" in ran.err

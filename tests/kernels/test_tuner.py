"""What is fastest is timed once, kept, and taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy.kernels import tuner
from convoy.kernels.geometry import Geometry
from convoy.kernels.passes import ByPass
from convoy.kernels.timing import Timed
from convoy.kernels.tuner import Kept, tuned

ONE = Geometry(images=5, channels=2, height=6, width=6, filters=3, kernel=(3, 3))
OTHER = replace(ONE, filters=4)
SECONDS = {
    ("forward", "torch"): 1.0, ("forward", "lowering"): 0.9, ("forward", "pipelined"): 0.5,
    ("input", "torch"): 1.0, ("input", "lowering"): 0.99, ("input", "pipelined"): 2.0,
    ("weight", "torch"): 1.0, ("weight", "lowering"): 0.2, ("weight", "pipelined"): 0.3,
}  # fmt: skip
BEST = ByPass("pipelined", "torch", "lowering")  # 1% is noise


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Geometry]:
    """What was timed, by a clock that is made up."""
    found: list[Geometry] = []

    def played(geometry: Geometry, num_threads: int, names: Sequence[str], **_: Any) -> list[Timed]:
        found.append(geometry)
        return [
            Timed(algorithm=name, what=what, num_threads=num_threads, seconds=seconds)
            for (what, name), seconds in SECONDS.items()
            if name in names
        ]

    monkeypatch.setattr(tuner, "timed", played)
    return found


def test_the_fastest_of_each_pass_is_taken_and_kept(asked: list[Geometry], tmp_path: Path) -> None:
    path, said = tmp_path / "a" / "kept.json", []
    layers = {"conv1": ONE, "conv2": OTHER, "conv3": ONE}
    found = tuned(layers, 1, torch.float32, Kept(path), say=said.append)
    assert found == dict.fromkeys(layers, BEST)
    assert asked == [replace(ONE, images=8), replace(OTHER, images=8)]  # each shape once
    assert said == ["timing 2 convolutions by torch, lowering, pipelined, once on this machine"]
    again = tuned(layers, 1, torch.float32, Kept(path), say=said.append)
    assert (again, len(asked), len(said)) == (found, 2, 1)
    assert set(json.loads(path.read_text()).values()) == {"pipelined/torch/lowering"}
    assert list(path.parent.iterdir()) == [path]


def test_what_it_depends_on_is_timed_anew(asked: list[Geometry], tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.json")
    tuned({"conv": ONE}, 1, torch.float32, kept)
    tuned({"conv": replace(ONE, images=7)}, 1, torch.float32, kept)  # rounded up alike
    assert len(asked) == 1
    tuned({"conv": ONE}, 2, torch.float32, kept)
    tuned({"conv": ONE}, 1, torch.float64, kept)
    tuned({"conv": replace(ONE, images=9)}, 1, torch.float32, kept)
    tuned({"conv": replace(ONE, padding=(1, 1))}, 1, torch.float32, kept)
    assert len(asked) == 5
    tuned({"conv": replace(ONE, images=1000)}, 1, torch.float32, kept)
    assert asked[-1].images == tuner.MOST_IMAGES


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": 3}', "{"])
def test_a_file_that_is_broken_is_written_anew(
    asked: list[Geometry], tmp_path: Path, text: str
) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text)
    assert tuned({"conv": ONE}, 1, torch.float32, Kept(path)) == {"conv": BEST}
    assert tuned({"conv": ONE}, 1, torch.float32, Kept(path)) == {"conv": BEST}
    assert len(asked) == 1


def test_an_algorithm_of_another_version_is_timed_anew(
    asked: list[Geometry], tmp_path: Path
) -> None:
    path = tmp_path / "kept.json"
    tuned({"conv": ONE}, 1, torch.float32, Kept(path))
    path.write_text(path.read_text().replace("lowering", "winograd"))
    assert tuned({"conv": ONE}, 1, torch.float32, Kept(path)) == {"conv": BEST}
    assert len(asked) == 2


def test_two_who_keep_at_once_lose_nothing(asked: list[Geometry], tmp_path: Path) -> None:
    first, second = Kept(tmp_path / "kept.json"), Kept(tmp_path / "kept.json")
    tuned({"conv": ONE}, 1, torch.float32, first)
    tuned({"conv": OTHER}, 1, torch.float32, second)
    third = Kept(tmp_path / "kept.json")
    tuned({"conv1": ONE, "conv2": OTHER}, 1, torch.float32, third)
    assert len(asked) == 2


def test_it_really_times(tmp_path: Path) -> None:
    found = tuned({"conv": ONE}, 1, torch.float32, Kept(tmp_path / "kept.json"))
    assert set(found["conv"]) <= set(tuner.CANDIDATES)

"""What is fastest is timed once, kept, and taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy.kernels import timing, tuner
from convoy.kernels.geometry import Geometry
from convoy.kernels.passes import OF_TORCH, TORCH, ByPass
from convoy.kernels.tuner import Kept, Where, tuned

ONE = Geometry(images=5, channels=2, height=6, width=6, filters=3, kernel=(3, 3))
OTHER = replace(ONE, filters=4)
HERE = Where(hardware="a processor", num_threads=1, dtype=torch.float32)
SECONDS = {
    "forward": {"torch": 1.0, "torch-channels-last": 0.8, "lowering": 0.9, "pipelined": 0.5},
    "input": {"torch": 1.0, "torch-channels-last": 1.1, "lowering": 0.99, "pipelined": 2.0},
    "weight": {"torch": 1.0, "torch-channels-last": 0.1, "lowering": 0.2, "pipelined": 0.3},
}
BEST = ByPass("pipelined", "torch", "torch-channels-last")  # 1% is noise


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Geometry]:
    """What was timed, by a clock that is made up."""
    found: list[Geometry] = []

    def played(
        geometry: Geometry, names: Sequence[str], passes: Sequence[str], **_: Any
    ) -> dict[tuple[str, str], float]:
        found.append(geometry)
        return {(what, name): SECONDS[what].get(name, 9.0) for what in passes for name in names}

    monkeypatch.setattr(tuner, "timed_as_op", played)
    return found


def test_the_fastest_of_each_pass_is_taken_and_kept(asked: list[Geometry], tmp_path: Path) -> None:
    path, said = tmp_path / "a" / "kept.json", []
    layers = {"conv1": ONE, "conv2": OTHER, "conv3": ONE}
    found = tuned(layers, HERE, Kept(path), say=said.append)
    assert found == dict.fromkeys(layers, BEST)
    assert asked == [replace(OTHER, images=8), replace(ONE, images=8)]  # each once; largest first
    assert said == [
        "timing 2 convolutions by torch, torch-channels-last, lowering, pipelined, once on this "
        "machine"
    ]
    again = tuned(layers, HERE, Kept(path), say=said.append)
    assert (again, len(asked), len(said)) == (found, 2, 1)
    assert set(json.loads(path.read_text()).values()) == {str(BEST)}
    assert {p.name for p in path.parent.iterdir()} == {"kept.json", "kept.json.lock"}


def test_what_it_depends_on_is_timed_anew(asked: list[Geometry], tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.json")
    tuned({"conv": ONE}, HERE, kept)
    tuned({"conv": replace(ONE, images=7)}, HERE, kept)  # rounded up alike
    assert len(asked) == 1
    for other in (
        replace(HERE, num_threads=2),
        replace(HERE, dtype=torch.float64),
        replace(HERE, last=True),
        replace(HERE, hardware="another processor"),
    ):
        tuned({"conv": ONE}, other, kept)
    tuned({"conv": replace(ONE, images=9)}, HERE, kept)
    tuned({"conv": replace(ONE, padding=(1, 1))}, HERE, kept)
    assert len(asked) == 7
    tuned({"conv": replace(ONE, images=1000)}, HERE, kept)
    assert asked[-1].images == tuner.MOST_IMAGES


def test_what_is_large_is_timed_with_few_images(asked: list[Geometry], tmp_path: Path) -> None:
    large = Geometry(
        images=64, channels=64, height=224, width=224, filters=64, kernel=(3, 3), padding=(1, 1)
    )
    for num_threads in (1, 2):
        where = replace(HERE, num_threads=num_threads)
        tuned({"conv": large}, where, Kept(tmp_path / "kept.json"))
    assert [geometry.images for geometry in asked] == [1, 2]  # one for each thread


def test_of_the_first_layer_no_gradient_of_the_input(
    asked: list[Geometry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECONDS, "input", {"torch": 1.0, "lowering": 0.1})
    kept = Kept(tmp_path / "kept.json")
    found = tuned({"conv1": ONE, "conv2": ONE}, HERE, kept, first={"conv1"})
    assert found == {"conv1": BEST, "conv2": BEST._replace(input="lowering")}
    assert len(asked) == 2  # they are asked for differently
    assert tuned({"conv1": ONE}, HERE, kept, first={"conv1"}) == {"conv1": BEST}
    assert len(asked) == 2


def test_a_gpu_has_torchs_own_in_two_layouts(asked: list[Geometry], tmp_path: Path) -> None:
    there = replace(HERE, hardware="a GPU", device="cuda:0")
    assert set(there.candidates) <= set(OF_TORCH)
    found = tuned({"conv": ONE}, there, Kept(tmp_path / "kept.json"))
    assert found["conv"] == ByPass("torch-channels-last", "torch", "torch-channels-last")


def test_time_is_limited(
    asked: list[Geometry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner.time, "perf_counter", lambda: 1.5 * len(asked))
    kept, said = Kept(tmp_path / "kept.json"), []
    layers = {"small": ONE, "large": OTHER}
    found = tuned(layers, HERE, kept, budget_s=1.0, say=said.append)
    assert found == {"small": ByPass(TORCH, TORCH, TORCH), "large": BEST}
    assert said[1:] == ["1 convolutions are not timed yet: torch's own for these"]
    assert tuned(layers, HERE, kept) == dict.fromkeys(layers, BEST)  # the next time
    assert len(asked) == 2


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": 3}', "{"])
def test_a_file_that_is_broken_is_written_anew(
    asked: list[Geometry], tmp_path: Path, text: str
) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text)
    assert tuned({"conv": ONE}, HERE, Kept(path)) == {"conv": BEST}
    assert tuned({"conv": ONE}, HERE, Kept(path)) == {"conv": BEST}
    assert len(asked) == 1


def test_an_algorithm_of_another_version_is_timed_anew(
    asked: list[Geometry], tmp_path: Path
) -> None:
    path = tmp_path / "kept.json"
    tuned({"conv": ONE}, HERE, Kept(path))
    path.write_text(path.read_text().replace("pipelined", "winograd"))
    assert tuned({"conv": ONE}, HERE, Kept(path)) == {"conv": BEST}
    assert len(asked) == 2


def test_two_who_keep_at_once_lose_nothing(asked: list[Geometry], tmp_path: Path) -> None:
    first, second = Kept(tmp_path / "kept.json"), Kept(tmp_path / "kept.json")
    tuned({"conv": ONE}, HERE, first)
    tuned({"conv": OTHER}, HERE, second)
    third = Kept(tmp_path / "kept.json")
    tuned({"conv1": ONE, "conv2": OTHER}, HERE, third)
    assert len(asked) == 2


def test_who_times_at_once_goes_by_the_same_choice(tmp_path: Path) -> None:
    first, second = Kept(tmp_path / "kept.json"), Kept(tmp_path / "kept.json")

    def is_choice(choice: Any) -> bool:
        return choice in ("A", "B")

    assert first.put("conv", "A", is_choice) == "A"
    assert second.put("conv", "B", is_choice) == second.get("conv") == "A"
    (tmp_path / "kept.json").write_text('{"conv": "of another version"}')
    assert second.put("conv", "B", is_choice) == "B"
    (tmp_path / "kept.json").unlink()  # to have all timed anew
    first.put("other", "A", is_choice)
    assert json.loads((tmp_path / "kept.json").read_text()) == {"other": "A"}


def test_what_cannot_be_written_is_known_meanwhile(asked: list[Geometry], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "kept.json")
    for _ in range(2):
        assert tuned({"conv": ONE}, HERE, kept) == {"conv": BEST}
    assert len(asked) == 1


@pytest.mark.parametrize("last", [False, True])
def test_it_really_times(tmp_path: Path, last: bool) -> None:
    where = replace(HERE, last=last)
    found = tuned({"conv": ONE}, where, Kept(tmp_path / "kept.json"))
    assert set(found["conv"]) <= set(where.candidates)


def test_turns_of_what_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    turns: dict[str, int] = {"fast": 0, "near": 0, "slow": 0}

    def work(name: str, seconds: float) -> Any:
        def turn() -> None:
            nonlocal now
            turns[name] += 1
            now += seconds

        return turn

    works = {"fast": work("fast", 1.0), "near": work("near", 1.25), "slow": work("slow", 1.5)}
    found = timing.turns_of(works, 2.0, hopeless=1.3)
    assert {n: set(t) for n, t in found.items()} == {
        "fast": {1.0},
        "near": {1.25},
        "slow": {1.5},
    }
    assert turns["slow"] == 3  # one that does not count
    assert turns["fast"] == turns["near"] == 1 + timing.LEAST_TURNS
    timing.turns_of(works, 2.0, most_s=3.0)
    assert turns["slow"] == 3 + 2

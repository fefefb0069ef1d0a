"""What a training with fewer filters is told, and when it is not begun anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from convoy.errors import UsageError
from convoy.networks import narrow_weights
from convoy.runtime.checkpoint import Checkpoint, write_checkpoint
from convoy.runtime.formation import Part
from convoy.runtime.run_folder import RunFolder
from convoy.runtime.settings import TrainSettings, read_config, settings_from
from convoy.split.narrow_training import FullRun, NarrowSettings, prepared


def asked(**values: Any) -> NarrowSettings:
    return NarrowSettings(**{"cut": "pool1", "filters": (4,), **values})


def told(full: FullRun, folder: Path, **values: Any) -> TrainSettings:
    """The settings that the training with four filters gets."""
    training, is_done = prepared(full, asked(**values), folder, 4)
    assert not is_done
    assert training.arguments == ("--config", str(folder / "start" / "f4.toml"))
    return settings_from(read_config(folder / "start" / "f4.toml"), source="f4.toml")


def test_fine_tuning_is_shorter_and_gentler(full: FullRun, tmp_path: Path) -> None:
    settings = told(full, tmp_path)
    assert settings.network == "chavan:3-16-32-10@pool1:4"
    assert (settings.epochs, settings.lr) == (5, pytest.approx(0.004))
    assert (settings.strategy, settings.workers) == ("single", None)
    assert (settings.data, settings.out) == ("digits", tmp_path / "f4")
    kept = narrow_weights(settings.network, full.tensors, input_shape=(1, 8, 8), num_classes=10)
    assert settings.weights is not None
    started = load_file(settings.weights)
    assert all(torch.equal(started[name], kept[name]) for name in kept)


def test_its_schedule_is_shorter_too(full: FullRun, tmp_path: Path) -> None:
    schedule = {"lr_schedule": "step", "lr_step_epochs": 8, "warmup": 30}
    before = replace(full, settings=replace(full.settings, **schedule, epochs=None, steps=50))
    settings = told(before, tmp_path)
    assert (settings.steps, settings.epochs) == (13, None)
    assert (settings.lr_step_epochs, settings.warmup) == (2, 0)


def test_from_scratch_is_as_the_full_training(full: FullRun, tmp_path: Path) -> None:
    settings = told(full, tmp_path, from_scratch=True)
    assert (settings.epochs, settings.lr, settings.weights) == (20, 0.04, None)
    assert not (tmp_path / "start" / "f4.safetensors").exists()


def test_what_is_said_wins(full: FullRun, tmp_path: Path) -> None:
    before = replace(full, settings=replace(full.settings, epochs=None, steps=50))
    settings = told(before, tmp_path, epochs=3, lr=0.5, data_dir=Path("/elsewhere"))
    assert (settings.epochs, settings.steps, settings.lr) == (3, None, 0.5)
    assert settings.data_dir == Path("/elsewhere")


def begun(full: FullRun, folder: Path, **values: Any) -> RunFolder:
    """The training's folder, as it is once it has begun."""
    settings = told(full, folder, **values)
    run = RunFolder(folder / "f4")
    run.path.mkdir()
    run.write_settings(settings)
    return run


def test_what_is_done_is_not_done_again(full: FullRun, tmp_path: Path) -> None:
    run = begun(full, tmp_path)
    run.write_json("result.json", {"steps": 115})
    run.write_model({"x": torch.zeros(1)}, {})
    assert prepared(full, asked(workers=2), tmp_path, 4)[1]
    run.model.unlink()
    assert not prepared(full, asked(), tmp_path, 4)[1]


def test_what_has_a_checkpoint_goes_on(full: FullRun, tmp_path: Path) -> None:
    run = begun(full, tmp_path)
    part = Part(tensors={"model/x": torch.zeros(1)})
    checkpoint = Checkpoint(step=23, generation=1, parts=(part,), meta={})
    write_checkpoint(run.checkpoints, checkpoint, keep=1)
    training, is_done = prepared(full, asked(), tmp_path, 4)
    assert (training.arguments, is_done) == (("--resume", str(run.path)), False)


def test_what_has_nothing_to_go_on_from_begins_again(full: FullRun, tmp_path: Path) -> None:
    run = begun(full, tmp_path)
    assert run.settings.exists()
    told(full, tmp_path)
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"epochs": 7}, "another --epochs"),
        ({"lr": 0.5, "epochs": 7}, "another --epochs and another --lr"),
        ({"from_scratch": True, "epochs": 5, "lr": 0.004}, "another --from-scratch"),
    ],
)
def test_a_training_of_something_else(
    full: FullRun, tmp_path: Path, values: dict[str, Any], text: str
) -> None:
    begun(full, tmp_path, lr=0.004)
    with pytest.raises(UsageError, match=f"f4 was trained with {text}. Give another --out"):
        prepared(full, asked(**{"lr": 0.004, **values}), tmp_path, 4)


def test_a_full_network_that_has_changed(full: FullRun, tmp_path: Path) -> None:
    begun(full, tmp_path)
    changed = replace(full, tensors={n: t + 1 for n, t in full.tensors.items()})
    with pytest.raises(UsageError, match="f4 began with other weights"):
        prepared(changed, asked(), tmp_path, 4)


def test_a_folder_of_something_else(full: FullRun, tmp_path: Path) -> None:
    (tmp_path / "f4").mkdir()
    (tmp_path / "f4" / "letters.txt").touch()
    with pytest.raises(UsageError, match="f4 is not empty"):
        prepared(full, asked(), tmp_path, 4)
    assert (tmp_path / "f4" / "letters.txt").exists()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"filters": ()}, "--filters : expected different numbers"),
        ({"filters": (4, 8, 4)}, "--filters 4,8,4: expected different numbers"),
        ({"workers": 0}, "--workers 0: expected a number above 0"),
        ({"epochs": 0}, "--epochs 0: expected a number above 0"),
        ({"lr": float("nan")}, "--lr nan: expected a number above 0"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        asked(**values)


def test_where_everything_goes() -> None:
    run = Path("runs/it")
    assert asked().folder(run) == run / "narrow" / "pool1"
    assert asked(from_scratch=True).folder(run) == run / "narrow" / "pool1-from-scratch"
    assert asked(out=Path("here")).folder(run) == Path("here")

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from convoy.errors import UnknownNameError, UsageError
from convoy.runtime.settings import (
    TrainSettings,
    flag,
    read_config,
    settings_from,
    to_values,
)

ABOVE_ZERO = (
    *("batch_size", "workers", "epochs", "steps", "checkpoint_every", "keep"),
    *("threads_per_worker", "lr", "timeout_s", "lr_gamma", "lr_step_epochs"),
)
FROM_ZERO = ("warmup", "weight_decay", "momentum", "seed")
WHOLE = (
    *("workers", "batch_size", "epochs", "steps", "lr_step_epochs", "warmup", "seed"),
    *("checkpoint_every", "keep", "threads_per_worker"),
)
NUMBERS = ("lr", "momentum", "weight_decay", "lr_gamma", "timeout_s")
TEXTS = (
    *("network", "data", "strategy", "cluster", "optimizer", "lr_schedule", "precision"),
    *("memory_format", "augment", "conv_algorithm"),
)
PATHS = ("profile", "data_dir", "weights", "resume", "out")
SWITCHES = ("rebalance",)


def message(error: type[Exception], *, direct: bool = False, **values: Any) -> str:
    with pytest.raises(error) as caught:
        TrainSettings(**values) if direct else settings_from(values, source="here.toml")
    return str(caught.value)


def test_defaults_are_valid_and_frozen() -> None:
    settings = TrainSettings()
    assert (settings.epochs, settings.steps, settings.workers) == (None, None, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1  # type: ignore[misc]


def test_this_file_knows_every_field() -> None:
    known = {*WHOLE, *NUMBERS, *TEXTS, *PATHS, *SWITCHES, "shares", "strategy_options"}
    assert known == {field.name for field in dataclasses.fields(TrainSettings)}


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -(10**400)])
@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_what_has_to_be_above_zero(name: str, value: float) -> None:
    said = message(UsageError, direct=True, **{name: value})
    assert said == f"{flag(name)} {value}: expected a number above 0"


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf])
@pytest.mark.parametrize("name", FROM_ZERO)
def test_what_may_not_be_below_zero(name: str, value: float) -> None:
    said = message(UsageError, direct=True, **{name: value})
    assert said == f"{flag(name)} {value}: expected 0 or more"


def test_zero_where_zero_makes_sense() -> None:
    settings = TrainSettings(**dict.fromkeys(FROM_ZERO, 0))
    assert all(getattr(settings, name) == 0 for name in FROM_ZERO)


def test_a_whole_number_beyond_floating_point_is_still_one() -> None:
    assert settings_from({"seed": 10**400}, source="flags").seed == 10**400


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("strategy", "averagin", "averaging"),
        ("optimizer", "adamw", "adam"),
        ("lr_schedule", "cosin", "cosine"),
        ("precision", "fp16", "bf16"),
        ("memory_format", "channels_last", "channels-last"),
        ("augment", "flip", "flip-crop"),
    ],
)
def test_a_name_that_is_not_among_the_choices(name: str, value: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        TrainSettings(**{name: value})  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)
    assert re.search(rf"Nearest: .*\b{nearest}\b", str(caught.value))


@pytest.mark.parametrize("value", [True, 2.0, "2", [2], {}])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_not_guessed_at(name: str, value: Any) -> None:
    said = message(UsageError, **{name: value})
    assert said == f"{flag(name)} in here.toml: expected a whole number, got {value!r}"


@pytest.mark.parametrize("value", [True, "0.5", [0.5]])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_not_guessed_at(name: str, value: Any) -> None:
    said = message(UsageError, **{name: value})
    assert said == f"{flag(name)} in here.toml: expected a number, got {value!r}"


@pytest.mark.parametrize("value", [True, 3, ["sgd"]])
@pytest.mark.parametrize("name", TEXTS)
def test_text_is_not_guessed_at(name: str, value: Any) -> None:
    said = message(UsageError, **{name: value})
    assert said == f"{flag(name)} in here.toml: expected text, got {value!r}"


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_text(name: str) -> None:
    assert message(UsageError, **{name: 3}).endswith("expected a path, got 3")
    given = settings_from({name: "~/runs"}, source="flags")
    assert getattr(given, name) == Path("~/runs").expanduser()


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", "no", [True], None])
@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_not_guessed_at(name: str, value: Any) -> None:
    said = message(UsageError, **{name: value})
    assert said == f"{flag(name)} in here.toml: expected true or false, got {value!r}"


@pytest.mark.parametrize("value", [True, False])
def test_a_switch(value: bool) -> None:
    assert settings_from({"rebalance": value}, source="flags").rebalance is value


def test_a_whole_number_will_do_for_a_number() -> None:
    settings = settings_from({"lr": 1, "timeout_s": 5}, source="flags")
    assert (settings.lr, settings.timeout_s) == (1.0, 5.0)
    assert type(settings.lr) is float


def test_none_is_for_what_may_be_left_open() -> None:
    assert settings_from({"lr": None, "workers": None}, source="flags") == TrainSettings()
    assert "--lr-schedule in here.toml: expected text" in message(UsageError, lr_schedule=None)


@pytest.mark.parametrize("key", ["batch_sise", "batch-sise"])
def test_an_unknown_key_is_told_the_nearest(key: str) -> None:
    said = message(UnknownNameError, **{key: 3})
    assert said.startswith("unknown option in here.toml 'batch_sise'. Nearest: batch_size")


def test_hyphens_and_underscores_are_alike() -> None:
    hyphens = settings_from({"batch-size": 8, "lr-schedule": "step"}, source="flags")
    assert hyphens == TrainSettings(batch_size=8, lr_schedule="step")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2,1", (2.0, 1.0)), ("0.5", (0.5,)), ([3, 1.5], (3.0, 1.5)), ((1, 2), (1.0, 2.0))],
)
def test_shares(given: Any, expected: tuple[float, ...]) -> None:
    assert settings_from({"shares": given}, source="flags").shares == expected


@pytest.mark.parametrize(
    "given", ["", "2,,1", "2;1", "a,b", 5, [], [[1]], [True, 1], {"tower": 2}, ["1", None]]
)
def test_shares_that_are_none(given: Any) -> None:
    said = message(UsageError, shares=given)
    assert said.startswith("--shares in here.toml: expected numbers separated by commas, as in 2,1")
    assert said.endswith(f"got {given!r}")


@pytest.mark.parametrize("given", ["2,0", "1,-1", "nan,1", "inf,1"])
def test_shares_out_of_range(given: str) -> None:
    assert message(UsageError, shares=given) == f"--shares {given}: expected numbers above 0"


def test_what_excludes_each_other() -> None:
    assert "--epochs and --steps" in message(UsageError, epochs=1, steps=1)
    assert "--workers is for this machine" in message(UsageError, workers=2, cluster="ray")


@pytest.mark.parametrize("strategy", ["auto", "filter", "hybrid", "pipeline", "downpour"])
def test_a_profile_is_for_what_is_planned_with_it(strategy: str) -> None:
    given = {"strategy": strategy, "profile": "p.json"}
    assert settings_from(given, source="here.toml").profile == Path("p.json")
    assert "without --shares: leave one out" in message(UsageError, **given, shares="1,2")


def test_a_profile_for_what_is_planned_without() -> None:
    said = message(UsageError, strategy="data", profile="p.json")
    assert "--strategy auto or downpour or filter or hybrid or pipeline plans with" in said


def test_strategy_options_may_stand_among_the_others() -> None:
    values = {"lr": 0.1, "average-every": "end", "strategy_options": {"sync-first": 3}}
    settings = settings_from(values, source="flags")
    assert settings == TrainSettings(
        lr=0.1, strategy_options={"average_every": "end", "sync_first": 3}
    )
    assert values["strategy_options"] == {"sync-first": 3}  # theirs stays theirs


@pytest.mark.parametrize("key", ["strategy_options", "strategy-options"])
def test_a_table_of_strategy_options(key: str) -> None:
    settings = settings_from({key: {"wire": "bf16"}}, source="flags")
    assert settings.strategy_options == {"wire": "bf16"}
    assert "--strategy-options in here.toml: expected a table" in message(UsageError, **{key: 3})


def test_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'batch-size = 32\nlr_schedule = "cosine"\nshares = [2, 1]\n'
        "[strategy-options]\naverage-every = 4\n"
    )
    settings = settings_from(read_config(path), source=str(path))
    assert settings == TrainSettings(
        batch_size=32,
        lr_schedule="cosine",
        shares=(2.0, 1.0),
        strategy_options={"average_every": 4},
    )


def test_config_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken, binary = tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text("lr = \n")
    binary.write_bytes(b'network = "\xff"\n')
    with pytest.raises(UsageError, match=r"cannot read --config .*absent\.toml: No such file"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match=r"broken\.toml is not valid TOML: .*line 1"):
        read_config(broken)
    with pytest.raises(UsageError, match=r"binary\.toml is not valid TOML"):
        read_config(binary)


FULL = TrainSettings(
    network="lenet",
    data="folder:/pictures",
    data_dir=Path("/data"),
    strategy="averaging",
    strategy_options={"average_every": 4, "sync_first": 2},
    workers=3,
    shares=(2.0, 1.0, 0.1),
    rebalance=False,
    batch_size=96,
    steps=7,
    optimizer="adam",
    lr=1e-7,
    momentum=0.0,
    weight_decay=5e-4,
    lr_schedule="step",
    lr_step_epochs=2,
    lr_gamma=0.3,
    warmup=3,
    seed=2**62 + 1,
    weights=Path("runs/1/model.safetensors"),
    precision="bf16",
    memory_format="channels-last",
    augment="flip-crop",
    checkpoint_every=5,
    keep=2,
    resume=Path("runs/ä 1"),
    out=Path('runs/"2"'),
    threads_per_worker=4,
    timeout_s=12.5,
)


@pytest.mark.parametrize(
    "settings", [TrainSettings(), FULL, TrainSettings(cluster="ray", epochs=3)]
)
def test_settings_survive_a_file(settings: TrainSettings) -> None:
    text = tomli_w.dumps(to_values(settings))
    assert settings_from(tomllib.loads(text), source="run.toml") == settings

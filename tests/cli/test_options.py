from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from convoy.runtime.settings import TrainSettings, flag
from convoy.strategies import STRATEGIES
from convoy.version import __version__

Convoy = Callable[..., Any]

TRAIN = (
    *("--network", "--data", "--data-dir", "--config"),
    *("--strategy", "--workers", "--cluster", "--shares", "--threads-per-worker"),
    *("--rebalance", "--no-rebalance"),
    *("--batch-size", "--epochs", "--steps", "--optimizer", "--lr", "--momentum"),
    *("--weight-decay", "--lr-schedule", "--warmup", "--augment", "--seed", "--precision"),
    *("--memory-format", "--wire", "--average-every", "--sync-first"),
    *("--checkpoint-every", "--keep", "--resume", "--out", "--json", "--verbose"),
)
"""What people were promised; more is welcome."""

VERBS = {
    "train": TRAIN,
    "evaluate": ("--data", "--data-dir", "--json"),
    "doctor": ("--cluster", "--address", "--out", "--json"),
}


def offered(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def test_the_version(convoy: Convoy) -> None:
    ran = convoy("--version")
    assert (ran.status, ran.out, ran.err) == (0, f"convoy {__version__}\n", "")


@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_lists_the_verbs(convoy: Convoy, asked: str) -> None:
    ran = convoy(asked)
    assert ran.status == 0
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", ran.out)
    assert convoy().status == 2  # no verb is no request


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_the_options(convoy: Convoy, verb: str) -> None:
    ran = convoy(verb, "--help")
    assert (ran.status, ran.err) == (0, "")
    assert set(VERBS[verb]) <= offered(ran.out)


def test_every_setting_has_its_option(convoy: Convoy) -> None:
    settings = {field.name for field in fields(TrainSettings)} - {"strategy_options"}
    settings |= {field.name for s in STRATEGIES.values() for field in fields(s)}  # type: ignore[arg-type]
    assert {flag(name) for name in settings} <= offered(convoy("train", "--help").out)


def test_an_option_reaches_the_settings_as_it_is(
    convoy: Convoy, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("convoy.api.train", lambda **options: told.update(options))
    ran = convoy(
        *("train", "--network", "lenet", "--data", "mnist", "--shares", "2,1"),
        *("--average-every", "4", "--lr", "0.5", "--steps", "3", "--no-rebalance"),
    )
    assert (ran.status, ran.err) == (0, "")
    assert told.pop("observer") is not None
    assert told == {
        "network": "lenet",
        "dataset": "mnist",
        "shares": "2,1",
        "average_every": 4,
        "lr": 0.5,
        "rebalance": False,
        "steps": 3,
        "verbose": False,
    }
    convoy("train", "--average-every", "end")
    assert told["average_every"] == "end"

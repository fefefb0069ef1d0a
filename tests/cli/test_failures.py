"""What people get who ask for what cannot be: an exit status, and a sentence on stderr."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from convoy.errors import CrewError

Convoy = Callable[..., Any]


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["", "json"])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--network", "lenet6", "unknown network 'lenet6'. Nearest: lenet"),
        ("--data", "digit", "unknown data set 'digit'. Nearest: digits"),
        ("--strategy", "averageing", "unknown strategy 'averageing'. Nearest: averaging"),
        ("--optimizer", "adamx", "unknown optimizer 'adamx'. Nearest: adamax, adam"),
        ("--precision", "fp16", "unknown precision 'fp16'. Nearest: "),
        ("--wire", "fp8", "'fp8'"),
        ("--average-every", "often", "expected 1 or more steps, or 'end'"),
        ("--average-every", "0", "--average-every"),
        ("--sync-first", "3", "--sync-first belongs to --strategy averaging"),
        ("--batch-size", "0", "--batch-size 0: expected a number above 0"),
        ("--batch-size", "100000", "batch size 100000 does not fit a training set of"),
        ("--batch-size", "many", "Invalid value for '--batch-size'"),
        ("--shares", "2;1", "--shares in the options: expected numbers separated by commas"),
        ("--config", "absent.toml", "cannot read --config absent.toml: No such file"),
        ("--resume", "absent", "absent is not a run folder: it has no run.toml"),
        ("--batchsize", "3", "No such option: --batchsize"),
    ],
)
def test_wrong_usage_of_train(
    convoy: Convoy, tmp_path: Path, option: str, value: str, said: str, json: list[str]
) -> None:
    strategy = ["--strategy", "averaging"] if option == "--average-every" else []
    ran = convoy("train", option, value, *strategy, *json)
    assert ran.status == 2
    assert ran.out == ""
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_contradictions(convoy: Convoy) -> None:
    ran = convoy("train", "--epochs", "1", "--steps", "1")
    assert (ran.status, "--epochs and --steps" in ran.err) == (2, True)
    ran = convoy("train", "--workers", "2", "--cluster", "ray")
    assert (ran.status, "--workers is for this machine alone" in ran.err) == (2, True)


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["", "json"])
def test_evaluating_what_is_no_run(convoy: Convoy, json: list[str]) -> None:
    ran = convoy("evaluate", "absent", *json)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: absent is not a run folder")


def raises(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*args: object, **options: object) -> NoReturn:
        raise error

    return fail


def test_what_fails_though_it_was_rightly_asked(
    convoy: Convoy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.api.train", raises(CrewError("every rank is lost")))
    ran = convoy("train", "--json")
    assert (ran.status, ran.out, ran.err) == (1, "", "error: every rank is lost\n")


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_an_interruption(convoy: Convoy, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(f"convoy.api.{verb}", raises(KeyboardInterrupt()))
    ran = convoy(verb, *(["run"] if verb == "evaluate" else []))
    assert (ran.status, ran.out) == (130, "")


def test_as_a_program(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "convoy", "train", "--network", "lenet6", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: unknown network 'lenet6'. Nearest: lenet")
    assert list(tmp_path.iterdir()) == []

"""Which lab a command enters, if any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from convoy.cli import entering
from convoy.cluster import load_cluster, to_toml
from convoy.errors import LabError

CLUSTER = '[[machine]]\nname = "tower"\n\n[[machine]]\nname = "old"\ncpus = 0.5\n'


class EnteredError(Exception):
    """What takes the place of becoming another program."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster file whose lab is up."""
    from convoy.lab import state

    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER)
    labs = tmp_path / "labs"
    monkeypatch.setattr(state, "FOLDER", labs)
    monkeypatch.setattr(entering, "LABS", labs)
    monkeypatch.delenv(entering.IN_A_LAB, raising=False)
    up = state.LabState(name="mine", cluster=to_toml(load_cluster(path)), ready=True)
    up.addresses = {"tower": "10.77.0.1", "old": "10.77.0.2"}
    up.cgroups = {"tower": "/groups/0", "old": "/groups/1"}
    up.namespaces = {"tower": "space-0", "old": "space-1"}
    up.save()

    def become(program: str, command: list[str], environment: dict[str, str]) -> None:
        raise EnteredError(command, environment)

    monkeypatch.setattr(os, "execvpe", become)
    monkeypatch.setattr("convoy.lab.check_possible", lambda: None)
    monkeypatch.setattr("sys.argv", ["convoy", "train", "--steps", "3"])
    return path


def test_the_lab_of_the_file(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EnteredError) as entered:
        entering.enter_lab(str(cluster))
    command, environment = entered.value.args
    assert command[-5:] == ["-m", "convoy", "train", "--steps", "3"]
    assert {"/groups/0", "space-0"} <= set(command)
    assert environment[entering.IN_A_LAB] == "mine"
    assert capsys.readouterr().err == "running in the lab mine, on tower\n"


def test_who_is_in_a_lab_stays_there(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(entering.IN_A_LAB, "mine")
    entering.enter_lab(str(cluster))


@pytest.mark.parametrize("named", [None, "ray", "ray://10.0.0.1:10001"])
def test_what_is_no_file(cluster: Path, named: str | None) -> None:
    entering.enter_lab(named)


def test_who_is_not_root_is_told(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(entering, "LABS", cluster.parent / "labs")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        entering.enter_lab(str(cluster))


def test_what_others_have_left_behind_is_no_matter(cluster: Path) -> None:
    """A state that cannot be read, or is of another program."""
    (cluster.parent / "labs" / "half.json").write_text("{")
    (cluster.parent / "labs" / "none.json").write_text('{"ready": false}')
    with pytest.raises(EnteredError):
        entering.enter_lab(str(cluster))


def test_another_cluster_than_the_labs(cluster: Path) -> None:
    cluster.write_text(CLUSTER.replace("0.5", "0.25"))
    entering.enter_lab(str(cluster))


def test_a_lab_that_is_not_ready(cluster: Path) -> None:
    from convoy.lab import state

    half: Any = state.load("mine")
    half.ready = False
    half.save()
    entering.enter_lab(str(cluster))


def test_what_a_config_file_and_a_resumed_run_name(tmp_path: Path) -> None:
    config, run = tmp_path / "config.toml", tmp_path / "run"
    config.write_text('cluster = "a.toml"\n')
    run.mkdir()
    (run / "run.toml").write_text('cluster = "b.toml"\n')
    named = entering.cluster_named
    assert named("c.toml", config, run) == "c.toml"
    assert named(None, config, run) == "a.toml"
    assert named(None, None, run) == "b.toml"
    assert named(None, None, None) is None

from __future__ import annotations

import errno
import json
import os
import platform
import stat
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from convoy.errors import ConvoyError, UnknownNameError, UsageError
from convoy.runtime.run_folder import (
    RunFolder,
    create_run_folder,
    host_facts,
    open_run_folder,
    read_settings,
    write_bytes,
    write_text,
)
from convoy.runtime.settings import TrainSettings
from convoy.version import __version__


def test_a_folder_that_is_named_is_made(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "down"
    assert create_run_folder(TrainSettings(out=out)).path == out
    assert list(out.iterdir()) == []
    assert create_run_folder(TrainSettings(out=out)).path == out  # an empty one will do


def test_a_folder_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=rf"--out {tmp_path} is not empty.*--resume {tmp_path}"):
        create_run_folder(TrainSettings(out=tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=f"cannot make the run folder {out}: "):
            create_run_folder(TrainSettings(out=out))


def test_a_read_only_disk(mount_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    disk = mount_disk(size_kib=64, options="ro")
    with pytest.raises(UsageError, match=f"folder {disk}/run: Read-only file system"):
        create_run_folder(TrainSettings(out=disk / "run"))
    monkeypatch.chdir(disk)
    with pytest.raises(UsageError, match="folder runs/: Read-only file system"):
        create_run_folder(TrainSettings())


def test_two_runs_in_one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")
    settings = TrainSettings(network="my.nets:make", data="folder:/a b")
    made = [create_run_folder(settings).path for _ in range(3)]
    name = "my.nets-make-folder--a-b-20260102-030405"
    assert made == [Path("runs") / name, Path("runs") / f"{name}-2", Path("runs") / f"{name}-3"]
    assert all(path.is_dir() for path in made)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=f"{path} is not a run folder: it has no run.toml"):
            open_run_folder(path)


def test_settings_are_kept(tmp_path: Path) -> None:
    settings = TrainSettings(out=tmp_path, shares=(2.0, 1.0), strategy_options={"wire": "bf16"})
    folder = create_run_folder(settings)
    folder.write_settings(settings)
    assert read_settings(open_run_folder(tmp_path)) == settings


def test_settings_that_cannot_be_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for content in (b"lr = ", b"network = '\xff'"):
        folder.settings.write_bytes(content)
        with pytest.raises(UsageError, match=r"run\.toml cannot be read"):
            read_settings(folder)
    folder.settings.write_text("learning = 1")
    with pytest.raises(UnknownNameError, match=rf"unknown option in {folder.settings}"):
        read_settings(folder)


def test_json_and_model(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("host.json", {"a": [1, None], "path": Path("x")})
    assert json.loads((tmp_path / "host.json").read_text()) == {"a": [1, None], "path": "x"}
    folder.write_model({"w": torch.arange(3)}, {"network": "lenet"})
    with safe_open(folder.model, framework="pt") as file:
        assert file.metadata() == {"network": "lenet"}
        assert file.get_tensor("w").tolist() == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host.json", "model.safetensors"]


def test_a_file_is_as_any_other_program_makes_it(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "ä")
    (tmp_path / "theirs").write_text("ä")
    assert (tmp_path / "ours").read_bytes() == "ä".encode()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "theirs")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"]
)
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    path = tmp_path / "result.json"
    write_bytes(path, b"old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(ConvoyError, match=r"cannot write .*result\.json: No space left"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_disk_that_is_really_full(mount_disk: Callable[..., Path]) -> None:
    folder = RunFolder(mount_disk(size_kib=32))
    folder.write_model({"w": torch.zeros(100)}, {})
    old = folder.model.read_bytes()
    with pytest.raises(ConvoyError, match=r"model\.safetensors: No space left.*--resume"):
        folder.write_model({"w": torch.zeros(20_000)}, {})
    assert folder.model.read_bytes() == old
    assert list(folder.path.iterdir()) == [folder.model]


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ConvoyError, match=r"cannot write .*: No such file or directory"):
        write_text(tmp_path / "gone" / "host.json", "{}")


def test_host_facts() -> None:
    facts = host_facts(TrainSettings(seed=5))
    assert facts["seed"] == 5
    assert facts["cores"] == os.cpu_count()
    assert facts["host"] == platform.node()
    assert facts["gpus"] == [
        torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
    ]
    versions = facts["versions"]
    assert versions["convoy"] == __version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"ray", "numpy", "safetensors"} <= versions.keys()
    tomllib.loads(f"facts = {json.dumps(versions['torch'])}")
    assert json.loads(json.dumps(facts)) == facts

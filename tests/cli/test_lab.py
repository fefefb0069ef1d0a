from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyroute2", reason="the lab's optional package is not installed")
Convoy = Callable[..., Any]
ROOT = Path("/sys/fs/cgroup")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0
    or not sys.platform.startswith("linux")
    or not os.access(ROOT / "cpu" if (ROOT / "cpu").is_dir() else ROOT, os.W_OK),
    reason="needs root on Linux, and control groups that can be written",
)
NAME = f"cli{os.getpid()}"


@needs_root
def test_up_exec_and_down(convoy: Convoy, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text('[[machine]]\nname = "a"\n[[machine]]\nname = "b"\n')
    ran = convoy("lab", "up", "two.toml", "--name", NAME, "--no-ray", "--json")
    try:
        assert ran.status == 0, ran.err
        machines = json.loads(ran.out)["machines"]
        assert [(m["name"], m["address"]) for m in machines] == [
            ("a", "10.77.0.1"),
            ("b", "10.77.0.2"),
        ]
        test = "import socket, sys; sys.exit(7 * (socket.gethostbyname('b') == '10.77.0.2'))"
        ran = convoy("lab", "exec", "--name", NAME, "--", sys.executable, "-c", test)
        assert ran.status == 7
        assert "10.77.0.2" in convoy("lab", "status", "--name", NAME).out
        for change in (["--bandwidth", "5 Mbit/s"], ["--cut"], ["--mend"]):
            assert convoy("lab", "link", "a", "b", *change, "--name", NAME).status == 0
        for change in (["--cpus", "0.5"], ["--freeze"], ["--thaw"], ["--kill"]):
            assert convoy("lab", "machine", "b", *change, "--name", NAME).status == 0
    finally:
        ran = convoy("lab", "down", "--name", NAME)
    assert ran.status == 0
    assert convoy("lab", "status", "--name", NAME).status == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["status", "--name", "absent"], 1, "no lab called 'absent' is up"),
        (["link", "a", "b"], 2, "one of --bandwidth, --cut and --mend"),
        (["link", "a", "b", "--cut", "--mend"], 2, "one of --bandwidth, --cut and --mend"),
        (["machine", "a"], 2, "one of --cpus, --freeze, --thaw and --kill"),
    ],
)
def test_what_will_not_do(convoy: Convoy, arguments: list[str], status: int, said: str) -> None:
    ran = convoy("lab", *arguments)
    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err


@needs_root
def test_a_cluster_file_that_is_not_there(convoy: Convoy) -> None:
    ran = convoy("lab", "up", "absent.toml")
    assert (ran.status, ran.out) == (2, "")
    assert "absent.toml: no such file" in ran.err


def test_without_root(convoy: Convoy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ran = convoy("lab", "up", "absent.toml")
    assert (ran.status, ran.out) == (1, "")
    assert "the lab needs root" in ran.err

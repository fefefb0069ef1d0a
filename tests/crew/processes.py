"""Processes that tests start, watched with all their descendants and ended by their ids."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
KIND = {"RAY_worker_niceness": "0"}
"""Ray's workers are at 15 by default, and starve beside whatever else a machine does."""
POLL_S = 0.05
PATIENCE_S = 150.0
"""After this what is waited for has failed. Where all is well nothing comes near it, however busy
the machine is: how long things take is measured by benchmarks."""
END_S = 30.0
"""How long descendants may take to end once their ancestor has."""


class Program:
    """A Python program in a folder of its own, in a session of its own."""

    def __init__(self, arguments: list[str], folder: Path, env: Mapping[str, str] | None = None):
        self.folder = folder
        self._err = folder / f"stderr-{time.monotonic_ns()}"
        self._out = self._err.with_name(self._err.name.replace("stderr", "stdout"))
        self.family: set[psutil.Process] = set()
        shutil.copy(HERE / "ours.py", folder)
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=os.environ | KIND | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """What it has complained of so far."""
        return self._err.read_text()

    def members(self) -> list[psutil.Process]:
        """The ranks among its descendants."""
        return members_of(self._look())

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for `condition`; fails if the program ends first."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            self._look()
            assert self.process.poll() is None, f"ended early\n{self.stdout}\n{self.stderr}"
            assert time.monotonic() < deadline, f"waited in vain\n{self.stdout}\n{self.stderr}"
            time.sleep(POLL_S)

    def wait(self) -> int:
        """Its exit status; whatever it started must be gone soon after it."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            self._look()
            assert time.monotonic() < deadline, f"took too long\n{self.stdout}\n{self.stderr}"
            time.sleep(POLL_S)
        gone_by = time.monotonic() + END_S
        while left := alive(self.family):
            assert time.monotonic() < gone_by, f"left behind: {left}"
            time.sleep(POLL_S)
        return self.process.returncode

    def end(self) -> None:
        """Kill what is left of it."""
        self._look()
        self.process.kill()
        self.process.wait()
        for process in alive(self.family):
            process.kill()

    def _look(self) -> set[psutil.Process]:
        found = descendants(self.process.pid)
        self.family |= found
        return found


class Harbour:
    """Runs jobs one after another in one Ray, which spares each test the start of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hurry = folder / "hurry"
        """While it is there, `ours:slow` is not slow."""
        self.hurry.touch()
        self._process: subprocess.Popen[str] | None = None
        self._family: set[psutil.Process] = set()

    def train(self, **job: Any) -> dict[str, Any]:
        """Run a job with `convoy.train`; see harbour.py."""
        return self._ask(job)

    def command(self, *arguments: str) -> dict[str, Any]:
        """Run one command line."""
        return self._ask({"argv": arguments})

    def whole_way(self, folder: Path) -> dict[str, Any]:
        """Measure, plan, train and compare; see whole_way.py."""
        return self._ask({"whole_way": folder})

    def measure_one_that_dies(self, folder: Path) -> dict[str, Any]:
        """Measure two ranks, one of which is killed; see harbour.py."""
        return self._ask({"dies": folder})

    def close(self) -> None:
        """End it, with all of its Ray."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._family |= descendants(process.pid)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        for child in alive(self._family):
            child.kill()

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job, default=str) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if ready.select(PATIENCE_S) else ""
        if not line:
            self._family |= descendants(process.pid)
            process.poll()
            process.kill()  # the next job gets a new one
            self.close()
            status = process.returncode
            raise AssertionError(f"no answer within {PATIENCE_S} s: {status}\n{self._complaints()}")
        answer: dict[str, Any] = json.loads(line)
        gone_by = time.monotonic() + END_S
        while len(left := members_of(descendants(process.pid))) > answer["idle"]:
            assert time.monotonic() < gone_by, f"ranks left behind: {left}"
            time.sleep(POLL_S)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            with (self.folder / "complaints").open("ab") as complaints:
                self._process = subprocess.Popen(
                    [sys.executable, str(HERE / "harbour.py")],
                    cwd=self.folder,
                    env=os.environ | KIND | {"HURRY": str(self.hurry)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                    text=True,
                )
        return self._process

    def _complaints(self) -> str:
        return (self.folder / "complaints").read_text()[-6000:]


def descendants(pid: int) -> set[psutil.Process]:
    """All processes below `pid`."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def members_of(processes: set[psutil.Process]) -> list[psutil.Process]:
    """The ranks among `processes`, by id."""
    found = []
    for process in processes:
        try:
            if process.name().startswith("ray::Member"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.pid)


def lives(pid: int) -> bool:
    """Whether there is such a process; a zombie does not live."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def alive(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those that run still; a zombie does not."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found

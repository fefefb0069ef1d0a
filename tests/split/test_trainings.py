"""Trainings as processes: how far they are, how they fail, and that none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from convoy.runtime.run_folder import RunFolder
from convoy.split import trainings
from convoy.split.trainings import Progress, Training, progress_of, run_all

PATIENCE_S = 60.0


def training(path: Path, *arguments: str) -> Training:
    return Training(
        label="it", folder=RunFolder(path / "f4"), arguments=arguments, log=path / "f4.log"
    )


def test_how_far_it_is(tmp_path: Path) -> None:
    it = training(tmp_path)
    nothing = Progress(label="it", step=0, steps=None, accuracy=None, ended=False)
    assert progress_of(it, ended=False) == nothing
    it.folder.path.mkdir()
    it.folder.write_json("plan.json", {"steps": 30})
    it.folder.steps.write_text('{"step": 0}\n{"step": 1}\n{"ste')  # still being written
    it.folder.evaluations.write_text('{"step": 1, "test_accuracy": 0.5}\n')
    assert progress_of(it, ended=False) == Progress(label="it", step=2, steps=30, accuracy=0.5)


def test_a_failure_in_its_own_words(tmp_path: Path) -> None:
    it = training(tmp_path, "--config", str(tmp_path / "absent.toml"))
    seen: list[Progress] = []
    ((ended, failure),) = run_all([it], seen.append)
    assert ended is it
    assert failure is not None
    assert failure.startswith("it ended with status 2 (error: cannot read --config")
    assert [progress.ended for progress in seen][-1]


def test_at_most_so_many_at_a_time_and_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops looking ends them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(training: Training, place: int) -> subprocess.Popen[bytes]:
        assert place in (0, 1)
        started.append(subprocess.Popen(["sleep", "600" if started else "0"]))
        return started[-1]

    monkeypatch.setattr(trainings, "_start", start)
    monkeypatch.setattr(trainings, "POLL_S", 0.01)
    running = run_all([training(tmp_path) for _ in range(5)], lambda progress: None, at_once=2)
    assert next(running)[1] is None
    assert len(started) == 2
    running.close()
    assert [process.poll() for process in started] == [0, -signal.SIGTERM]


def test_a_child_whose_parent_was_never_there() -> None:
    command = [sys.executable, "-m", "convoy.split.fated", "1", "--version"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Even one that is killed and can tell nobody."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from convoy.runtime.run_folder import RunFolder\n"
        "from convoy.split.trainings import Training, run_all\n"
        "path = Path(sys.argv[1])\n"
        "it = Training(label='it', folder=RunFolder(path / 'f4'), log=path / 'f4.log',\n"
        "    arguments=('--epochs', '100000', '--strategy', 'single', '--out', str(path / 'f4')))\n"
        "list(run_all([it], lambda progress: None))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    try:
        _until(lambda: (tmp_path / "f4" / "steps.jsonl").exists())
        (child,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(PATIENCE_S)
        _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    finally:
        parent.kill()
        parent.wait()


def _until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)

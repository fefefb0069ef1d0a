"""Trainings as processes of their own, some at a time, which end when this one does.

Each is `convoy train` as the only rank of a torchrun, which needs no Ray.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convoy.runtime.run_folder import RunFolder

POLL_S = 0.5
END_S = 10.0
"""How long a training that is told to end may take to."""
TOLD = 4096
"""Bytes at the end of a log or record that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training to be done."""

    label: str
    folder: RunFolder
    arguments: tuple[str, ...]
    """Of `convoy train`."""
    log: Path
    """Where everything goes that it prints."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training is."""

    label: str
    step: int
    """Steps done."""
    steps: int | None
    """In all; None until that is known."""
    accuracy: float | None
    """On the test set when it was last judged."""
    ended: bool = False


Watch = Callable[[Progress], None]


def run_all(
    trainings: Sequence[Training], watch: Watch, *, at_once: int = 1
) -> Iterator[tuple[Training, str | None]]:
    """Do the trainings; yields each as it ends, with what it said if it failed.

    Whatever ends this generator ends what is being trained.
    """
    waiting, running = deque(trainings), dict[int, tuple[Training, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            for place in range(at_once):
                if waiting and place not in running:
                    training = waiting.popleft()
                    running[place] = (training, _start(training, place))
            for place, (training, process) in list(running.items()):
                status = process.poll()
                watch(progress_of(training, ended=status is not None))
                if status is not None:
                    del running[place]
                    yield training, _failure(training, status)
            time.sleep(POLL_S if running else 0)
    finally:
        _end([process for _, process in running.values()])


def _start(training: Training, place: int) -> subprocess.Popen[bytes]:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    alone["LOCAL_RANK"] = str(place % max(1, torch.cuda.device_count()))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")}
    command = [sys.executable, "-m", "convoy.split.fated", str(os.getpid()), "train"]
    with training.log.open("ab") as log:
        return subprocess.Popen(
            [*command, *training.arguments],
            env=inherited | alone,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(training: Training, status: int) -> str | None:
    if status == 0:
        return None
    lines = _tail(training.log).decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    return f"{training.label} ended with status {status} ({said[-1] if said else 'no word'})"


def progress_of(training: Training, *, ended: bool) -> Progress:
    """How far it is, by the files in its folder."""
    folder = training.folder
    last, judged = _last_line(folder.steps), _last_line(folder.evaluations)
    try:
        steps = int(json.loads((folder.path / "plan.json").read_bytes())["steps"])
    except (OSError, ValueError, KeyError):
        steps = None
    return Progress(
        label=training.label,
        step=last.get("step", -1) + 1,
        steps=steps,
        accuracy=judged.get("test_accuracy"),
        ended=ended,
    )


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON lines that is being written; {} if there is none."""
    for line in reversed(_tail(path).split(b"\n")[:-1]):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        return row if isinstance(row, dict) else {}
    return {}


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TOLD))
            return file.read()
    except OSError:
        return b""

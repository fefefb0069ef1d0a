"""Processes for ranks. One process imports torch, which takes seconds, and forks the others.

tests ──pipe── nursery ──fork─▶ worker, worker, worker
  └──────────────pipe─────────────┴───────┴───────┘
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

import psutil

TIMEOUT_S = 60.0
_SCRIPT = Path(__file__).with_name("worker.py")


class Member:
    """One worker, seen from the tests."""

    def __init__(self, nursery: Nursery) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self.pid = nursery.fork(theirs.fileno())
        self._backlog: list[tuple[str, Any]] = []
        self.alive = True

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Call a method of the worker and return what it returns."""
        self._pipe.send_bytes(pickle.dumps((verb, arguments)))
        return self.expect("reply")

    def expect(self, kind: str) -> Any:
        """The next message of this kind; others wait for their turn."""
        for at, message in enumerate(self._backlog):
            if message[0] == kind:
                return self._backlog.pop(at)[1]
        deadline = time.monotonic() + TIMEOUT_S
        while self._pipe.poll(max(0.0, deadline - time.monotonic())):
            message = pickle.loads(self._pipe.recv_bytes())
            if message[0] == "error":
                raise AssertionError(f"process {self.pid} failed:\n{message[1]}")
            if message[0] == kind:
                return message[1]
            self._backlog.append(message)
        raise TimeoutError(f"process {self.pid} sent no {kind!r} for {TIMEOUT_S:.0f} s")

    def kill(self) -> None:
        """End the process as a power cut would."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """Let the process end, or make it."""
        self.alive = False
        self._pipe.close()
        end_process(self.pid)


class Nursery:
    """The process that workers are forked from."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        # Threads of a BLAS or OpenMP pool would not live through a fork.
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(_SCRIPT), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | one_thread | {"GLOO_SOCKET_IFNAME": "lo"},
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def fork(self, pipe: int) -> int:
        """Start a worker at that end of a pipe; returns its process id."""
        send_handle(self._pipe, pipe, self.pid)
        if not self._pipe.poll(TIMEOUT_S):
            raise TimeoutError(f"process {self.pid} did not fork for {TIMEOUT_S:.0f} s")
        return int(self._pipe.recv_bytes())

    def end(self) -> None:
        """Let the process end, or make it."""
        self._pipe.close()
        end_process(self.pid)
        self._process.wait(timeout=10)


def end_process(pid: int) -> None:
    """Wait for a process that should be ending; kill it if it does not."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return
        process.wait(timeout=10)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        process.wait(timeout=10)

"""A process that stands for one rank and does what `harness.py` tells it over a pipe.

    tests                          worker: main thread         worker: training thread
      ask(verb, ...)  ───────────▶ calls the method `verb`
                      ◀─────────── ("reply", what it returns)
      ask("train")    ───────────▶ starts ────────────────────▶ Trainee.train
                      ◀──────────────────────────────────────── ("halted", None), if told to halt
      ask("go_on")    ───────────▶ wakes it ──────────────────▶
                      ◀──────────────────────────────────────── ("report", how it ended)

Run as a script, with the number of its end of a pipe, this is the nursery: for each file
descriptor that comes through that pipe it forks a worker that serves the pipe it belongs to.
Nursery and workers end when the other ends of their pipes close.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

import small_networks  # beside this script
import torch
import torch.distributed as dist

from convoy import state
from convoy.runtime.formation import Formation, Job, Part
from convoy.runtime.gate import Gate
from convoy.runtime.training import Trainee


class Worker:
    """One rank: its trainee, gate and store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._going_on = threading.Event()
        self._gate = Gate()
        self._training = threading.Thread()
        self._store: dist.Store | None = None
        self._trainee: Trainee | None = None

    def serve(self) -> None:
        """Answer until the other end closes."""
        while True:
            try:
                verb, arguments = pickle.loads(self._connection.recv_bytes())
            except (EOFError, ConnectionResetError):
                return
            try:
                reply = getattr(self, verb)(**arguments)
            except Exception:
                self._send("error", traceback.format_exc())
            else:
                self._send("reply", reply)

    def build(self, job: Job) -> None:
        self._trainee = Trainee(job, torch.device("cpu"), num_threads=1)

    def open_store(self) -> int:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def train(
        self,
        formation: Formation,
        port: int | None,
        halt: tuple[str, int] | None,
        stop_before: int | None,
    ) -> None:
        assert self._trainee is not None
        if self._training.ident is not None:
            self._training.join()
        if port is not None:
            timeout = timedelta(seconds=self._trainee.job.settings.timeout_s)
            self._store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
        self._gate.reset(formation.first_step)
        if stop_before is not None:
            self._gate.release(stop_before, "regroup")
        self._going_on.clear()
        self._training = threading.Thread(target=self._train, args=(formation, halt), daemon=True)
        self._training.start()

    def hold(self) -> int:
        return self._gate.hold()

    def release(self, stop_before: int, reason: str) -> None:
        self._gate.release(stop_before, reason)

    def go_on(self) -> None:
        self._going_on.set()

    def _train(self, formation: Formation, halt: tuple[str, int] | None) -> None:
        assert self._trainee is not None
        notes = Notes(halt, self._halt)
        try:
            outcome = self._trainee.train(formation, self._gate, notes, self._store)
        except Exception:
            self._send("error", traceback.format_exc())
            return
        finally:
            small_networks.on_pass = None
        ended_with = state.copy_of(state.pack(self._trainee.model, self._trainee.optimizer))
        report = {"rank": formation.rank, "outcome": outcome, "state": ended_with}
        report |= {"records": notes.records, "checkpoints": notes.checkpoints}
        self._send("report", report | {"evaluations": notes.evaluations})

    def _halt(self) -> None:
        self._send("halted", None)
        self._going_on.wait()

    def _send(self, kind: str, value: Any) -> None:
        # Plain pickle: what a Connection uses would share tensors' memory between processes.
        with self._sending:
            self._connection.send_bytes(pickle.dumps((kind, value)))


class Notes:
    """A sink that keeps everything, and halts where it is told to."""

    def __init__(self, halt: tuple[str, int] | None, on_halt: Callable[[], None]) -> None:
        self._halt, self._on_halt = halt, on_halt
        self.records: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.checkpoints: list[tuple[int, Part, bool]] = []

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self._halt is None:
            return
        place, step = self._halt
        if place == "record" and step == record["step"]:
            self._on_halt()
        elif place != "record" and step == record["step"] + 1:
            small_networks.on_pass = self._trip

    def layout(self, name: str) -> None:
        """Told beforehand."""

    def convolutions(self, rank: int, algorithms: dict[str, str]) -> None:
        """Torch's own."""

    def evaluation(self, sums: dict[str, Any]) -> None:
        self.evaluations.append(sums)

    def checkpoint(self, step: int, generation: int, part: Part, *, rank: int, whole: bool) -> None:
        del generation, rank
        self.checkpoints.append((step, part, whole))

    def _trip(self, place: str) -> None:
        assert self._halt is not None
        if place == self._halt[0]:
            small_networks.on_pass = None
            self._on_halt()


def nurse(pipe: Connection) -> None:
    """Fork workers until `pipe` closes; returns in each of them, and at last in the nursery."""
    importlib.import_module("torch._dynamo")  # what wrapping a network would import, each time
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    while True:
        try:
            handle = recv_handle(pipe)
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            pipe.close()
            Worker(Connection(handle)).serve()
            return
        os.close(handle)
        pipe.send_bytes(b"%d" % pid)


if __name__ == "__main__":
    warnings.simplefilter("error")
    nurse(Connection(int(sys.argv[1])))
    os._exit(0)  # a training thread may still wait for a peer

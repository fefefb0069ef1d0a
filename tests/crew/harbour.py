"""Runs crew after crew in one Ray: a job per line on stdin, its account per line on stdout.

Started by the tests. What a job asks for happens while it trains, as a step is reported.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ours
import psutil
import ray
import torch
from torch import nn
from torch.utils.data import TensorDataset
from whole_way import whole_way

import convoy
from convoy.api import planning
from convoy.cli import main
from convoy.datasets import open_dataset
from convoy.errors import ConvoyError
from convoy.runtime import comparing, run
from convoy.runtime.observer import Level, LogObserver
from convoy.runtime.placement import Place
from convoy.runtime.pool import Pool

SERVERS = {"kill shard": "ray::Shard", "kill coordinator": "ray::Coordinator"}
"""By deed: which of Ray's processes it is done to."""


class Idle(Pool):
    """Ranks that came through a job unharmed are there for the next: starting one takes seconds."""

    def take(self, place: Place, num_threads: int) -> Any:
        """As ever; where a new one is needed, idle ones keep no cores from it."""
        if not self._idle[place.index, num_threads if place.shared else 0]:
            self.end()
        return super().take(place, num_threads)

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))


IDLE = Idle()


@contextmanager
def idle() -> Iterator[Pool]:
    """In place of a pool that ends with the job."""
    yield IDLE


class Mine(nn.Module):
    """A network that only this script knows; `fails` on the rank that has 40 samples."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.hidden = nn.Linear(64, 16)
        self.output = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails and self.training and len(x) == 40:
            return self.output(broken_helper(x))
        logits: torch.Tensor = self.output(torch.relu(self.hidden(x.flatten(1))))
        return logits


def broken_helper(x: torch.Tensor) -> torch.Tensor:
    """What a user gets wrong."""
    return x.view(7, -1)


def tensors() -> tuple[TensorDataset, TensorDataset]:
    """The digits as plain torch data sets."""
    digits = open_dataset("digits")
    train, test = (s.batch(torch.arange(len(s))) for s in (digits.train, digits.test))
    return TensorDataset(*train), TensorDataset(*test)


@dataclass(kw_only=True)
class Watch:
    """Notes what a run says, and does `deed` once the step `at` is done."""

    at: int | None
    deed: str | None
    folder: Path
    """Where process ids are, by share."""
    shares: list[int]
    """Whom it is done to."""
    then: list[int]
    """Who is killed while the others form anew."""
    then_after: str
    """The word in a message that says so."""
    then_hangs: bool
    """They are stopped, and not killed."""
    hurry: Path
    hurry_after: str
    """The word in a message after which a slow run need not be slow any more."""
    said: list[tuple[str, str]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    def planned(self, plan: Any) -> None:
        """Nothing."""

    def stepped(self, step: Any, num_steps: int) -> None:
        """The deed."""
        if self.at is None or step.step < self.at:
            return
        self.at = None
        if self.deed == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            return
        if self.deed in SERVERS:
            children = psutil.Process().children(recursive=True)
            next(c for c in children if c.name().startswith(SERVERS[self.deed])).kill()
            return
        if self.deed == "kill and interrupt":
            self.hit(self.shares, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGINT)
            return
        blows = {"kill": [signal.SIGSTOP, signal.SIGKILL], "stop": [signal.SIGSTOP]}
        for blow in blows[str(self.deed)]:  # none lives to see another's death
            self.hit(self.shares, blow)

    def evaluated(self, step: int, accuracy: float, loss: float) -> None:
        """Nothing."""

    def say(self, text: str, level: str = "info") -> None:
        """Note it; what is said of a death comes before the others form anew."""
        self.said.append((level, text))
        if self.then_after in text and self.then:
            self.hit(self.then, signal.SIGSTOP)
            if not self.then_hangs:
                self.hit(self.then, signal.SIGKILL)
            self.then = []
        if self.hurry_after and self.hurry_after in text:
            self.hurry.touch()

    def hit(self, shares: list[int], kind: signal.Signals) -> None:
        """Send `kind` to the processes that had these shares of the first batches."""
        for share in shares:
            self.pids.append(int((self.folder / str(share)).read_text()))
            psutil.Process(self.pids[-1]).send_signal(kind)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job with `convoy.train`."""
    folder = Path(job["folder"])
    watch = Watch(
        at=job.get("at"),
        deed=job.get("deed"),
        folder=folder,
        shares=job.get("to", []),
        then=job.get("then", []),
        then_after=job.get("then_after", "died"),
        then_hangs=job.get("then_hangs", False),
        hurry=folder / "hurry",
        hurry_after=job.get("hurry_after", ""),
    )
    things = {
        "class": Mine,
        "instance": Mine(),
        "failing": Mine(fails=True),
        "tensors": tensors,
        "two layers": ours.TwoLayers,
        "slow": lambda: ours.paced(watch.hurry, folder),
        "dragging": lambda: ours.dragging(watch.hurry, folder),
        "crawling": lambda: ours.crawling(watch.hurry),
    }
    network, data = job.get("network"), job.get("data")
    network = things.get(network, network)
    dataset = things[data]() if data in ("tensors", "slow", "dragging", "crawling") else data
    answer: dict[str, Any] = {"result": None, "error": None}
    if job.get("deed") in SERVERS:
        IDLE.end()  # or it might hit one that is left of another run, and idle
    try:
        result = convoy.train(network, dataset, observer=watch, **job["options"])
        assert result is not None
        answer["result"] = result.to_dict()
    except (Exception, KeyboardInterrupt) as error:
        answer["error"] = [type(error).__name__, str(error)]
        traceback.print_exc()
    if answer["error"]:  # somebody may not have come to rest
        IDLE.end()
    return answer | {"said": watch.said, "pids": watch.pids}


def measure_one_that_dies(folder: Path) -> dict[str, Any]:
    """Measure two ranks, one of which is killed at once."""

    class Blow(LogObserver):
        def say(self, text: str, level: Level = "info") -> None:
            if text.startswith("measuring "):
                children = psutil.Process().children(recursive=True)
                next(c for c in children if c.name().startswith("ray::Member")).kill()

    IDLE.end()  # or it might hit one that nobody measures
    about: dict[str, Any] = {"data": "digits", "workers": 2, "out": folder / "p.json"}
    try:
        convoy.measure("chavan:3-8-16-10", observer=Blow(), **about)
    except ConvoyError as error:
        IDLE.end()
        return {"error": [type(error).__name__, str(error)]}
    return {"error": None}


def command(argv: list[str]) -> dict[str, Any]:
    """Run one command line of Convoy's."""
    out, err, code = io.StringIO(), io.StringIO(), None
    sys.argv = ["convoy", *argv]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as status:
            code = status.code
    if code:
        IDLE.end()
    return {"code": code, "stdout": out.getvalue(), "stderr": err.getvalue()}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 1024**2,
        _node_ip_address="127.0.0.1",
    )
    run.pool = planning.pool = comparing.pool = idle
    for line in sys.stdin:
        job = json.loads(line)
        if "whole_way" in job:
            answer = whole_way(Path(job["whole_way"]))
        elif "dies" in job:
            answer = measure_one_that_dies(Path(job["dies"]))
        else:
            answer = command(job["argv"]) if "argv" in job else train(job)
        answer["idle"] = len(IDLE)
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()
    ray.shutdown()

"""Ranks of a 3-worker run are killed again and again; what is lost, and how long it takes.

Each kill is a SIGKILL to one rank's process at a random step, as soon as the crew is complete.
The undisturbed run beside it has the same settings; in float64 both must end alike, since every
sample must be used exactly once whoever is there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

import convoy
from common import median, write
from convoy.runtime.observer import LogObserver
from convoy.runtime.records import StepSummary, read_steps


class Killer(LogObserver):
    """Watches a run and kills one of its ranks now and then."""

    def __init__(self, kills: int, seed: int) -> None:
        self.left = kills
        self.random = random.Random(seed)
        self.killed: list[tuple[float, int]] = []
        """(time, step under way) of each kill."""
        self._next = 30
        self._step = 0

    def stepped(self, step: StepSummary, num_steps: int) -> None:
        """Kill a rank if the crew is complete and the step has come."""
        self._step = step.step
        if not self.left or len(step.ranks) < 3 or step.step < self._next:
            return
        self._next = step.step + self.random.randint(20, 60)
        self.left -= 1
        # A moment later, so that the kill falls anywhere in a step.
        threading.Timer(self.random.random() * 0.1, self._kill).start()

    def _kill(self) -> None:
        ranks = [
            child
            for child in psutil.Process().children(recursive=True)
            if child.name().startswith("ray::Member") and child.status() != "zombie"
        ]
        victim = self.random.choice(ranks)
        self.killed.append((time.time(), self._step))
        os.kill(victim.pid, 9)


def train(folder: Path, observer: Any, steps: int) -> convoy.RunResult:
    """One run of 3 workers."""
    result = convoy.train(
        network="chavan:3-64-128-10",
        dataset="digits",
        workers=3,
        batch_size=64,
        steps=steps,
        lr=0.01,
        precision="fp64",
        memory_format="contiguous",
        observer=observer,
        out=folder,
    )
    assert result is not None
    return result


def use_of_samples(folder: Path, samples: int, steps_per_epoch: int) -> tuple[int, int]:
    """Samples lost and used twice, over all complete epochs."""
    lost = twice = 0
    epochs: dict[int, Counter[int]] = {}
    steps = read_steps(folder / "steps.jsonl")
    for step in steps:
        used = epochs.setdefault(step.step // steps_per_epoch, Counter())
        for row in step.ranks:
            used.update(range(row["first"], row["first"] + row["samples"]))
    complete = len(steps) // steps_per_epoch
    for epoch in range(complete):
        lost += sum(1 for position in range(samples) if not epochs[epoch][position])
        twice += sum(count - 1 for count in epochs[epoch].values() if count > 1)
    return lost, twice


def main() -> None:
    """Kill, compare, tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    steps = 700 * options.kills
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        killer = Killer(options.kills, options.seed)
        disturbed = train(folder / "disturbed", killer, steps)
        calm = train(folder / "calm", LogObserver(), steps)
        lines = (folder / "disturbed" / "steps.jsonl").read_text().splitlines()
        first_end: dict[int, float] = {}
        for line in map(json.loads, lines):
            if line["time"] is not None:
                known = first_end.setdefault(line["generation"], line["time"])
                first_end[line["generation"]] = min(known, line["time"])
        waits = [
            min(end for end in first_end.values() if end > moment) - moment
            for moment, _ in killer.killed
        ]
        lost, twice = use_of_samples(folder / "disturbed", 1437, 23)
        a = load_file(folder / "disturbed" / "model.safetensors")
        b = load_file(folder / "calm" / "model.safetensors")
        apart = max(float((a[name] - b[name]).abs().max()) for name in a)
    if len(killer.killed) < options.kills:
        sys.exit(f"only {len(killer.killed)} of {options.kills} kills were possible")
    rows = [
        {
            "kills": len(killer.killed),
            "crews lost": disturbed.reformations,
            "steps": steps,
            "samples lost": lost,
            "used twice": twice,
            "death to next step, median s": median(waits),
            "worst s": max(waits),
            "final loss": disturbed.train_loss,
            "undisturbed": calm.train_loss,
            "largest weight difference": apart,
        }
    ]
    write("kills", rows, about="SIGKILL to a random rank of 3, as often as the crew is complete.")


if __name__ == "__main__":
    main()

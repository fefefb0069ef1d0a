"""A machine slows to half in the middle of a run: how long until the shares follow. Needs root.

On two emulated machines of 0.8 cores, `data` with the plan that `auto` makes; at a third of the run
one machine's quota is halved, at two thirds it is given back.

    sudo python benchmarks/rebalancing.py
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import median, write
from convoy import lab
from convoy.cluster import parse_cluster

NETWORK, BATCH_SIZE = "cifar10-quick", 128
DATA = "synthetic:3x32x32:10:64000"  # one epoch
STEPS, SLOWED_AT, EASED_AT = 480, 120, 300
CORES = 0.8
TEXT = (
    f'[[machine]]\nname = "a"\ncpus = {CORES}\n\n[[machine]]\nname = "b"\ncpus = {CORES}\n\n'
    '[network]\nbandwidth = "1 Gbit/s"\n'
)


def run(inside: lab.Lab, folder: Path, *, rebalance: bool) -> list[dict[str, Any]]:
    """Steps of one run: number, wall seconds, shares."""
    cluster = folder / "cluster.toml"
    cluster.write_text(TEXT)
    out = folder / f"rebalance-{rebalance}"
    command = [sys.executable, "-m", "convoy", "train", "--network", NETWORK, "--data", DATA]
    command += ["--batch-size", str(BATCH_SIZE), "--steps", str(STEPS), "--lr", "0.001"]
    command += ["--cluster", str(cluster), "--out", str(out), "--checkpoint-every", "100000"]
    command += [] if rebalance else ["--no-rebalance"]
    environment = inside.environment() | {"XDG_CACHE_HOME": str(folder / "cache")}
    training = inside.start("a", command, env=environment, stdout=subprocess.DEVNULL)
    while training.poll() is None:
        done = _steps_done(out / "steps.jsonl")
        slow = SLOWED_AT <= done < EASED_AT
        inside.set_cores("b", CORES / 2 if slow else CORES)
        time.sleep(0.1)
    if training.returncode:
        raise SystemExit("convoy train failed")
    steps: dict[int, list[dict[str, Any]]] = {}
    for line in (out / "steps.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.setdefault(row["step"], []).append(row)
    return [
        {
            "step": step,
            "wall_s": max(row["wall_s"] for row in rows[-2:]),
            "shares": [row["samples"] for row in rows[-2:]],
        }
        for step, rows in sorted(steps.items())
    ]


def _steps_done(path: Path) -> int:
    return path.read_text().count("\n") // 2 if path.is_file() else 0


def phases(steps: list[dict[str, Any]], label: str) -> dict[str, Any]:
    """Throughput before, while and after, and when shares were cut anew."""

    def images_per_s(first: int, last: int) -> float:
        return BATCH_SIZE / median([s["wall_s"] for s in steps if first <= s["step"] < last])

    changes = [b["step"] for a, b in itertools.pairwise(steps) if a["shares"] != b["shares"]]
    slowed = [step for step in changes if SLOWED_AT <= step < EASED_AT]
    eased = [step for step in changes if step >= EASED_AT]
    shares = {s["step"]: s["shares"] for s in steps}
    return {
        "run": label,
        "images/s before": images_per_s(20, SLOWED_AT),
        "slow, first 20 steps": images_per_s(SLOWED_AT + 2, SLOWED_AT + 20),
        "slow, last 60 steps": images_per_s(EASED_AT - 60, EASED_AT),
        "after, last 60 steps": images_per_s(STEPS - 60, STEPS - 1),
        "steps until shares follow": slowed[0] - SLOWED_AT if slowed else "never",
        "steps until they are back": eased[0] - EASED_AT if eased else "never",
        "shares": " ".join(
            f"{step}:{'/'.join(map(str, shares[step]))}" for step in [0, *changes] if step in shares
        ),
    }


def main() -> None:
    """With re-balancing and without."""
    with (
        tempfile.TemporaryDirectory() as name,
        lab.emulated(parse_cluster(TEXT), f"r{os.getpid() % 10**6}") as inside,
    ):
        rows = [
            phases(run(inside, Path(name), rebalance=rebalance), label)
            for label, rebalance in (("re-balancing", True), ("--no-rebalance", False))
        ]
    write(
        "rebalancing",
        rows,
        about=f"{NETWORK}, batch of {BATCH_SIZE}, over two machines of {CORES} cores; one is "
        f"slowed to half at step {SLOWED_AT} and given back its speed at step {EASED_AT}.",
    )


if __name__ == "__main__":
    main()

"""Convoy's `auto` beside plain DistributedDataParallel on unequal machines. Needs root.

On emulated machines of 1.0 and 0.5, and of 1.0 and 0.25 cores (1 Gbit/s), in turns: each machine
alone, plain DDP with equal shares in both memory layouts, Convoy with the plan that it chooses.

    sudo python benchmarks/unequal_machines.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import median, step_times, write
from convoy import lab
from convoy.cluster import parse_cluster

NETWORK, BATCH_SIZE, STEPS, SKIP = "cifar10-full", 120, 60, 10
DATA = "synthetic:3x32x32:10:7200"  # an epoch, so that no evaluation comes between
SLOWER = (0.5, 0.25)
PORT = 29511


def machine(name: str, cpus: float) -> str:
    """One machine of a cluster file."""
    return f'[[machine]]\nname = "{name}"\ncpus = {cpus}\n\n'


def convoy(inside: lab.Lab, cluster: Path, strategy: str, folder: Path, cache: Path) -> list[float]:
    """Step times of `convoy train` on the machines of `cluster`."""
    command = [sys.executable, "-m", "convoy", "train", "--network", NETWORK, "--data", DATA]
    command += ["--batch-size", str(BATCH_SIZE), "--steps", str(STEPS), "--lr", "0.001"]
    command += ["--strategy", strategy, "--cluster", str(cluster), "--out", str(folder)]
    environment = inside.environment() | {"XDG_CACHE_HOME": str(cache)}
    done = inside.run("big", command, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit("convoy train failed")
    return step_times(folder, skip=SKIP)


def plain(inside: lab.Lab, *, channels_last: bool, port: int) -> list[float]:
    """Step times of plain DDP with equal shares."""
    script = str(Path(__file__).parent / "plain_ddp.py")
    command = [sys.executable, script, "--network", NETWORK, "--data", DATA]
    command += ["--batch-size", str(BATCH_SIZE), "--steps", str(STEPS)]
    command += ["--channels-last"] * channels_last
    names = list(inside.addresses)
    ranks = []
    for rank, name in enumerate(names):
        meeting = {"MASTER_ADDR": inside.addresses[names[0]], "MASTER_PORT": str(port)}
        place = {"RANK": str(rank), "WORLD_SIZE": str(len(names))}
        place |= {"OWN_ADDRESS": inside.addresses[name]}
        ranks.append(
            inside.start(
                name,
                command,
                env=os.environ | meeting | place,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
        )
    said, _ = ranks[0].communicate(timeout=600)
    for process in ranks[1:]:
        process.wait(timeout=60)
    times: list[float] = json.loads(said)[SKIP:]
    return times


def case(slower: float, rounds: int) -> dict[str, Any]:
    """One pair of machines."""
    text = machine("big", 1.0) + machine("small", slower)
    text += '[network]\nbandwidth = "1 Gbit/s"\n'
    found: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        lab.emulated(parse_cluster(text), f"u{os.getpid() % 10**6}") as inside,
    ):
        folder = Path(name)
        files = {"both": text, "big": machine("big", 1.0), "small": machine("small", slower)}
        for which, content in files.items():
            (folder / f"{which}.toml").write_text(content)
        for number in range(rounds):

            def ours(which: str, strategy: str, number: int = number) -> list[float]:
                out = folder / f"{which}-{number}"
                cache = folder / "cache"
                return convoy(inside, folder / f"{which}.toml", strategy, out, cache)

            turns = {
                "big alone": lambda: ours("big", "single"),
                "small alone": lambda: ours("small", "single"),
                "DDP": lambda: plain(inside, channels_last=False, port=PORT),
                "DDP channels-last": lambda: plain(inside, channels_last=True, port=PORT + 1),
                "Convoy": lambda: ours("both", "auto"),
            }
            for label, turn in turns.items():
                found.setdefault(label, []).append(median(turn()))
    steps = {label: median(times) for label, times in found.items()}
    together = 1 / steps["big alone"] + 1 / steps["small alone"]
    return {
        "cores": f"1.0 + {slower}",
        **{f"{label} ms": seconds * 1e3 for label, seconds in steps.items()},
        "DDP / Convoy": steps["DDP"] / steps["Convoy"],
        "DDP channels-last / Convoy": steps["DDP channels-last"] / steps["Convoy"],
        "of the sum of speeds": 1 / steps["Convoy"] / together,
        "each round's ratio": [
            round(d / c, 2)
            for d, c in zip(found["DDP channels-last"], found["Convoy"], strict=True)
        ],
    }


def main() -> None:
    """Both pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    write(
        "unequal_machines",
        [case(slower, options.rounds) for slower in SLOWER],
        about=f"{NETWORK}, batch of {BATCH_SIZE}, on two emulated machines; medians of steps.",
    )


if __name__ == "__main__":
    main()

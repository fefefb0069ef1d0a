"""The study of Marques, Falcao & Alexandre in the lab: what `filter` gains, and when. Needs root.

    sudo python benchmarks/filter_study.py [--only CASE] [--steps 12]
    python benchmarks/filter_study.py --summary

Machines of 0.4 cores (or 0.4, 0.4, 0.2 and 0.2), networks of two 5x5 convolutions for 32x32
images. Of each case the machines are measured once; then one machine trains alone, and the first
two, three and four of them with `filter`, in the ways that the case lists. A row says how much
faster that was than one machine, what had been predicted, and which part of a step convolutions
took. Rows of the same case are replaced, others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import RESULTS, median, step_times, write
from convoy import lab
from convoy.cluster import parse_cluster
from convoy.cost.layers import facts_of
from convoy.cost.profile import load
from convoy.cost.schedule import Compute
from convoy.cost.world import World, world_of
from convoy.networks import build
from convoy.planner import Task, predict
from convoy.strategies import make_strategy

EQUAL, UNEQUAL = (0.4, 0.4, 0.4, 0.4), (0.4, 0.4, 0.2, 0.2)
SKIP = 3
IMAGES = (3, 32, 32)
Options = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured together."""

    network: str
    batch_size: int = 16
    cores: tuple[float, ...] = EQUAL
    bandwidth: str = "1 Gbit/s"
    counts: tuple[int, ...] = (4,)
    """How many of the machines take part."""
    ways: tuple[Options, ...] = ({},)
    """Options of `filter`."""

    def __str__(self) -> str:
        kind = "equal" if self.cores == EQUAL else "unequal"
        return f"{self.network} {self.batch_size} {kind} {self.bandwidth.replace(' ', '')}"


CASES = {
    str(case): case
    for case in (
        Case(network="marques:500:1500", counts=(2, 3, 4)),
        Case(network="marques:500:1500", cores=UNEQUAL),
        Case(network="marques:300:1000"),
        Case(
            network="marques:150:800",
            counts=(2, 3, 4),
            ways=({}, {"fuse": "no"}, {"resident": "no"}, {"wire": "bf16"}),
        ),
        Case(network="marques:150:800", batch_size=64),
        Case(network="marques:150:800", cores=UNEQUAL),
        Case(network="marques:150:800", bandwidth="100 Mbit/s"),
        Case(network="marques:500:1500", bandwidth="100 Mbit/s"),
        Case(network="marques:50:500"),
        Case(network="marques:50:500", bandwidth="100 Mbit/s"),
    )
}


def cluster_file(case: Case, count: int) -> str:
    """The case's first machines as TOML."""
    machines = "".join(
        f'[[machine]]\nname = "{name}"\ncpus = {cpus}\n\n'
        for name, cpus in zip("abcd"[:count], case.cores, strict=False)
    )
    return f'{machines}[network]\nbandwidth = "{case.bandwidth}"\n'


def inside(machines: lab.Lab, *arguments: str) -> None:
    """A command of Convoy's on the first machine."""
    command = [sys.executable, "-m", "convoy", *arguments]
    done = machines.run("a", command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr[-3000:]}")


def study(case: Case, steps: int) -> list[dict[str, Any]]:
    """The rows of one case."""
    count = len(case.cores)
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        lab.emulated(parse_cluster(cluster_file(case, count)), f"f{os.getpid() % 10**6}") as whole,
    ):
        folder = Path(name)
        files = {n: folder / f"{n}.toml" for n in (1, *case.counts, count)}
        for n, path in files.items():
            path.write_text(cluster_file(case, n))
        images = case.batch_size * (steps + SKIP + 1)  # no epoch ends among those that are timed
        common = ["--network", case.network, "--data", f"synthetic:3x32x32:10:{images}"]
        common += ["--batch-size", str(case.batch_size)]
        profile = folder / "profile.json"
        inside(whole, "measure", *common, "--cluster", str(files[count]), "--out", str(profile))
        world = world_of(load(profile))
        task = Task(
            network=facts_of(build(case.network, input_shape=IMAGES, num_classes=10), IMAGES),
            batch_size=case.batch_size,
        )

        def measured(n: int, strategy: str, options: Options) -> tuple[float, float]:
            """Seconds of a step, and bytes of all ranks."""
            out = folder / "-".join(map(str, (n, strategy, *options.values())))
            command = [*common, "--cluster", str(files[n]), "--strategy", strategy]
            command += ["--steps", str(steps + SKIP), "--lr", "0.0001", "--out", str(out)]
            command += ["--memory-format", load(profile).memory_format.replace("_", "-")]
            command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
            if strategy != "single":
                command += ["--profile", str(profile)]
            inside(whole, "train", *command)
            result = json.loads((out / "result.json").read_text())
            return median(step_times(out, skip=SKIP)), result["sent_bytes_per_step"]

        alone, _ = measured(1, "single", {})
        beside = alone - convolutions(world, task)
        ways: list[tuple[int, str, Options]] = [(1, "single", {})]
        ways += [(n, "filter", options) for n in case.counts for options in case.ways]
        for n, strategy, options in ways:
            step_s, sent = (alone, 0.0) if n == 1 else measured(n, strategy, options)
            foreseen = predict(world, task, make_strategy(strategy, options), range(n))
            sum_of_speeds = sum(case.cores[:n]) / case.cores[0]
            rows.append(
                {
                    "case": str(case),
                    "machines": n,
                    "way": " ".join([strategy, *(f"{k}={v}" for k, v in options.items())]),
                    "step ms": step_s * 1e3,
                    "predicted ms": foreseen.step_s * 1e3,
                    "error": foreseen.step_s / step_s - 1,
                    "speed-up": alone / step_s,
                    "of the sum of speeds": alone / step_s / sum_of_speeds,
                    "in convolutions": 1 - beside / step_s,
                    "MB/step": sent / 1e6,
                    "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                }
            )
    return rows


def convolutions(world: World, task: Task) -> float:
    """Seconds that the first device alone spends in convolutions, by its profile."""
    seconds = world.seconds((0,))
    return sum(
        seconds(Compute(rank=0, phase=phase, samples=task.batch_size, layer=layer.name))
        for layer in task.network.layers
        if layer.filters
        for phase in ("forward", "backward")
    )


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What they come to."""
    filters = [row for row in rows if row["machines"] > 1]
    errors = [abs(row["error"]) for row in filters]
    return [
        {"figure": f"mean absolute error of {len(errors)}", "value": sum(errors) / len(errors)},
        {"figure": "largest", "value": max(errors)},
    ]


def main() -> None:
    """Go through the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--steps", type=int, default=12, help="that are timed, of each run")
    parser.add_argument("--summary", action="store_true", help="only of the rows that are there")
    options = parser.parse_args()
    known = RESULTS / "filter_study.json"
    rows: list[dict[str, Any]] = json.loads(known.read_text())["rows"] if known.exists() else []
    for name in () if options.summary else options.only or CASES:
        rows = [row for row in rows if row["case"] != name] + study(CASES[name], options.steps)
        write(
            "filter_study", rows, about="`filter` in the lab: against one machine, and predicted."
        )
    write("filter_study_summary", summary(rows), about="What `filter_study` comes to.")


if __name__ == "__main__":
    main()

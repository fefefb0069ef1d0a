"""What is gained by splitting the network and not only the batch, in the lab. Needs root.

    sudo python benchmarks/split_networks.py [--only CASE] [--steps 12]
    python benchmarks/split_networks.py --summary

`filter` as in the study of Marques, Falcao & Alexandre: machines of 0.4 cores (or 0.4, 0.4, 0.2 and
0.2), networks of two 5x5 convolutions for 32x32 images, beside one machine alone. `hybrid` beside
`data` on a narrow AlexNet. `pipeline` on a whole and half a core, planned and with equal cuts. Of
each case the machines are measured once; then the first two, three or four of them train in the
ways that the case lists. A row says how long a step took, what had been predicted, how much faster
that was than the case's first way, which part of a step convolutions took on the first machine, and
for which part of it ranks did not compute. Rows of the same case are replaced, others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

import narrow
from common import RESULTS, median, step_times, write
from convoy import lab
from convoy.cluster import parse_cluster
from convoy.cost.layers import facts_of
from convoy.cost.profile import load
from convoy.cost.schedule import Compute
from convoy.cost.world import World, world_of
from convoy.networks import build
from convoy.planner import Task, play, predict
from convoy.strategies import make_strategy
from convoy.strategies.pipeline_drawing import idle_fraction

EQUAL, UNEQUAL = (0.4, 0.4, 0.4, 0.4), (0.4, 0.4, 0.2, 0.2)
SKIP = 3
SMALL = (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train."""

    machines: int
    """So many of them, from the first."""
    strategy: str
    options: dict[str, Any] = field(default_factory=dict)
    equal: bool = False
    """Whether it is planned as if machines were alike."""

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.strategy, *options, *(["equal"] if self.equal else [])])


ALONE = Way(machines=1, strategy="single")


def filters(*counts: int, **options: Any) -> tuple[Way, ...]:
    """So many with `filter`."""
    return tuple(Way(machines=count, strategy="filter", options=options) for count in counts)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured together."""

    network: str
    batch_size: int = 16
    images: tuple[int, int, int] = SMALL
    cores: tuple[float, ...] = EQUAL
    bandwidth: str = "1 Gbit/s"
    ways: tuple[Way, ...] = (ALONE, *filters(4))

    def __str__(self) -> str:
        cores = "+".join(map(str, self.cores))
        return f"{self.network} {self.batch_size} {cores} {self.bandwidth.replace(' ', '')}"


HYBRID = (
    *(Way(machines=count, strategy=name) for count in (2, 4) for name in ("data", "hybrid")),
    Way(machines=4, strategy="hybrid", options={"exchange": "gather"}),
)
ALEXNET = {"network": "narrow:alexnet", "batch_size": 256, "images": narrow.IMAGES, "ways": HYBRID}
PIPELINE = (
    ALONE,
    Way(machines=2, strategy="pipeline", options={"micro_batches": 8}, equal=True),
    *(
        Way(
            machines=2,
            strategy="pipeline",
            options={"micro_batches": number, "stages_per_device": each},
        )
        for number, each in ((8, 1), (8, 2), (4, 1), (4, 2))
    ),
    Way(machines=2, strategy="pipeline"),
)
TWO = {"cores": (1.0, 0.5), "ways": PIPELINE}
CASES = {
    str(case): case
    for case in (
        Case(network="marques:500:1500", ways=(ALONE, *filters(2, 3, 4))),
        Case(network="marques:500:1500", cores=UNEQUAL),
        Case(network="marques:300:1000"),
        Case(
            network="marques:150:800",
            ways=(ALONE, *filters(2, 3, 4), *filters(4, fuse="no"), *filters(4, resident="no"))
            + filters(4, wire="bf16"),
        ),
        Case(network="marques:150:800", batch_size=64),
        Case(network="marques:150:800", cores=UNEQUAL),
        Case(network="marques:150:800", bandwidth="100 Mbit/s"),
        Case(network="marques:500:1500", bandwidth="100 Mbit/s"),
        Case(network="marques:50:500"),
        Case(network="marques:50:500", bandwidth="100 Mbit/s"),
        Case(**ALEXNET),  # type: ignore[arg-type]
        Case(**ALEXNET, bandwidth="100 Mbit/s"),  # type: ignore[arg-type]
        Case(network="vgg16", batch_size=32, **TWO),  # type: ignore[arg-type]
        Case(network="resnet18", batch_size=32, **TWO),  # type: ignore[arg-type]
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
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        lab.emulated(
            parse_cluster(cluster_file(case, len(case.cores))), f"s{os.getpid() % 10**6}"
        ) as whole,
    ):
        folder = Path(name)
        shape = "x".join(map(str, case.images))
        count = case.batch_size * (steps + SKIP + 1)  # no epoch ends among those that are timed
        common = ["--network", case.network, "--data", f"synthetic:{shape}:10:{count}"]
        common += ["--batch-size", str(case.batch_size)]
        profile = folder / "profile.json"
        cluster = ["--cluster", str(folder / "all.toml")]
        (folder / "all.toml").write_text(cluster_file(case, len(case.cores)))
        inside(whole, "measure", *common, *cluster, "--out", str(profile))
        found = load(profile)
        common += ["--memory-format", found.memory_format.replace("_", "-")]
        world = world_of(found)
        network = network_of(case)
        task = Task(network=facts_of(network, case.images), batch_size=case.batch_size)
        for number, way in enumerate(case.ways):
            out, file = folder / str(number), folder / f"{way.machines}.toml"
            file.write_text(cluster_file(case, way.machines))
            command = [*common, "--cluster", str(file), "--strategy", way.strategy]
            command += ["--steps", str(steps + SKIP), "--lr", "0.0001", "--out", str(out)]
            for name, value in way.options.items():
                command.append(f"--{name.replace('_', '-')}={value}")
            chosen = make_strategy(way.strategy, way.options)
            foreseen = predict(world, task, chosen, range(way.machines), equal=way.equal)
            if way.equal:
                command += ["--shares", ",".join(["1"] * way.machines)]
            elif chosen.measures:
                command += ["--profile", str(profile)]
            elif foreseen.plan is not None and way.machines > 1:
                command += ["--shares", ",".join(map(str, foreseen.plan.shares))]
            inside(whole, "train", *command)
            result = json.loads((out / "result.json").read_text())
            rows.append(
                {
                    "case": str(case),
                    "machines": way.machines,
                    "way": str(way),
                    "step ms": median(step_times(out, skip=SKIP)) * 1e3,
                    "predicted ms": foreseen.step_s * 1e3,
                    "MB/step": result["sent_bytes_per_step"] / 1e6,
                    "idle": idle(out),
                    "predicted idle": idle_fraction(play(world, foreseen)[1]),
                    "predicted MB held": [round(size / 1e6) for size in foreseen.peak_bytes],
                }
            )
        add_ratios(case, rows, convolutions(world, task))
    return rows


def network_of(case: Case) -> nn.Module:
    """The case's network."""
    if case.network == "narrow:alexnet":
        return narrow.alexnet()
    return build(case.network, input_shape=case.images, num_classes=10)


def idle(run: Path) -> float:
    """The part of all ranks' time in a step for which they did not compute: the median step's."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for line in (run / "steps.jsonl").read_text().splitlines():
        record = json.loads(line)
        steps.setdefault(record["step"], []).append(record)
    return median(
        [
            1 - sum(r["compute_s"] for r in ranks) / sum(r["wall_s"] for r in ranks)
            for step, ranks in steps.items()
            if step >= SKIP
        ]
    )


def add_ratios(case: Case, rows: list[dict[str, Any]], in_convolutions_s: float) -> None:
    """What follows from the times."""
    first = rows[0]
    beside = first["step ms"] * (1 - in_convolutions_s * 1e3 / first["predicted ms"])
    alone = first["machines"] == 1
    for row in rows:
        row["error"] = row["predicted ms"] / row["step ms"] - 1
        row["speed-up"] = first["step ms"] / row["step ms"]
        speeds = sum(case.cores[: row["machines"]]) / case.cores[0]
        row["of the sum of speeds"] = row["speed-up"] / speeds if alone else ""
        row["in convolutions"] = 1 - beside / row["step ms"] if alone else ""
        row["date"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"


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
    """How far predictions were off, by strategy."""
    figures = []
    for strategy in dict.fromkeys(row["way"].split()[0] for row in rows):
        errors = [abs(row["error"]) for row in rows if row["way"].split()[0] == strategy]
        mean = sum(errors) / len(errors)
        figures.append(
            {"figure": f"{strategy}: mean absolute error of {len(errors)}", "value": mean}
        )
        figures.append({"figure": f"{strategy}: largest", "value": max(errors)})
    return figures


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Each way's speed beside its case's first, as measured and as predicted."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    heights = [len(found) for found in cases.values()]
    figure = Figure(figsize=(9, 0.9 * len(cases) + 0.26 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=[h + 2 for h in heights])
    for axes, (case, found) in zip(panels[:, 0], cases.items(), strict=True):
        places = range(len(found))
        first = found[0]
        speeds = [first["step ms"] / row["step ms"] for row in found]
        foreseen = [first["predicted ms"] / row["predicted ms"] for row in found]
        axes.barh(places, speeds, height=0.6, color="#4477aa", label="measured")
        axes.plot(foreseen, places, "|", color="black", markersize=11, label="predicted")
        axes.set_yticks(places, [f"{row['machines']}: {row['way']}" for row in found], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(case, fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("times as fast as the case's first way (machines: way)")
    panels[0, 0].legend(fontsize=8, loc="upper right")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Go through the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--steps", type=int, default=12, help="that are timed, of each run")
    parser.add_argument("--summary", action="store_true", help="only of the rows that are there")
    parser.add_argument("--picture", type=Path, help="draw the rows there")
    options = parser.parse_args()
    paths = [str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # `narrow`, for all machines
    known = RESULTS / "split_networks.json"
    rows: list[dict[str, Any]] = json.loads(known.read_text())["rows"] if known.exists() else []
    for name in () if options.summary else options.only or CASES:
        rows = [row for row in rows if row["case"] != name] + study(CASES[name], options.steps)
        write("split_networks", rows, about="Step times in the lab, measured and predicted.")
    write("split_networks_summary", summary(rows), about="What `split_networks` comes to.")
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()

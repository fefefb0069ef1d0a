"""`downpour` in the lab: throughput, the servers' link, and what deaths cost. Needs root.

    sudo python benchmarks/downpour.py throughput [--rounds 1] [--only CASE]
    sudo python benchmarks/downpour.py cores
    sudo python benchmarks/downpour.py link
    sudo python benchmarks/downpour.py prediction [--repeats 1]
    python benchmarks/downpour.py kills [--replicas 20] [--shards 10] [--epochs 700]

`throughput`: every machine alone, then `downpour`, Convoy's `data` and plain
DistributedDataParallel over all, in turns; in one case a machine is slowed to a tenth in the
middle. Beside them, what all machines do that train alone, but all at once: emulated ones share a
computer, and nothing can be faster. `cores`: which processes take how much of them. `link`: pushes
and fetches of a network of 100 MB between two machines, beside what the link carries, and what a
push costs a server beside one pass over its memory. `prediction`: how long a step is predicted and
measured to be, by `convoy compare`. `kills`: replicas and shards killed at random moments.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

import convoy
from common import RESULTS, median, write
from convoy import lab
from convoy.cluster import parse_cluster
from convoy.runtime.observer import LogObserver
from prediction import CLUSTERS, cluster_file, compare

NETWORK, BATCH_SIZE, STEPS, SKIP = "cifar10-quick", 100, 160, 12
DATA = "synthetic:3x32x32:10:{}"  # as many images as are used, so that nothing is judged
CASES: dict[str, tuple[tuple[float, ...], bool]] = {
    "1.0 + 0.5": ((1.0, 0.5), False),
    "0.6 + 0.6 + 0.3": ((0.6, 0.6, 0.3), False),
    "0.6 + 0.6 + 0.3, the second slowed to a tenth": ((0.6, 0.6, 0.3), True),
}
PREDICTED = {
    "1.0 + 0.5, 1 Gbit/s": ("cifar10-quick", "lenet"),
    "0.6 + 0.6 + 0.3, 1 Gbit/s": ("cifar10-quick",),
    "0.6 + 0.6, 100 Mbit/s": ("cifar10-quick",),
}
SLOWED, SLOW_S = 0.1, 20.0
"""To which part of its speed, and for how long."""
REPLICA, SHARD = "Member", "Shard"
"""How Ray's names of their processes begin."""
PORT = 29531
LINK_NETWORK, LINK_DATA = "ours:large", "synthetic:3x8x8:10:2000"


def cluster_text(cores: Sequence[float], names: Sequence[str]) -> str:
    """Machines a, b, c of so many cores on 1 Gbit/s; of them, those of `names`."""
    machines = [
        f'[[machine]]\nname = "{name}"\ncpus = {cpus}\n\n'
        for name, cpus in zip("abc", cores, strict=False)
        if name in names
    ]
    return "".join(machines) + '[network]\nbandwidth = "1 Gbit/s"\n'


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of `steps.jsonl` that are whole."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def ours(
    inside: lab.Lab, folder: Path, way: str, cluster: str, steps: int, slowed: bool
) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Steps of `convoy train`, and when a machine was slow."""
    file = folder / "cluster.toml"
    file.write_text(cluster)
    out = folder / f"run-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "convoy", "train", "--network", NETWORK]
    command += [
        "--data",
        DATA.format(steps * BATCH_SIZE),
        "--batch-size",
        str(BATCH_SIZE),
        "--steps",
        str(steps),
        "--lr",
        "0.001",
    ]
    command += ["--strategy", way, "--cluster", str(file), "--out", str(out)]
    command += ["--optimizer", "sgd"]
    environment = inside.environment() | {"XDG_CACHE_HOME": str(folder / "cache")}
    training = inside.start("a", command, env=environment, stdout=subprocess.DEVNULL)
    span = (0.0, 0.0)
    while training.poll() is None:
        done = {row["step"] for row in read(out / "steps.jsonl")} if not span[1] else set()
        if slowed and not span[0] and len(done) > 5 * SKIP:
            span = (time.time(), 0.0)
            inside.set_cores("b", CASES["0.6 + 0.6 + 0.3"][0][1] * SLOWED)
        elif span[0] and not span[1] and time.time() > span[0] + SLOW_S:
            span = (span[0], time.time())
            inside.set_cores("b", CASES["0.6 + 0.6 + 0.3"][0][1])
        time.sleep(0.2)
    if training.returncode:
        raise SystemExit(f"convoy train --strategy {way} failed")
    return read(out / "steps.jsonl"), span


def pace(rows: Sequence[dict[str, Any]], begin: float = 0.0, end: float = float("inf")) -> float:
    """Images per second of the steps that ended between two moments."""
    done: dict[int, tuple[float, int]] = {}
    for row in rows:  # of a synchronous step all ranks' lines, the last of which ends it
        at, samples = done.get(row["step"], (0.0, 0))
        done[row["step"]] = (max(at, row["time"]), samples + row["samples"])
    ordered = sorted(v for v in done.values() if begin <= v[0] <= end)
    skip = SKIP if not begin else 0
    kept = ordered[skip : len(ordered) - (0 if begin else 4)]
    span = kept[-1][0] - kept[0][0]
    return sum(samples for _, samples in kept[1:]) / span if span > 0 else float("nan")


def plain(inside: lab.Lab, slowed: bool) -> tuple[float, float]:
    """Images per second of plain DDP with equal shares, channels-last; and while one is slow."""
    names = list(inside.addresses)
    script = str(Path(__file__).parent / "plain_ddp.py")
    size = BATCH_SIZE // len(names) * len(names)
    command = [sys.executable, script, "--network", NETWORK, "--channels-last"]
    command += ["--data", DATA.format(STEPS // 2 * BATCH_SIZE)]
    command += ["--batch-size", str(size), "--steps", str(STEPS // 2)]
    ranks = []
    for rank, name in enumerate(names):
        meeting = {"MASTER_ADDR": inside.addresses[names[0]], "MASTER_PORT": str(PORT)}
        place = {"RANK": str(rank), "WORLD_SIZE": str(len(names))}
        place |= {"OWN_ADDRESS": inside.addresses[name]}
        env = os.environ | meeting | place
        out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        ranks.append(inside.start(name, command, env=env, stdout=out, text=True))
    if slowed:
        time.sleep(25)  # they are at work by then
        inside.set_cores("b", CASES["0.6 + 0.6 + 0.3"][0][1] * SLOWED)
        time.sleep(SLOW_S)
        inside.set_cores("b", CASES["0.6 + 0.6 + 0.3"][0][1])
    said, _ = ranks[0].communicate(timeout=600)
    for process in ranks[1:]:
        process.wait(timeout=120)
    times: list[float] = json.loads(said)[SKIP:]
    usual = median(times)
    slow = [seconds for seconds in times if seconds > 3 * usual]
    return size / usual, size / median(slow) if slow else float("nan")


def side_by_side(inside: lab.Lab, cores: Sequence[float]) -> float:
    """What all machines do at once, each alone, of what they do one after another.

    They share a computer: its caches, its memory, and whatever else its cores have in common.
    """
    script = str(Path(__file__).parent / "plain_ddp.py")

    def start(name: str, of_one: float) -> subprocess.Popen[str]:
        steps = SKIP + round(90 * of_one)  # so that all end at about the same time
        command = [sys.executable, script, "--network", NETWORK, "--channels-last"]
        command += ["--data", DATA.format(20 * BATCH_SIZE)]
        command += ["--batch-size", str(BATCH_SIZE), "--steps", str(steps)]
        address = inside.addresses[name]
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": address, "OWN_ADDRESS": address}
        env = os.environ | place | {"MASTER_PORT": str(PORT)}
        return inside.start(name, command, env=env, stdout=subprocess.PIPE, text=True)

    def speed(training: subprocess.Popen[str]) -> float:
        said, _ = training.communicate(timeout=600)
        times: list[float] = json.loads(said)[SKIP:]
        return len(times) * BATCH_SIZE / sum(times)

    machines = list(zip(inside.addresses, cores, strict=True))
    in_turns = sum(speed(start(*machine)) for machine in machines)
    return sum(map(speed, [start(*machine) for machine in machines])) / in_turns


def one_round(inside: lab.Lab, folder: Path, case: str) -> dict[str, dict[str, float]]:
    """Every way once, by way: images per second, and of the sum of what machines do alone.

    The computer is faster in one minute than in another: what is compared is measured together.
    """
    cores, slowed = CASES[case]
    text, names = cluster_text(cores, "abc"[: len(cores)]), "abc"[: len(cores)]
    alone = {}
    for name in names:
        steps, _ = ours(inside, folder, "single", cluster_text(cores, name), 45, False)
        alone[name] = pace(steps)
    together = sum(alone.values())
    then = together - (1 - SLOWED) * alone.get("b", 0.0)
    found = {}
    for way in ("downpour", "data", "DDP"):
        slow = float("nan")
        if way == "DDP":
            usual, slow = plain(inside, slowed)
        else:
            count = STEPS * 2 if slowed else STEPS
            steps, (begin, end) = ours(inside, folder, way, text, count, slowed)
            if slowed:
                slow = pace(steps, begin + 3, end)
                steps = [row for row in steps if row["time"] < begin] or steps
            usual = pace(steps)
        found[way] = {"images/s": usual, "of the sum of speeds": usual / together}
        if slowed:
            found[way] |= {"images/s while slow": slow, "of the sum then": slow / then}
        found[way] |= {f"{name} alone": speed for name, speed in alone.items()}
    at_once = side_by_side(inside, cores)
    return {way: row | {"side by side, of the sum": at_once} for way, row in found.items()}


def throughput(case: str, rounds: int) -> list[dict[str, Any]]:
    """One cluster: medians over rounds, and of the ratio that counts the least and the most."""
    cores, _ = CASES[case]
    text = cluster_text(cores, "abc"[: len(cores)])
    with (
        tempfile.TemporaryDirectory() as name,
        lab.emulated(parse_cluster(text), f"w{os.getpid() % 10**6}") as inside,
    ):
        found = [one_round(inside, Path(name), case) for _ in range(rounds)]
    rows = []
    for way in found[0]:
        of_way = [one[way] for one in found]
        ratios = [row["of the sum of speeds"] for row in of_way]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        figures = {key: median([row[key] for row in of_way]) for key in of_way[0]}
        rows.append({"case": case, "way": way, "rounds": rounds} | figures | {"ratios": span})
    return rows


def used_by(processes: Sequence[int]) -> dict[str, float]:
    """Seconds of CPU so far, by what a process is for."""
    used: dict[str, float] = {}
    for pid in processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            command, times = " ".join(process.cmdline()), process.cpu_times()
            kinds = {"ray::Member": "a replica", "ray::Shard": "the server"}
            kinds |= {"ray::Coordinator": "the coordinator", "convoy train": "the driver"}
            kind = next((of for part, of in kinds.items() if part in command), "Ray")
            used[kind] = used.get(kind, 0.0) + times.user + times.system
    return used


def cores_used() -> list[dict[str, Any]]:
    """What of each machine's cores goes into what, while `downpour` trains on 1.0 + 0.5."""
    cores, steps = CASES["1.0 + 0.5"][0], 240
    text = cluster_text(cores, "ab")
    with (
        tempfile.TemporaryDirectory() as name,
        lab.emulated(parse_cluster(text), f"u{os.getpid() % 10**6}") as inside,
    ):
        folder, found = Path(name), {}

        def watch() -> None:
            """From the 40th step to the 180th."""
            for mark in (40, 180):
                while sum(len(read(p)) for p in folder.glob("run-*/steps.jsonl")) < mark:
                    time.sleep(0.2)
                now = {machine: used_by(inside.processes(machine)) for machine in "ab"}
                found[mark] = (time.monotonic(), now)

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        ours(inside, folder, "downpour", text, steps, False)
        watching.join(5)
    (began, before), (ended, after) = found[40], found[180]
    return [
        {"machine": machine, "process": kind, "cores": (total - used) / (ended - began)}
        for machine in "ab"
        for kind, total in sorted(after[machine].items())
        for used in [before[machine].get(kind, 0.0)]
    ]


def predicted(repeats: int) -> list[dict[str, Any]]:
    """Predictions of `downpour` beside runs, each of a step of everyone's together."""
    rows = []
    for cluster, networks in PREDICTED.items():
        cores, bandwidth = CLUSTERS[cluster]
        with (
            tempfile.TemporaryDirectory() as name,
            lab.emulated(
                parse_cluster(cluster_file(cores, bandwidth)), f"p{os.getpid() % 10**6}"
            ) as inside,
        ):
            file = Path(name) / "cluster.toml"
            file.write_text(cluster_file(cores, bandwidth))
            for network in networks:
                found = compare(
                    *(inside, file, network, repeats, Path(name) / network.replace(":", "-")),
                    strategies=("single", "downpour"),
                )
                rows += [
                    {"cluster": cluster, "network": network, "plan": run["label"]}
                    | {"predicted ms": run["predicted_step_s"] * 1e3}
                    | {"measured ms": run["measured_step_s"] * 1e3, "error": run["error"]}
                    for run in found["runs"]
                ]
    return rows


def link() -> list[dict[str, Any]]:
    """A network of 100 MB between a server and a replica on two machines."""
    text = cluster_text((1.0, 0.9), "ab")
    script = str(Path(__file__).parent / "downpour_link.py")
    with lab.emulated(parse_cluster(text), f"l{os.getpid() % 10**6}") as inside:
        addresses = inside.addresses
        server = inside.start(
            *("a", [sys.executable, script, "serve", addresses["a"]]),
            **{"stdout": subprocess.PIPE, "text": True},
        )
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        done = inside.run(
            *("b", [sys.executable, script, "exchange", endpoint]),
            **{"stdout": subprocess.PIPE, "text": True},
        )
        said, _ = server.communicate(timeout=120)
    found: dict[str, Any] = json.loads(done.stdout) | json.loads(said)
    return [{"figure": name, "value": value} for name, value in found.items()]


def listening(process: psutil.Process) -> int:
    """At how many ports it does."""
    return sum(link.status == psutil.CONN_LISTEN for link in process.net_connections())


class Killer(LogObserver):
    """Kills replicas and shards of a run at random moments."""

    def __init__(self, victims: list[str], seed: int) -> None:
        self.victims, self.random = victims, random.Random(seed)
        self.killed: list[tuple[float, str]] = []
        self._next, self._ready = 40, True

    def stepped(self, step: Any, num_steps: int) -> None:
        """Kill one if all are there and its step has come."""
        del num_steps
        if self.victims and self._ready and step.step >= self._next:
            self._ready = False
            threading.Timer(self.random.random() * 0.3, self._kill).start()

    def say(self, text: str, level: Any = "info") -> None:
        """Once what was killed is there again, another may be."""
        super().say(text, level)
        if "joins" in text or "there again" in text:
            self._ready = True

    def _kill(self) -> None:
        kind = self.victims.pop()
        found = [
            child
            for child in psutil.Process().children(recursive=True)
            if child.name().startswith(f"ray::{kind}") and child.status() != "zombie"
        ]
        if kind == SHARD:  # not one that waits to replace another, and listens to Ray alone
            found = [child for child in found if listening(child) > 1]
        self._next += self.random.randint(20, 60)
        if not found:
            self._ready = True
            return
        self.killed.append((time.time(), kind))
        self.random.choice(found).kill()


def kills(replicas: int, shards: int, epochs: int) -> list[dict[str, Any]]:
    """Kill so many of each in one run, beside undisturbed ones with other seeds too."""
    common = {"network": "chavan:3-64-128-10", "dataset": "digits", "strategy": "downpour"}
    common |= {"workers": 2, "shards": 2, "lr": 0.02, "snapshot_s": 2, "epochs": epochs}
    victims = [REPLICA] * replicas + [SHARD] * shards
    random.Random(0).shuffle(victims)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for label, seed, killer in (
            *(("undisturbed", seed, Killer([], 0)) for seed in range(3)),
            ("killed", 0, Killer(victims, 0)),
        ):
            out = str(Path(name) / f"{label}-{seed}")
            result = convoy.train(**common, seed=seed, observer=killer, out=out)
            assert result is not None
            assert result.servers is not None
            steps = read(result.folder / "steps.jsonl")
            times = sorted(row["time"] for row in steps)
            gaps = [b - a for a, b in itertools.pairwise(times)]
            restored = [r["seconds"] for r in result.servers["restorations"]]
            of_replicas = sum(kind == REPLICA for _, kind in killer.killed)
            rows.append(
                {
                    "run": label,
                    "seed": seed,
                    "replicas killed": of_replicas,
                    "shards killed": len(killer.killed) - of_replicas,
                    "steps": len({row["step"] for row in steps}),
                    "samples repeated": result.servers["samples_repeated"],
                    "updates": result.servers["updates"],
                    "updates lost": result.servers["lost_updates"],
                    "most lost at once": max(
                        (r["lost_updates"] for r in result.servers["restorations"]), default=0
                    ),
                    "longest gap between steps, s": max(gaps),
                    "a shard restored, s (median, worst)": f"{median(restored):.1f}, "
                    f"{max(restored):.1f}"
                    if restored
                    else "",
                    "test accuracy": result.test_accuracy,
                }
            )
    return rows


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["throughput", "cores", "link", "prediction", "kills"])
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=700, help="of the runs with deaths")
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--shards", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.study == "throughput":
        known = RESULTS / "downpour_throughput.json"
        rows: list[dict[str, Any]] = json.loads(known.read_text())["rows"] if known.exists() else []
        for case in options.only or CASES:
            found = throughput(case, options.rounds)
            rows = [row for row in rows if row["case"] != case] + found
            write("downpour_throughput", rows, about=f"{NETWORK}, batches of {BATCH_SIZE}.")
    elif options.study == "cores":
        about = f"{NETWORK}, batches of {BATCH_SIZE}, on 1.0 + 0.5 cores: cores that are busy."
        write("downpour_cores", cores_used(), about=about)
    elif options.study == "link":
        write("downpour_link", link(), about="100 MB of float32 between two machines, 1 Gbit/s.")
    elif options.study == "prediction":
        rows = predicted(options.repeats)
        errors = [abs(row["error"]) for row in rows if row["plan"].startswith("downpour")]
        about = f"Mean absolute error of downpour: {sum(errors) / len(errors):.1%}."
        write("downpour_prediction", rows, about=about)
    else:
        about = "Digits, two replicas and two shards; replicas and shards killed at random."
        write(
            "downpour_kills", kills(options.replicas, options.shards, options.epochs), about=about
        )


if __name__ == "__main__":
    main()

"""Seconds of training until an accuracy is reached, by way of training. Needs root.

    sudo python benchmarks/downpour_accuracy.py --data-dir DATA [--only mnist] [--way WAY]
                                                [--bandwidth "1 Gbit/s"] [--repeats 3]
                                                [--first-seed 0] [--limit-s 900]
    python benchmarks/downpour_accuracy.py --picture docs/images/downpour_accuracy.png

On emulated machines of 1.0 and 0.5 cores: `single` on the faster, `data`, `averaging` and
`downpour` over both, the first two of these with shares of two to one. Networks are judged after
every epoch, so that times are whole epochs'; evaluation does not count, but where replicas go
on meanwhile. A run is stopped once it has reached the accuracy, or given up on after all its
epochs, or so many seconds, or when it diverges. Every run is a row. All take SGD with momentum at
the same rate (push 5 a lower one) but for `downpour, adagrad`, whose optimizer is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.figure

from common import RESULTS, write
from convoy import lab
from convoy.cluster import parse_cluster
from convoy.runtime.json_lines import read_lines
from convoy.runtime.records import read_steps
from prediction import cluster_file

SHARES = ("--shares", "2,1")  # as their speeds are
WAYS: dict[str, list[str]] = {
    "single": ["single"],
    "data": ["data", *SHARES],
    "averaging, H = 8": ["averaging", *SHARES, "--average-every", "8"],
    "averaging, H = 32": ["averaging", *SHARES, "--average-every", "32"],
    "downpour, push 1": ["downpour", "--optimizer", "sgd"],
    "downpour, in flight 1": ["downpour", "--optimizer", "sgd", "--in-flight", "1"],
    "downpour, adagrad": ["downpour"],
    "downpour, push 5": ["downpour", "--optimizer", "sgd", "--push-every", "5"]
    + ["--fetch-every", "5", "--lr", "0.004"],  # five gradients make a push
}
TASKS: dict[str, tuple[float, list[str]]] = {
    "mnist": (0.985, ["--network", "lenet", "--epochs", "6", "--batch-size", "64", "--lr", "0.01"]),
    "cifar10": (
        0.65,
        ["--network", "cifar10-quick", "--epochs", "12", "--batch-size", "100"]
        + ["--lr", "0.01", "--weight-decay", "0.004"],
    ),
}
NAME = "downpour_accuracy"
CURVES = RESULTS / f"{NAME}_curves.json"


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Those that there were."""
    path = folder / "evaluations.jsonl"
    return read_lines(path) if path.is_file() else []


def curve(folder: Path) -> list[tuple[float, float]]:
    """Seconds of training and accuracy, evaluation by evaluation."""
    rows = evaluations(folder)
    if rows and "elapsed_s" in rows[0]:
        return [(row["elapsed_s"], row["test_accuracy"]) for row in rows]
    steps = read_steps(folder / "steps.jsonl")
    return [
        (sum(s.wall_s for s in steps if s.step <= row["step"]), row["test_accuracy"])
        for row in rows
    ]


def has_reached(folder: Path, target: float) -> bool:
    """Whether some evaluation came to the target."""
    return max((row["test_accuracy"] for row in evaluations(folder)), default=0.0) >= target


def run(
    inside: lab.Lab,
    folder: Path,
    asked: tuple[str, str, int],
    data_dir: str,
    bandwidth: str,
    limit_s: float,
) -> dict[str, Any]:
    """One training: of a task, in a way, with a seed."""
    task, way, seed = asked
    target, arguments = TASKS[task]
    out = folder / f"{task}-{way}-{seed}".replace(" ", "")
    command = [sys.executable, "-m", "convoy", "train", "--data", task, "--data-dir", data_dir]
    command += [*arguments, "--seed", str(seed), "--cluster", str(folder / "cluster.toml")]
    command += ["--out", str(out), "--strategy", *WAYS[way]]
    environment = inside.environment() | {"XDG_CACHE_HOME": str(folder / "cache")}
    with (folder / "complaints").open("w") as complaints:
        training = inside.start(
            "a", command, env=environment, stdout=subprocess.DEVNULL, stderr=complaints
        )
    stopped, began = False, 0.0
    while training.poll() is None:
        began = began or (time.monotonic() if (out / "steps.jsonl").is_file() else 0.0)
        late = began and time.monotonic() - began > limit_s
        if not stopped and (late or has_reached(out, target)):
            training.send_signal(signal.SIGINT)
            stopped = True
        time.sleep(0.5)
    complaints_made = (folder / "complaints").read_text()
    diverged = "Try a lower --lr" in complaints_made
    if training.returncode and not stopped and not diverged:
        raise SystemExit(f"convoy train: {way} failed:\n{complaints_made}")
    points = curve(out)
    rows = read_lines(out / "steps.jsonl")
    behind = [row["staleness"] for row in rows if row.get("staleness") is not None]
    last = max((row["step"] for row in evaluations(out)), default=-1)
    samples = sum(row["samples"] for row in rows if row["step"] <= last)
    return {
        "task": task,
        "bandwidth": bandwidth,
        "way": way,
        "seed": seed,
        "target": target,
        "target, s": next((s for s, accuracy in points if accuracy >= target), None),
        "best test accuracy": max((accuracy for _, accuracy in points), default=None),
        "epochs": len(points),
        "images/s": samples / points[-1][0] if points else None,
        "diverged": diverged,
        "mean staleness": sum(behind) / len(behind) if behind else None,
        "curve": points,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against seconds."""
    panels = list(dict.fromkeys((row["task"], row["bandwidth"]) for row in rows))
    figure = matplotlib.figure.Figure(figsize=(6 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (task, bandwidth) in zip(axes, panels, strict=True):
        for number, way in enumerate(WAYS):
            runs = [r for r in rows if (r["task"], r["bandwidth"]) == (task, bandwidth)]
            for row in [r for r in runs if r["way"] == way and r["curve"]]:
                seconds, accuracies = zip(*row["curve"], strict=True)
                label = way if row["seed"] == 0 else None
                place.plot(seconds, accuracies, "o-", color=f"C{number}", markersize=3, label=label)
        place.axhline(TASKS[task][0], color="#999", linewidth=0.8, linestyle="--")
        place.set_title(f"{task}, 1.0 + 0.5 cores, {bandwidth}", fontsize=10)
        place.set_xlabel("seconds of training")
        place.set_ylabel("test accuracy")
        place.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="data", help="where mnist and cifar10 lie")
    parser.add_argument("--only", action="append", choices=list(TASKS))
    parser.add_argument("--way", action="append", choices=list(WAYS))
    parser.add_argument("--bandwidth", action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="of the repeats")
    parser.add_argument("--limit-s", type=float, default=900.0, help="of training, in one run")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    known = RESULTS / f"{NAME}.json"
    rows: list[dict[str, Any]] = json.loads(known.read_text())["rows"] if known.exists() else []
    for row, drawn in zip(rows, json.loads(CURVES.read_text()) if rows else [], strict=True):
        row["curve"] = drawn["curve"]
    if options.picture:
        draw(rows, options.picture)
        return
    for bandwidth in options.bandwidth or ["1 Gbit/s", "100 Mbit/s"]:
        text = cluster_file((1.0, 0.5), bandwidth)
        for task in options.only or TASKS:
            with (
                tempfile.TemporaryDirectory() as name,
                lab.emulated(parse_cluster(text), f"t{os.getpid() % 10**6}") as inside,
            ):
                folder = Path(name)
                (folder / "cluster.toml").write_text(text)
                for seed in range(options.first_seed, options.first_seed + options.repeats):
                    for way in options.way or WAYS:
                        data = str(Path(options.data_dir).resolve())
                        asked = (task, way, seed)
                        row = run(inside, folder, asked, data, bandwidth, options.limit_s)
                        key = ("task", "bandwidth", "way", "seed")
                        rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
                        curves = [{k: r[k] for k in (*key, "curve")} for r in rows]
                        CURVES.write_text(json.dumps(curves, indent=1) + "\n")
                        shown = [{k: v for k, v in r.items() if k != "curve"} for r in rows]
                        write(
                            NAME, shown, about="Seconds of training until an accuracy is reached."
                        )


if __name__ == "__main__":
    main()

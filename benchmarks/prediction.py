"""How well step times are predicted, on emulated clusters of unequal machines. Needs root.

For each cluster and network `convoy compare` measures the machines, predicts and then runs every
machine alone, `data` with weighted and with equal shares, and `averaging`, in turns:

    sudo python benchmarks/prediction.py [--repeats 2] [--only CLUSTER] [--network NETWORK]
    python benchmarks/prediction.py --summary

Every pair of prediction and measurement is a row, and takes the place of the row that was there
for that cluster and network. The summary says how far off predictions are,
whether they order plans rightly, and what auto's choice costs against the best there was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import RESULTS, write
from convoy import lab
from convoy.cluster import parse_cluster

CLUSTERS = {
    "1.0 + 0.5, 1 Gbit/s": ((1.0, 0.5), "1 Gbit/s"),
    "0.6 + 0.6 + 0.3, 1 Gbit/s": ((0.6, 0.6, 0.3), "1 Gbit/s"),
    "0.6 + 0.6, 100 Mbit/s": ((0.6, 0.6), "100 Mbit/s"),
    "1.0 + 0.1, 100 Mbit/s": ((1.0, 0.1), "100 Mbit/s"),
}
NETWORKS = {
    "cifar10-quick": (100, "synthetic:3x32x32:10:1000"),
    "cifar10-full": (100, "synthetic:3x32x32:10:1000"),
    "lenet": (64, "synthetic:1x28x28:10:1024"),
    "marques:150:800": (16, "synthetic:3x32x32:10:160"),
    "resnet18": (32, "synthetic:3x32x32:10:320"),
}
DIFFERENT = 0.10
"""Plans whose measured times differ by more than this have an order."""


def cluster_file(cores: tuple[float, ...], bandwidth: str) -> str:
    """The cluster as TOML."""
    machines = "".join(
        f'[[machine]]\nname = "{name}"\ncpus = {cpus}\n\n'
        for name, cpus in zip(("a", "b", "c"), cores, strict=False)
    )
    return f'{machines}[network]\nbandwidth = "{bandwidth}"\n'


def compare(
    machines: lab.Lab,
    cluster: Path,
    network: str,
    repeats: int,
    folder: Path,
    *,
    strategies: Sequence[str] = ("single", "data", "averaging"),
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """What `convoy compare --json` says, run on the cluster's first machine."""
    batch_size, data = NETWORKS[network]
    command = [sys.executable, "-m", "convoy", "compare", "--network", network, "--data", data]
    command += ["--batch-size", str(batch_size), "--cluster", str(cluster), "--json"]
    command += ["--strategies", ",".join(strategies), *more]
    command += ["--repeats", str(repeats), "--lr", "0.0001", "--out", str(folder)]
    environment = machines.environment() | {"XDG_CACHE_HOME": str(folder) + "-cache"}
    first = next(iter(machines.addresses))
    done = machines.run(
        first, command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{network}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Errors, order and auto's choice over all rows."""

    def error(chosen: list[dict[str, Any]]) -> float:
        return statistics.fmean(abs(row["error"]) for row in chosen)

    ordered = right = 0
    regrets, any_regrets = [], []
    for _, of_case in itertools.groupby(rows, key=lambda r: (r["cluster"], r["network"])):
        case = list(of_case)
        for a, b in itertools.combinations(case, 2):
            fast, slow = sorted((a, b), key=lambda r: r["measured ms"])
            if slow["measured ms"] / fast["measured ms"] > 1 + DIFFERENT:
                ordered += 1
                right += fast["predicted ms"] < slow["predicted ms"]
        exact = [row["measured ms"] for row in case if row["plan"] != "averaging"]
        taken = next(row for row in case if row["auto"])
        regrets.append(taken["measured ms"] / min(exact) - 1)
        any_regrets.append(taken["measured ms"] / min(r["measured ms"] for r in case) - 1)
    by_strategy = {
        name: [row for row in rows if row["plan"].split()[0] == name]
        for name in ("single", "data", "averaging")
    }
    figures = [("mean absolute error, all", error(rows))]
    figures += [(f"mean absolute error, {n}", error(found)) for n, found in by_strategy.items()]
    figures += [
        (f"pairs in the right order, of {ordered}", right / max(1, ordered)),
        ("auto over the best exact plan, worst case", max(regrets)),
        ("auto over the best exact plan, mean", statistics.fmean(regrets)),
        ("auto over the best of all, averaging too, mean", statistics.fmean(any_regrets)),
    ]
    for cluster in dict.fromkeys(row["cluster"] for row in rows):
        for name, found in by_strategy.items():
            here = [row for row in found if row["cluster"] == cluster]
            if here:
                figures.append((f"mean absolute error, {name}, {cluster}", error(here)))
    return [{"figure": name, "value": value} for name, value in figures]


def main() -> None:
    """Go through the clusters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", action="append", choices=list(CLUSTERS))
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--summary", action="store_true", help="only of the pairs that are there")
    options = parser.parse_args()
    known = RESULTS / "prediction.json"
    rows: list[dict[str, Any]] = json.loads(known.read_text())["rows"] if known.exists() else []
    if options.summary:
        write("prediction_summary", summary(rows), about="What `prediction` comes to.")
        return
    for number, name in enumerate(options.only or CLUSTERS):
        text = cluster_file(*CLUSTERS[name])
        with (
            tempfile.TemporaryDirectory() as folder,
            lab.emulated(parse_cluster(text), f"p{os.getpid() % 10**6}x{number}") as machines,
        ):
            cluster = Path(folder) / "cluster.toml"
            cluster.write_text(text)
            for network in options.network or NETWORKS:
                out = Path(folder) / network.replace(":", "-")
                found = compare(
                    *(machines, cluster, network, options.repeats, out),
                    more=("--equal", "--each-single"),
                )
                rows = [row for row in rows if (row["cluster"], row["network"]) != (name, network)]
                rows += [
                    {
                        "cluster": name,
                        "network": network,
                        "plan": run["label"],
                        "samples": "/".join(str(m["samples"]) for m in run["machines"]),
                        "predicted ms": run["predicted_step_s"] * 1e3,
                        "measured ms": run["measured_step_s"] * 1e3,
                        "each ms": [round(s * 1e3, 2) for s in run["measured_each_s"]],
                        "error": run["error"],
                        "auto": run["label"] == found["chosen"],
                        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                    }
                    for run in found["runs"]
                ]
                write("prediction", rows, about="Predicted and measured step times in the lab.")
    write("prediction_summary", summary(rows), about="What `prediction` comes to.")
    print(f"in {RESULTS}")


if __name__ == "__main__":
    main()

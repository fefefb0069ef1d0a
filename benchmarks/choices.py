"""What `auto` takes among all strategies, beside the best that was measured. Needs root.

    sudo python benchmarks/choices.py [--only CASE]
    python benchmarks/choices.py --summary

For each case `convoy compare` measures the machines of an emulated cluster, predicts what every
strategy would take that computes what one machine does, and runs each as it is planned best. Every
plan is a row, and takes the place of the row that was there for that case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import RESULTS, write
from convoy import lab
from convoy.cluster import parse_cluster
from prediction import cluster_file, compare

STRATEGIES = ("single", "data", "filter", "hybrid", "pipeline")
CLUSTERS = {
    "1.0 + 0.5, 1 Gbit/s": ((1.0, 0.5), "1 Gbit/s"),
    "0.6 + 0.6 + 0.3, 1 Gbit/s": ((0.6, 0.6, 0.3), "1 Gbit/s"),
    "0.6 + 0.6, 100 Mbit/s": ((0.6, 0.6), "100 Mbit/s"),
}
ON = {
    "cifar10-full": tuple(CLUSTERS),
    "cifar10-quick": tuple(CLUSTERS),
    "marques:150:800": tuple(CLUSTERS),
    "resnet18": ("1.0 + 0.5, 1 Gbit/s",),
}
CASES = {f"{network}, {name}": (network, name) for network, on in ON.items() for name in on}
NEAR = 0.05
"""A choice is right if it takes hardly longer than the best."""


def study(network: str, cluster: str) -> dict[str, Any]:
    """What `convoy compare --json` says of one case."""
    text = cluster_file(*CLUSTERS[cluster])
    with (
        tempfile.TemporaryDirectory() as name,
        lab.emulated(parse_cluster(text), f"c{os.getpid() % 10**6}") as machines,
    ):
        folder = Path(name)
        (folder / "cluster.toml").write_text(text)
        return compare(
            machines, folder / "cluster.toml", network, 1, folder / "out", strategies=STRATEGIES
        )


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far predictions were off, by strategy, and how good choices were."""
    figures: list[tuple[str, float]] = []
    for name in STRATEGIES:
        errors = [abs(row["error"]) for row in rows if row["plan"].split()[0] == name]
        if errors:
            figures.append(
                (f"mean absolute error, {name}, of {len(errors)}", sum(errors) / len(errors))
            )
    regrets = []
    for _, found in itertools.groupby(rows, key=lambda row: row["case"]):
        case = [row for row in found if row["exact"]]
        taken = next(row for row in case if row["auto"])
        regrets.append(taken["measured ms"] / min(row["measured ms"] for row in case) - 1)
    near = sum(regret <= NEAR for regret in regrets)
    figures += [
        (f"auto within {NEAR:.0%} of the best, cases of {len(regrets)}", near),
        ("auto over the best, mean", statistics.fmean(regrets)),
        ("auto over the best, worst case", max(regrets)),
    ]
    return [{"figure": name, "value": value} for name, value in figures]


def main() -> None:
    """Go through the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--summary", action="store_true", help="only of the rows that are there")
    options = parser.parse_args()
    known = RESULTS / "choices.json"
    rows: list[dict[str, Any]] = json.loads(known.read_text())["rows"] if known.exists() else []
    for name in () if options.summary else options.only or CASES:
        found = study(*CASES[name])
        rows = [row for row in rows if row["case"] != name]
        rows += [
            {
                "case": name,
                "plan": run["label"],
                "machines": "/".join(m["name"] for m in run["machines"]),
                "predicted ms": run["predicted_step_s"] * 1e3,
                "measured ms": run["measured_step_s"] * 1e3,
                "error": run["error"],
                "exact": run["exact"],
                "auto": run["label"] == found["chosen"],
                "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
            }
            for run in found["runs"]
        ]
        write("choices", rows, about="Every strategy in the lab, predicted and measured.")
    write("choices_summary", summary(rows), about="What `choices` comes to.")


if __name__ == "__main__":
    main()

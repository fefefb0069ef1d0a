"""A GPU and CPU ranks in one job: the same mathematics, and what it is worth. Needs a GPU.

    python benchmarks/with_gpu.py [--only exact|compare] [--cpu-ranks 2]

`exact`: the same training in float64 by the GPU alone and by the GPU with CPU ranks beside it, in
unequal shares; how far the trained weights lie apart. `compare`: every strategy on the GPU and
those CPU ranks, predicted and measured, with what the planner takes and says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from common import write

EXACT = {
    "data": ["--strategy", "data"],
    "filter": ["--strategy", "filter"],
    "hybrid": ["--strategy", "hybrid", "--dense-above", "100"],
    "pipeline": ["--strategy", "pipeline"],
}
TRAINING = ["--network", "cifar10-full", "--data", "synthetic:3x32x32:10:640"]
TRAINING += ["--batch-size", "64", "--steps", "20", "--lr", "0.01", "--precision", "fp64"]
NETWORKS = {
    "cifar10-full": (100, "synthetic:3x32x32:10:1000"),
    "marques:500:1500": (64, "synthetic:3x32x32:10:640"),
    "resnet18": (64, "synthetic:3x32x32:10:640"),
}
LIMIT_S = 150


def convoy(folder: Path, *arguments: str) -> dict[str, Any]:
    """What a verb of `convoy` prints with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "convoy", *arguments, "--json"],
        cwd=folder,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"convoy {' '.join(arguments)}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def exactness(cpu_ranks: int) -> list[dict[str, Any]]:
    """How far weights lie from those of the GPU alone."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = convoy(folder, "train", *TRAINING, "--workers", "1", "--out", "alone")
        expected = load_file(folder / "alone" / "model.safetensors")
        for way, arguments in EXACT.items():
            many = [*arguments, "--workers", str(1 + cpu_ranks)]
            many += ["--shares", ",".join(["4", "3", "2", "1"][: 1 + cpu_ranks])]
            row: dict[str, Any] = {"strategy": way}
            try:
                result = convoy(folder, "train", *TRAINING, *many, "--out", way)
                found = load_file(folder / way / "model.safetensors")
                row["devices"] = " ".join(m["device"] for m in result["machines"])
                row["largest difference of a weight"] = max(
                    float((found[key] - expected[key]).abs().max()) for key in expected
                )
                row["loss"], row["loss, alone"] = result["train_loss"], alone["train_loss"]
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                row["failed"] = str(error)
            rows.append(row)
    return rows


def comparison(
    network: str, strategies: Sequence[str], cpu_ranks: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every strategy, predicted and measured; and the planner's verdict."""
    batch_size, data = NETWORKS[network]
    common = ["--network", network, "--data", data, "--batch-size", str(batch_size)]
    common += ["--workers", str(1 + cpu_ranks)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = convoy(
            *(folder, "compare", *common, "--strategies", ",".join(strategies), "--repeats", "1"),
            *("--lr", "0.0001", "--out", "runs"),
        )
        profile = next((folder / "cache").rglob("profiles/*.json"))
        plan = convoy(
            folder, "plan", *common[:2], "--profile", str(profile), "--batch-size", str(batch_size)
        )
    rows = [
        {
            "network": network,
            "plan": run["label"],
            "devices": "/".join(str(m["samples"]) for m in run["machines"]),
            "predicted ms": run["predicted_step_s"] * 1e3,
            "measured ms": run["measured_step_s"] * 1e3,
            "error": run["error"],
            "auto": run["label"] == found["chosen"],
        }
        for run in found["runs"]
    ]
    return rows, {"network": network, "advice": plan["advice"]}


def named(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the card that they were measured on."""
    return [row | {"gpu": torch.cuda.get_device_name(0)} for row in rows]


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["exact", "compare"])
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--cpu-ranks", type=int, default=2)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use")
    strategies = ["single", *EXACT]
    if options.only != "compare":
        rows = exactness(options.cpu_ranks)
        strategies = ["single", *(row["strategy"] for row in rows if "failed" not in row)]
        write("with_gpu_exact", named(rows), about="A GPU with CPU ranks, against the GPU alone.")
    if options.only == "exact":
        return
    measured, said = [], []
    for network in options.network or NETWORKS:
        try:
            rows, verdict = comparison(network, strategies, options.cpu_ranks)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(network, error)
            continue
        measured, said = measured + rows, said + [verdict]
        write("with_gpu", named(measured), about="A GPU and CPU ranks, predicted and measured.")
        write("with_gpu_advice", named(said), about="What the planner says of a GPU and CPU ranks.")


if __name__ == "__main__":
    main()

"""Accuracy by the number of filters before a cut, beside the paper's.

    python benchmarks/split_narrow.py --data-dir DATA --out runs/split
                                      [--epochs 12] [--narrow-epochs 4] [--narrow-lr 0.01]

Trains cifar10-full on CIFAR-10, then with fewer filters before pool2, and leaves the run and the
narrowed ones in the folder `--out`, for `convoy split export` and the other benchmarks. What is
there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import write

FILTERS = (1, 4, 8, 12, 16, 20, 24, 28, 32)
PAPER = dict(zip(FILTERS, (56.6, 73.4, 76.6, 77.2, 77.1, 77.7, 77.6, 78.0, 78.1), strict=True))
"""Ichinose et al. (2017), Caffe's network for CIFAR-10: percent right, by filters at pool2."""
CUT = "pool2"


def convoy(*arguments: str) -> Any:
    """What a verb prints with --json."""
    command = [sys.executable, "-m", "convoy", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Train what is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--narrow-epochs", type=int, default=4)
    parser.add_argument("--narrow-lr", type=float, default=0.01)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    full = options.out / "full"
    if not (full / "result.json").is_file():
        command = ["train", "--network", "cifar10-full", "--data", "cifar10"]
        command += ["--data-dir", options.data_dir, "--strategy", "data", "--workers", "2"]
        command += ["--epochs", str(options.epochs), "--batch-size", "100", "--lr", "0.02"]
        command += ["--lr-schedule", "cosine", "--weight-decay", "0.004", "--out", str(full)]
        convoy(*command)
    found = convoy(
        *("split", "narrow", str(full), "--cut", CUT, "--filters", ",".join(map(str, FILTERS))),
        *("--epochs", str(options.narrow_epochs), "--lr", str(options.narrow_lr)),
        *("--workers", str(options.workers), "--data-dir", options.data_dir),
    )
    rows = [
        {
            "filters": row["filters"],
            "accuracy, %": 100 * row["accuracy"],
            "the paper's, %": PAPER[row["filters"]],
            "parameters": row["parameters"],
            "float32 bytes an image": row["bytes_per_image_float32"],
            "epochs": row["epochs"],
        }
        for row in sorted(found["filters"], key=lambda row: row["filters"])
    ]
    whole = f"the network as a whole: {100 * found['full']['accuracy']:.2f}%"
    write("split_narrow", rows, about=f"cifar10-full, fewer filters before pool2; {whole}.")


if __name__ == "__main__":
    main()

"""Accuracies that the README states, and how long they take. Skips sets that are not on disk."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import convoy_train, write

CASES = {
    "digits": ["--config", str(Path(__file__).parents[1] / "examples" / "demo.toml")],
    "mnist": ["--network", "lenet", "--data", "mnist", "--workers", "2", "--epochs", "3"]
    + ["--lr", "0.01", "--lr-schedule", "cosine"],
    "cifar10": ["--network", "cifar10-quick", "--data", "cifar10", "--workers", "2"]
    + ["--epochs", "10", "--batch-size", "100", "--lr", "0.02", "--lr-schedule", "cosine"]
    + ["--weight-decay", "0.004"],
}

ABOUT = "`data` over 2 workers of one machine. Speeds are by the way: other work ran beside."


def main() -> None:
    """Train each and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="where mnist and cifar10 lie", default="data")
    parser.add_argument("--only", choices=CASES, action="append")
    options = parser.parse_args()
    rows = []
    for name in options.only or CASES:
        where = Path(options.data_dir).resolve()
        if name != "digits" and not where.is_dir():
            print(f"{name} is left out: {where} is no folder; see --data-dir")
            continue
        arguments = [*CASES[name], "--data-dir", str(where)]
        with tempfile.TemporaryDirectory() as folder:
            result = convoy_train(
                [*arguments, "--strategy", "data", "--out", "run"], cwd=Path(folder)
            )
        rows.append(
            {
                "data set": result["dataset"],
                "network": result["network"],
                "epochs": result["epochs"],
                "test accuracy": result["test_accuracy"],
                "images/s": round(result["images_per_s"]),
                "wall s": result["wall_s"],
                "sent kB/step": result["sent_bytes_per_step"] / 1e3,
            }
        )
    write("accuracy", rows, about=ABOUT)


if __name__ == "__main__":
    main()

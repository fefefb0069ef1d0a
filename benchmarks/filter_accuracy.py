"""Whether `filter` learns what one machine learns: accuracies of the same network, by seed.

    python benchmarks/filter_accuracy.py --data-dir DATA [--steps 300] [--seeds 3]

The smallest network of Marques et al.'s study on CIFAR-10. Both ways see the same samples in the
same order and begin with the same weights; sums are in another order, in float32. What seeds do to
the accuracy tells how much of a difference would be chance.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import convoy_train, write

NETWORK = "marques:50:500"
COMMON = ["--network", NETWORK, "--data", "cifar10", "--batch-size", "64", "--lr", "0.01"]
WAYS = {
    "single": ["--strategy", "single", "--workers", "1"],
    "filter": ["--strategy", "filter", "--workers", "2", "--shares", "3,2"],
}


def main() -> None:
    """Train each way with each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="where cifar10 lies", default="data")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        row: dict[str, Any] = {"network": NETWORK, "steps": options.steps, "seed": seed}
        for way, arguments in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                result = convoy_train(
                    [*COMMON, *arguments, "--seed", str(seed), "--steps", str(options.steps)]
                    + ["--data-dir", str(Path(options.data_dir).resolve()), "--out", "run"],
                    cwd=Path(folder),
                )
            row[f"{way}: test accuracy"] = result["test_accuracy"]
            row[f"{way}: test loss"] = result["test_loss"]
        rows.append(row)
    write("filter_accuracy", rows, about="The same training on one rank, and with `filter` on two.")


if __name__ == "__main__":
    main()

"""Where the time from the command to the first finished step goes, over several starts."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import convoy_train, median, write


def main() -> None:
    """Start several times; report each phase's median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    starts = []
    for _ in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            result = convoy_train(
                ["--network", "cifar10-full", "--data", "synthetic:3x32x32:10", "--steps", "20"]
                + ["--batch-size", "100", "--lr", "0.01", "--workers", "2", "--out", "run"]
                + ["--strategy", "data"],
                cwd=Path(folder),
            )
            starts.append(result["startup_s"])
    counted = starts[1:]  # the first one fills the page cache
    rows = [
        {
            "phase": phase,
            "median s": median([start[phase] for start in counted]),
            "highest s": max(start[phase] for start in counted),
        }
        for phase in counted[0]
    ]
    totals = [sum(start.values()) for start in counted]
    rows.append({"phase": "all", "median s": median(totals), "highest s": max(totals)})
    write("startup", rows, about="`convoy train` with 2 workers, from its start to the first step.")


if __name__ == "__main__":
    main()

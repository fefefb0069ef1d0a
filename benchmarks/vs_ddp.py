"""Convoy's `data` beside plain DistributedDataParallel: same network, batch, threads, machine.

The contestants take turns, so that a machine whose speed drifts does so for all of them. A step
is what lies between the ends of two steps on rank 0, records and logging included. The ratio is
DDP's median over Convoy's: above 1, Convoy is faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import convoy_train, median, step_times, write

CASES = (("cifar10-full", 100, 120), ("marques:50:500", 64, 60))
SKIP = 10
ABOUT = (
    "Step time of `data` over 2 ranks beside plain DDP (contiguous). Convoy's ranks keep freed "
    "memory (src/convoy/runtime/memory.py), which plain DDP does not; Convoy also has a driver, "
    "records and a progress bar, which share the two cores with the ranks."
)
HERE = Path(__file__).parent


def plain(network: str, batch_size: int, steps: int) -> list[float]:
    """DDP's step times."""
    command = [sys.executable, str(HERE / "plain_ddp.py"), "--network", network]
    command += ["--batch-size", str(batch_size), "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)[SKIP:]


def ours(network: str, batch_size: int, steps: int, layout: str) -> list[float]:
    """Convoy's step times."""
    with tempfile.TemporaryDirectory() as folder:
        convoy_train(
            ["--network", network, "--data", "synthetic:3x32x32:10", "--workers", "2"]
            + ["--batch-size", str(batch_size), "--steps", str(steps), "--lr", "0.01"]
            + ["--memory-format", layout, "--checkpoint-every", "100000"]
            + ["--threads-per-worker", "1", "--strategy", "data", "--out", "run"],
            cwd=Path(folder),
        )
        return step_times(Path(folder) / "run", skip=SKIP)


def main() -> None:
    """Take turns and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for network, batch_size, steps in CASES:
        times: dict[str, list[float]] = {"ddp": [], "contiguous": [], "auto": []}
        ratios: dict[str, list[float]] = {"contiguous": [], "auto": []}
        for _ in range(options.rounds):
            now = {"ddp": plain(network, batch_size, steps)}
            for layout in ratios:
                now[layout] = ours(network, batch_size, steps, layout)
                ratios[layout].append(median(now["ddp"]) / median(now[layout]))
            for name, values in now.items():
                times[name] += values
        for layout, of_rounds in ratios.items():
            rows.append(
                {
                    "network": network,
                    "batch": batch_size,
                    "layout": layout,
                    "DDP ms": median(times["ddp"]) * 1e3,
                    "Convoy ms": median(times[layout]) * 1e3,
                    "ratio of medians": median(times["ddp"]) / median(times[layout]),
                    "ratio by round, lowest": min(of_rounds),
                    "highest": max(of_rounds),
                    "rounds": options.rounds,
                }
            )
    write("vs_ddp", rows, about=ABOUT)


if __name__ == "__main__":
    main()
